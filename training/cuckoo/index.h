// The index of one shard: key -> (row, tick), by cuckoo hashing with two choices. No TensorFlow here.
//
//   Bucket, one cache line                                 a key lives in bucket a or bucket b, never in both
//   | key 0 | key 1 | key 2 | key 3 | row 0..3 | tick 0..3 |
//     8 B each: 32 B                  4 B each   4 B each
//
// Invariants
//   - A slot is empty if its row is Slab::kNoRow. Keys have no reserved value: every int64 is a key.
//   - A hit or a miss never touches the rows: one line, at most two.
//   - Insert() puts the key in, moving others between their two buckets (breadth first, so by the shortest path),
//     or returns false and has changed nothing. Grow() rebuilds, or throws std::bad_alloc and has changed nothing.
//   - The bucket count is any number (fastrange): growth is by a quarter, not by two.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "training/cuckoo/storage.h"

namespace cuckoo {

// splitmix64's finalizer: a bijection, so that two keys never share a whole hash.
inline uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// Top bits choose the shard; the low half and the high half of a product choose the two buckets.
inline uint64_t Hash(int64_t key) { return Mix(static_cast<uint64_t>(key) + kGolden); }

struct alignas(kLine) Bucket {
  static constexpr int kSlots = 4;
  int64_t key[kSlots];
  uint32_t row[kSlots];
  uint32_t tick[kSlots];

  int Find(int64_t k) const {
    for (int i = 0; i < kSlots; ++i) {
      if (key[i] == k && row[i] != Slab::kNoRow) return i;
    }
    return -1;
  }
  int FindEmpty() const {
    for (int i = 0; i < kSlots; ++i) {
      if (row[i] == Slab::kNoRow) return i;
    }
    return -1;
  }
  void Put(int i, int64_t k, uint32_t r, uint32_t t) {
    key[i] = k;
    row[i] = r;
    tick[i] = t;
  }
};
static_assert(sizeof(Bucket) == kLine);

// Where a key is: valid until the next Insert or Grow.
struct Place {
  Bucket* bucket = nullptr;
  int slot = 0;

  explicit operator bool() const { return bucket != nullptr; }
  uint32_t row() const { return bucket->row[slot]; }
  uint32_t& tick() const { return bucket->tick[slot]; }
};

class Index {
 public:
  struct Choice {
    uint32_t a, b;
  };

  // `stagger` in [0, 1): where between two steps of growth this index stands, so that shards do not grow together.
  explicit Index(double stagger) : stagger_(stagger), block_(sizeof(Bucket)), buckets_(1) { Clear(block_, 1); }

  Choice Choose(uint64_t hash) const {
    const uint32_t a = ((hash & 0xffffffff) * buckets_) >> 32;
    const uint32_t b = (((hash * kGolden) >> 32) * buckets_) >> 32;
    if (a != b) return {a, b};
    return {a, a + 1 < buckets_ ? a + 1 : 0};
  }
  Bucket& At(uint32_t bucket) const { return static_cast<Bucket*>(block_.data())[bucket]; }

  Place Find(int64_t key, uint64_t hash) const {
    const Choice c = Choose(hash);
    for (const uint32_t bucket : {c.a, c.b}) {
      const int slot = At(bucket).Find(key);
      if (slot >= 0) return {&At(bucket), slot};
    }
    return {};
  }

  // The key must not be there yet.
  bool Insert(int64_t key, uint64_t hash, uint32_t row, uint32_t tick) {
    if (size_ >= Limit() || !Displace(key, hash, row, tick)) return false;
    ++size_;
    return true;
  }

  void Erase(Place place) {
    place.bucket->row[place.slot] = Slab::kNoRow;
    --size_;
  }

  void Grow() {
    uint64_t buckets = Next(buckets_);
    for (;; buckets = Next(buckets)) {
      if (buckets > kMaxBuckets) throw std::bad_alloc();
      Index grown(stagger_, buckets);
      if (!ForEach([&](Place p) {
            const int64_t key = p.bucket->key[p.slot];
            return grown.Displace(key, Hash(key), p.row(), p.tick());
          })) {
        continue;
      }
      std::swap(block_, grown.block_);
      buckets_ = grown.buckets_;
      return;
    }
  }

