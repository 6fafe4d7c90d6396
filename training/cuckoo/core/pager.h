// A thread that takes pages of memory from the kernel before a batch needs them. No TensorFlow here.
//
//   batch    ... writes on ... | 256 KB before a page of 2 MB begins: Want(page) ... | writes on in the page
//   thread                       the kernel finds and zeroes it: 0.2 ms, some 5 ms in a virtual machine
//
// Invariants
//   - Nobody waits for a wish. If it is late, or there is no thread, the first writer takes the page.
//   - The pager changes no byte. Wanted memory stays mapped until the pager has stopped.
//   - The thread begins with the first wish, so a small table has none.
//   - The kernel refuses to collapse a page while another thread takes small pages in it (EAGAIN). The pager asks
//     again when it has nothing else to do.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>

namespace cuckoo {

class Pager {
 public:
  enum class What { kNew, kCollapse };

  Pager() = default;
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;
  ~Pager() { Stop(); }

  void Stop() {
    {
      const std::lock_guard hold(mutex_);
      stop_ = true;
    }
    wanted_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  // kNew: a huge page nobody has written to. kCollapse: small pages, half of them in use, to become a huge one.
  void Want(char* page, What what) {
    const std::lock_guard hold(mutex_);
    Add({page, what, 0});
    if (!thread_.joinable()) {
      try {
        thread_ = std::thread([this] { Run(); });
      } catch (const std::exception&) {
        count_ = 0;  // no thread is to be had
      }
    }
    wanted_.notify_one();
  }

 private:
  static constexpr size_t kMost = 512;  // wishes: 16 shards that are restored at once; further ones are dropped
  static constexpr size_t kPage = size_t{2} << 20;

  static constexpr auto kPause = std::chrono::milliseconds(10);
  static constexpr int kTimes = 100;

  struct Wish {
    char* page;
    What what;
    int times;  // asked so far
  };

  void Add(const Wish& wish) {
    if (count_ < kMost) wishes_[(first_ + count_++) % kMost] = wish;
  }

  void Run() {
    Wish again[kMost];
    size_t agains = 0;
    const auto ready = [this] { return stop_ || count_ > 0; };
    std::unique_lock hold(mutex_);
    for (;;) {
      if (agains == 0) {
        wanted_.wait(hold, ready);
      } else if (!wanted_.wait_until(hold, std::chrono::system_clock::now() + kPause, ready)) {
        while (agains > 0) Add(again[--agains]);
      }
      if (stop_) return;
      Wish wish = wishes_[first_++ % kMost];
      --count_;
      hold.unlock();
      if (!Take(wish) && ++wish.times < kTimes && agains < kMost) again[agains++] = wish;
      hold.lock();
    }
  }

  // False: another time, perhaps.
  static bool Take(const Wish& wish) {
    if (wish.what == What::kNew) {
      // A write that changes nothing, also while another thread writes there. (MADV_POPULATE_WRITE would keep the whole
      // process from mapping memory meanwhile.)
      asm volatile("lock; orb $0, %0" : "+m"(*wish.page));
      return true;
    }
#ifndef MADV_COLLAPSE
    constexpr int MADV_COLLAPSE = 25;  // Linux 6.1
#endif
    madvise(wish.page, kPage, MADV_HUGEPAGE);  // what the kernel's own thread goes by, where it is older
    return madvise(wish.page, kPage, MADV_COLLAPSE) == 0 || errno != EAGAIN;
  }

  std::mutex mutex_;
  std::condition_variable wanted_;
  Wish wishes_[kMost];
  size_t first_ = 0, count_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace cuckoo
