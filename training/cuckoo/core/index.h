// The index of one shard: key -> (row, tick), by cuckoo hashing with two choices. No TensorFlow here.
//
//   Bucket, one cache line                                 a key lives in bucket a or bucket b, never in both
//   | key 0 | key 1 | key 2 | key 3 | row 0..3 | tick 0..3 |
//     8 B each: 32 B                  4 B each   4 B each
//
// Invariants
//   - A slot is empty if its row is Slab::kNoRow. Keys have no reserved value: every int64 is a key.
//   - A hit or a miss never touches the rows: one line, at most two.
//   - Insert() puts the key in. It moves others between their two buckets, breadth first, so by the shortest path. It
//     grows by as many buckets as keep the load at kLoad, and deals out at most 28 keys again for each (shape.h). No
//     step takes longer, and there is no second generation of memory.
//   - Bucket a is a key's home. There it puts out a guest, a key whose home is elsewhere. So 72 % are found in their
//     first line instead of 54 %; 82 % is possible.
//   - A key without a place at once waits in the stash, where Find looks too. The next Insert tries again, and grows if
//     the load is kFloor or more. Below that only keys that share both buckets have no place, and growth helps them
//     little.
//   - The two choices depend on a number that each index draws for itself. So nobody can craft keys that share their
//     buckets: ten of them would make it grow without end. Shard and admission are functions of the key alone, because
//     a delta carries them.
//   - If memory is short, Insert() throws std::bad_alloc and has changed no key.
//   - During a scan (Watch), the index records each key that changes its bucket.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "training/cuckoo/core/bucket.h"
#include "training/cuckoo/core/hash.h"
#include "training/cuckoo/core/shape.h"
#include "training/cuckoo/core/storage.h"

namespace cuckoo {

class Index {
 public:
  struct Choice {
    uint32_t a, b;
  };

  // Up to `most` bytes. `nodes`: how many buckets an insert looks at for an empty slot.
  Index(size_t most, Pager* pager, int nodes = kNodes, uint64_t secret = Secret())
      : range_(most, 0, pager),
        buckets_(reinterpret_cast<Bucket*>(range_.data())),
        nodes_(std::min(nodes, kNodes)),
        secret_(secret) {
    range_.Reserve(sizeof(Bucket));
    At(0).Clear();
  }

  Shape shape() const { return Shape::Unpack(shape_.load(std::memory_order_acquire)); }

  uint64_t secret() const { return secret_.load(std::memory_order_relaxed); }

  // The halves of a folded hash.
  static uint32_t ChoiceA(uint64_t folded) { return static_cast<uint32_t>(folded); }
  static uint32_t ChoiceB(uint64_t folded) { return static_cast<uint32_t>(folded >> 32); }
  Choice Choose(const Shape& shape, uint64_t hash) const {
    const uint64_t folded = Fold(hash, secret());
    return {shape.Bucket(ChoiceA(folded)), shape.Bucket(ChoiceB(folded))};
  }

  Bucket& At(uint32_t bucket) const { return buckets_[bucket]; }

  Place Find(int64_t key, uint64_t hash) const {
    const Shape now = shape();
    const uint64_t folded = Fold(hash, secret());
    for (const uint32_t choice : {ChoiceA(folded), ChoiceB(folded)}) {
      Bucket& bucket = At(now.Bucket(choice));
      const int slot = bucket.Find(key);
      if (slot >= 0) return {&bucket, slot};
    }
    return now.stashed ? FindStashed(key) : Place{};
  }
  // The same; `hint` is where the key was seen without the lock, or any other bucket.
  Place Find(int64_t key, Bucket* hint) const {
    const int slot = hint->Find(key);
    return slot >= 0 ? Place{hint, slot} : Find(key, Hash(key));
  }

  Place FindStashed(int64_t key) const {
    for (int i = 0; i < kStash; ++i) {
      const int slot = stash_[i].Find(key);
      if (slot >= 0) return {&stash_[i], slot};
    }
    return {};
  }

  // The key must not be there yet.
  void Insert(int64_t key, uint64_t hash, uint32_t row, uint32_t tick) {
    ReserveMoved();
    if (stashed_ > 0) Unstash();  // keys that left may have made room
    while (size_ >= Limit() || (stashed_ > 0 && Crowded())) Grow();
    ReserveMoved();
    Entry entry{key, row, tick};
    if (!Displace(&entry, hash)) Stash(entry);
    Publish(shape());
    ++size_;
  }

  void Erase(Place place) {
    place.bucket->Erase(place.slot);
    --size_;
    if (stash_ <= place.bucket && place.bucket < stash_ + kStash) {
      --stashed_;
      Publish(shape());
    }
  }