  // Calls f(Place) for each key until one call returns false; returns whether none did.
  template <class F>
  bool ForEach(F f) const {
    for (uint32_t b = 0; b < buckets_; ++b) {
      for (int i = 0; i < Bucket::kSlots; ++i) {
        if (At(b).row[i] != Slab::kNoRow && !f(Place{&At(b), i})) return false;
      }
    }
    return true;
  }

  size_t size() const { return size_; }
  size_t capacity() const { return size_t{buckets_} * Bucket::kSlots; }
  size_t bytes() const { return buckets_ * sizeof(Bucket); }

 private:
  static constexpr double kLoad = 0.96;  // 4 slots and 512 nodes reach it without a failed insert
  static constexpr double kGrowth = 1.25;
  static constexpr int kNodes = 512;
  static constexpr uint64_t kMaxBuckets = uint64_t{1} << 30;  // 2^32 rows

  struct Node {
    uint32_t bucket;
    int16_t parent;  // -1: one of the new key's own buckets
    int16_t slot;    // in the parent's bucket: the key that would move here
  };

  Index(double stagger, uint64_t buckets)
      : stagger_(stagger), block_(buckets * sizeof(Bucket)), buckets_(static_cast<uint32_t>(buckets)) {
    Clear(block_, buckets);
  }

  static void Clear(const Block& block, size_t buckets) { std::memset(block.data(), 0xff, buckets * sizeof(Bucket)); }

  size_t Limit() const { return buckets_ < 16 ? capacity() : static_cast<size_t>(kLoad * capacity()); }

  // 1, 2, 4, 8, then 8 * 1.25^(k + stagger).
  uint64_t Next(uint64_t buckets) const {
    if (buckets < 8) return buckets * 2;
    const double step = buckets == 8 ? 1 + (kGrowth - 1) * (1 + stagger_) : kGrowth;
    return static_cast<uint64_t>(buckets * step) + 1;
  }

  bool Displace(int64_t key, uint64_t hash, uint32_t row, uint32_t tick) {
    const Choice c = Choose(hash);
    for (const uint32_t bucket : {c.a, c.b}) {
      const int slot = At(bucket).FindEmpty();
      if (slot >= 0) {
        At(bucket).Put(slot, key, row, tick);
        return true;
      }
    }
    // Breadth first: the path found is a shortest one, so it passes no bucket twice and no move undoes another.
    Node nodes[kNodes];
    nodes[0] = {c.a, -1, 0};
    nodes[1] = {c.b, -1, 0};
    int end = 2;
    for (int head = 0; head < end; ++head) {
      const Bucket& from = At(nodes[head].bucket);
      for (int i = 0; i < Bucket::kSlots; ++i) {
        const Choice other = Choose(Hash(from.key[i]));
        const uint32_t to = other.a == nodes[head].bucket ? other.b : other.a;
        const int slot = At(to).FindEmpty();
        if (slot >= 0) {
          MoveAlong(nodes, head, i, to, slot).Put(key, row, tick);
          return true;
        }
        if (end < kNodes) {
          nodes[end++] = {to, static_cast<int16_t>(head), static_cast<int16_t>(i)};
        }
      }
    }
    return false;
  }

  struct Free {
    Bucket* bucket;
    int slot;
    void Put(int64_t key, uint32_t row, uint32_t tick) { bucket->Put(slot, key, row, tick); }
  };

  // Moves the keys of the path from its end on; the slot it leaves empty is one of the new key's.
  Free MoveAlong(const Node* nodes, int node, int slot, uint32_t to, int to_slot) {
    Free free{&At(to), to_slot};
    while (true) {
      Bucket& from = At(nodes[node].bucket);
      free.Put(from.key[slot], from.row[slot], from.tick[slot]);
      free = {&from, slot};
      if (nodes[node].parent < 0) return free;
      slot = nodes[node].slot;
      node = nodes[node].parent;
    }
  }

  double stagger_;
  Block block_;
  uint32_t buckets_;
  size_t size_ = 0;
};

}  // namespace cuckoo
