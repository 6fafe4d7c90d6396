// A shard's lock: many readers or one writer. A waiting writer goes first, so that readers cannot starve it.
//
//   version   even: no writer            odd: a writer is at work
//   writer    lock | version + 1 | writes ... | version + 1 | unlock
//   glance    version (even) | reads ... | same version: the read is whole; another version: it reads again, locked
//
// Invariants
//   - A glance waits for nobody, nobody waits for it, and it writes nothing. No line of the lock moves between cores.
//   - The memory that a glance reads belongs to the table for as long as the table lives (see storage.h).
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <new>

#pragma GCC diagnostic push
#ifdef __SANITIZE_THREAD__  // it does not model fences; all that a glance reads but the rows is atomic
#pragma GCC diagnostic ignored "-Wtsan"
#endif

namespace cuckoo {

class Lock {
 public:
  Lock() {
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    const int error = pthread_rwlock_init(&lock_, &attr);
    pthread_rwlockattr_destroy(&attr);
    if (error != 0) throw std::bad_alloc();
  }
  ~Lock() { pthread_rwlock_destroy(&lock_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // The names std::unique_lock and std::shared_lock ask for.
  void lock() {
    pthread_rwlock_wrlock(&lock_);
    version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
  }
  void unlock() {
    version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    pthread_rwlock_unlock(&lock_);
  }
  void lock_shared() { pthread_rwlock_rdlock(&lock_); }
  void unlock_shared() { pthread_rwlock_unlock(&lock_); }

  // A glance: odd where it need not begin.
  uint32_t version() const { return version_.load(std::memory_order_acquire); }
  bool Stands(uint32_t version) const {
    std::atomic_thread_fence(std::memory_order_acquire);
    return version % 2 == 0 && version_.load(std::memory_order_relaxed) == version;
  }

 private:
  std::atomic<uint32_t> version_{0};
  pthread_rwlock_t lock_;
};

}  // namespace cuckoo

#pragma GCC diagnostic pop