  // Calls f(Place) for each key of buckets [begin, end); a key f erases is gone.
  template <class F>
  void ForEach(uint32_t begin, uint32_t end, F f) const {
    for (uint32_t b = begin; b < end; ++b) ForEach(&At(b), f);
  }
  template <class F>
  void ForEachStashed(F f) const {
    if (stashed_ == 0) return;
    for (int i = 0; i < kStash; ++i) ForEach(&stash_[i], f);
  }

  // From now on keys that change their bucket are appended to `moved`; nullptr ends it.
  void Watch(std::vector<int64_t>* moved) const { moved_ = moved; }

  // For a file (file.h): an empty index becomes one of this shape and secret; then its keys come, each to where it was.
  void Restore(Shape shape, uint64_t secret) {
    ReserveStash();
    secret_.store(secret, std::memory_order_relaxed);
    range_.Reserve(shape.buckets() * sizeof(Bucket));
    for (uint32_t b = 0; b < shape.buckets(); ++b) At(b).Clear();
    Publish(shape);
  }
  void RestoreAt(uint32_t bucket, int slot, const Entry& entry) {
    At(bucket).Put(slot, entry);
    ++size_;
  }
  void RestoreStashed(const Entry& entry) {
    Stash(entry);
    Publish(shape());
    ++size_;
  }
  const Bucket* stash() const { return stash_; }
  static constexpr int kStash = 16;  // buckets: as many keys as the biggest index of one group

  uint32_t buckets() const { return shape().buckets(); }
  size_t size() const { return size_; }
  size_t capacity() const { return size_t{buckets()} * Bucket::kSlots; }
  size_t bytes() const { return buckets() * sizeof(Bucket) + (stash_ == nullptr ? 0 : kStash * sizeof(Bucket)); }

 private:
  static constexpr double kLoad = 0.935;  // an index of 17.1 bytes a key; an insert looks at 23 buckets (0.96: 40)
  static constexpr int kKicks = 8;
  static constexpr int kAhead = 10;
  static constexpr int kNodes = 512;
  static constexpr int kGroup = 7 * Bucket::kSlots;  // keys that one step of growth may move
  static constexpr double kFloor = 0.5;

  struct Node {
    uint32_t bucket;
    int16_t parent;  // -1: one of the new key's own buckets
    int16_t slot;    // in the parent's bucket: the key that would move here
  };

  template <class F>
  static void ForEach(Bucket* bucket, F f) {
    for (int i = 0; i < Bucket::kSlots; ++i) {
      if (bucket->row[i] != Slab::kNoRow) f(Place{bucket, i});
    }
  }

  size_t Limit() const {
    const size_t all = capacity();
    return all < 64 ? all : static_cast<size_t>(kLoad * all);
  }

  // Whether growth is the remedy for a stash that is not empty. A step of growth needs room in the stash, too.
  bool Crowded() const { return size_ >= kFloor * capacity() || stashed_ >= kStash; }

  void Publish(Shape shape) {
    shape.stashed = stashed_ > 0;
    shape_.store(shape.Pack(), std::memory_order_release);
  }

  void ReserveStash() {
    if (stash_ != nullptr) return;
    stash_block_ = Block(kStash * sizeof(Bucket));
    stash_ = static_cast<Bucket*>(stash_block_.data());
    for (int i = 0; i < kStash; ++i) stash_[i].Clear();
  }

  // One bucket more. The keys of its group that no longer belong where they are go through the stash to their places.
  void Grow() {
    const Shape old = shape(), grown = old.Next();
    if (grown.level > Shape::kMaxLevel || stashed_ > kStash * Bucket::kSlots - kGroup) throw std::bad_alloc();
    ReserveStash();
    range_.Reserve((size_t{old.buckets()} + 1) * sizeof(Bucket));
    ReserveMoved();
    At(old.buckets()).Clear();
    for (uint32_t i = 0; i < old.k; ++i) {  // the next groups' lines come while this one is dealt out
      __builtin_prefetch(&At(std::min(old.split + 4, old.groups() - 1) + (i << old.level)), 1);
    }
    Publish(grown);
    for (uint32_t i = 0; i < old.k; ++i) {
      const uint32_t here = old.split + (i << old.level);
      ForEach(&At(here), [&](Place p) {
        const Choice c = Choose(grown, Hash(p.key()));
        if (c.a == here || c.b == here) return;
        __builtin_prefetch(&At(c.a), 1);
        Stash(p.entry());
        p.bucket->Erase(p.slot);
      });
    }
    Unstash();
  }

