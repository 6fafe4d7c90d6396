// A bucket of the index: four keys with their rows and ticks, in one cache line.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "training/cuckoo/core/storage.h"

namespace cuckoo {

struct Entry {
  int64_t key;
  uint32_t row, tick;
};

// What a glance reads is read and written as atomics (plain moves, here), a row number after what it leads to.
struct alignas(kLine) Bucket {
  static constexpr int kSlots = 4;
  int64_t key[kSlots];
  uint32_t row[kSlots];
  uint32_t tick[kSlots];

  uint32_t Row(int i) const { return __atomic_load_n(&row[i], __ATOMIC_ACQUIRE); }

  // Both finds are without a branch, which would often be mispredicted. At most one slot has the key and a row.
  [[gnu::always_inline]] uint32_t FindRow(int64_t k) const {
#ifdef __SANITIZE_THREAD__  // what follows reads the same, 4 numbers at a time
    uint32_t found = Slab::kNoRow;
    for (int i = 0; i < kSlots; ++i) {
      found = std::min(found, __atomic_load_n(&key[i], __ATOMIC_RELAXED) == k ? Row(i) : Slab::kNoRow);
    }
    return found;
#else
    Four rows = Rows() | ~Same(k);
    rows &= __builtin_shuffle(rows, Four{2, 3, 0, 1});
    rows &= __builtin_shuffle(rows, Four{1, 0, 3, 2});
    return rows[0];
#endif
  }
  // For who holds the shard.
  [[gnu::always_inline]] int Find(int64_t k) const {
    const auto found = Same(k) & (Rows() != Slab::kNoRow);
    const int slots = _mm_movemask_ps(reinterpret_cast<__m128>(found));
    return slots == 0 ? -1 : std::countr_zero(static_cast<unsigned>(slots));
  }
  int FindEmpty() const {
    for (int i = 0; i < kSlots; ++i) {
      if (row[i] == Slab::kNoRow) return i;
    }
    return -1;
  }
  void Put(int i, const Entry& entry) {
    __atomic_store_n(&key[i], entry.key, __ATOMIC_RELAXED);
    __atomic_store_n(&row[i], entry.row, __ATOMIC_RELEASE);
    tick[i] = entry.tick;
  }
  void Erase(int i) { __atomic_store_n(&row[i], Slab::kNoRow, __ATOMIC_RELAXED); }
  void Clear() {
    for (int i = 0; i < kSlots; ++i) Put(i, {0, Slab::kNoRow, 0});
  }

 private:
  using Four = uint32_t __attribute__((vector_size(16), aligned(16), may_alias));

  [[gnu::always_inline]] Four Rows() const { return *reinterpret_cast<const volatile Four*>(row); }
  // All ones where the slot's key is k.
  [[gnu::always_inline]] Four Same(int64_t k) const {
    using Keys = int64_t __attribute__((vector_size(32), aligned(32), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const volatile Keys*>(key) == k, Four);
  }
};
static_assert(sizeof(Bucket) == kLine);

// Where a key is: valid until the next Insert.
struct Place {
  Bucket* bucket = nullptr;
  int slot = 0;

  explicit operator bool() const { return bucket != nullptr; }
  int64_t key() const { return bucket->key[slot]; }
  uint32_t row() const { return bucket->row[slot]; }
  uint32_t& tick() const { return bucket->tick[slot]; }
  Entry entry() const { return {key(), row(), tick()}; }
};

}  // namespace cuckoo