  // Puts the stash's keys in their places, but for those that still have none.
  void Unstash() {
    for (int i = 0; i < kStash && stashed_ > 0; ++i) {
      ForEach(&stash_[i], [&](Place p) {
        Moved(p.key());
        Entry entry = p.entry();
        p.bucket->Erase(p.slot);
        --stashed_;
        if (!Displace(&entry, Hash(entry.key))) Stash(entry);
      });
    }
    Publish(shape());
  }

  void Stash(const Entry& entry) {
    int i = 0;
    while (stash_[i].FindEmpty() < 0) ++i;
    stash_[i].Put(stash_[i].FindEmpty(), entry);
    ++stashed_;
  }

  uint32_t Home(const Shape& shape, uint64_t hash) const { return shape.Bucket(ChoiceA(Fold(hash, secret()))); }

  // Puts the entry in; false: *entry, which may be another by now, is left over.
  bool Displace(Entry* entry, uint64_t hash) {
    const Shape now = shape();
    for (int kick = 0; kick < kKicks; ++kick) {
      const uint32_t a = Home(now, hash);
      Bucket& home = At(a);
      const int empty = home.FindEmpty();
      if (empty >= 0) {
        home.Put(empty, *entry);
        return true;
      }
      int guest = 0;
      while (guest < Bucket::kSlots && Home(now, Hash(home.key[guest])) == a) ++guest;
      if (guest == Bucket::kSlots) break;
      const Entry out = Place{&home, guest}.entry();
      hash = Hash(out.key);
      const Choice of_guest = Choose(now, hash);
      __builtin_prefetch(&At(of_guest.a), 1);
      __builtin_prefetch(&At(of_guest.b), 1);
      Moved(out.key);
      home.Put(guest, *entry);
      *entry = out;
    }
    // Breadth first: the path found is a shortest one, so it passes no bucket twice and no move undoes another. Node n
    // is what key (n - 2) % 4 of node (n - 2) / 4 would move to; it is fetched kAhead nodes before its turn.
    const Choice c = Choose(now, hash);
    Node nodes[kNodes + kAhead];
    nodes[0] = {c.a, -1, 0};
    nodes[1] = {c.b, -1, 0};
    int end = 2;
    for (int head = 0; head < nodes_; ++head) {
      const int empty = At(nodes[head].bucket).FindEmpty();
      if (empty >= 0) {
        Shift(nodes, head, empty).Put(*entry);
        return true;
      }
      for (; end < head + kAhead && (end - 2) / Bucket::kSlots <= head; ++end) {
        const int parent = (end - 2) / Bucket::kSlots, slot = (end - 2) % Bucket::kSlots;
        const uint32_t here = nodes[parent].bucket;
        const Choice other = Choose(now, Hash(At(here).key[slot]));
        const uint32_t to = other.a == here ? other.b : other.a;
        __builtin_prefetch(&At(to), 1);
        nodes[end] = {to, static_cast<int16_t>(parent), static_cast<int16_t>(slot)};
      }
    }
    return false;
  }

  struct Free {
    Bucket* bucket;
    int slot;
    void Put(const Entry& entry) { bucket->Put(slot, entry); }
  };

  // Moves the keys of the path from its end on; the slot it leaves empty is one of the new key's.
  Free Shift(const Node* nodes, int node, int slot) {
    Free free{&At(nodes[node].bucket), slot};
    while (nodes[node].parent >= 0) {
      Bucket& from = At(nodes[nodes[node].parent].bucket);
      slot = nodes[node].slot;
      Moved(from.key[slot]);
      free.Put(Place{&from, slot}.entry());
      free = {&from, slot};
      node = nodes[node].parent;
    }
    return free;
  }

  // Room to write down what one step moves, before it begins: in the midst of it there is no way back.
  void ReserveMoved() const {
    constexpr size_t kStep = 2048;  // growth: 92 keys at most, each with 8 guests and a path of some 10 others
    if (moved_ == nullptr || moved_->capacity() - moved_->size() >= kStep) return;
    moved_->reserve(std::max(2 * moved_->capacity(), moved_->size() + kStep));
  }
  void Moved(int64_t key) const {
    if (moved_ != nullptr) moved_->push_back(key);
  }

  Range range_;
  Bucket* const buckets_;
  std::atomic<uint64_t> shape_{Shape().Pack()};
  Block stash_block_;
  Bucket* stash_ = nullptr;
  int stashed_ = 0;
  size_t size_ = 0;
  mutable std::vector<int64_t>* moved_ = nullptr;
  const int nodes_;
  std::atomic<uint64_t> secret_;  // changes only when an empty index is restored
};

}  // namespace cuckoo
