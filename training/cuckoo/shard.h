// A shard: one lock, one index, one slab; and a batch dealt to shards. No TensorFlow here.
//
//   batch of keys --counting sort by shard--> runs of <= 256 keys of one shard --one lock a run--> f
//
//   Glance: the batch in its own order, no lock; what it could not prove is left to the other way
//
// Invariants
//   - What Ahead sees is a hint, or what Stands() has proved: it is read again under the lock, or checked.
//   - A batch's order within a shard is kept, so equal keys are used in the order given.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "training/cuckoo/admission.h"
#include "training/cuckoo/index.h"
#include "training/cuckoo/lock.h"
#include "training/cuckoo/optimizer.h"
#include "training/cuckoo/storage.h"

namespace cuckoo {

// Copies a row that may change meanwhile: the race is meant, and Stands() judges it.
__attribute__((no_sanitize("thread"))) inline void Copy(const float* from, float* to, size_t n) {
  using Eight = float __attribute__((vector_size(32), aligned(4), may_alias));
  size_t i = 0;
  for (; i + 8 <= n; i += 8) *reinterpret_cast<Eight*>(to + i) = *reinterpret_cast<const Eight*>(from + i);
  for (; i < n; ++i) to[i] = from[i];
}

struct alignas(kLine) Shard {
  // Shard `s` of `shards`: the rows of each turn to a new page of memory at their own time.
  Shard(size_t row_floats, const AdmissionConfig& config, size_t s, size_t shards, Pager* pager)
      : index(SpaceOf(shards), pager),
        slab(row_floats, SpaceOf(shards), kHugePage * s / shards, pager),
        admission(config, shards) {}

  // A new row, for the caller to fill; the shard is held. Throws std::bad_alloc and has changed nothing.
  float* Insert(int64_t key, uint64_t hash, uint32_t tick) {
    const uint32_t row = slab.New();
    try {
      index.Insert(key, hash, row, tick);
    } catch (...) {
      slab.Free(row);
      throw;
    }
    return slab.At(row);
  }

  // The shard is held. The place is no more.
  void Erase(Place place) {
    slab.Free(place.row());
    index.Erase(place);
  }

  // The shard is held. Its memory stays, for other rows.
  void Clear() {
    const auto erase = [this](Place place) { Erase(place); };
    index.ForEach(0, index.buckets(), erase);
    index.ForEachStashed(erase);
  }

  // Calls f(Place) for each key of the shard, a piece at a time under Hold, and between() after each, with no lock. The
  // keys that changed their bucket meanwhile, sorted, are in `moved`: f may have seen them or not, once or twice.
  template <class Hold, class F, class Between>
  void Scan(std::vector<int64_t>* moved, F f, Between between) const {
    constexpr uint32_t kBuckets = 1024;  // of a piece: some 10 us
    const std::lock_guard one(scanning);
    struct Watch {
      explicit Watch(const Shard& shard, std::vector<int64_t>* moved) : shard(shard) {
        const std::shared_lock hold(shard.lock);
        shard.index.Watch(moved);
      }
      ~Watch() {
        const std::shared_lock hold(shard.lock);
        shard.index.Watch(nullptr);
      }
      const Shard& shard;
    };
    moved->clear();
    {
      const Watch watch(*this, moved);
      for (uint32_t begin = 0, end = 1; begin < end; between()) {
        const Hold hold(lock);
        end = index.buckets();
        const uint32_t next = std::min(begin + kBuckets, end);
        index.ForEach(begin, next, f);
        if (next == end) index.ForEachStashed(f);
        begin = next;
      }
    }
    std::sort(moved->begin(), moved->end());
    moved->erase(std::unique(moved->begin(), moved->end()), moved->end());
  }

  // Calls f(Place) for those keys that are there, a few at a time under Hold, and between() after each.
  template <class Hold, class F, class Between>
  void Visit(const std::vector<int64_t>& keys, F f, Between between) const {
    constexpr size_t kKeys = 256;
    for (size_t begin = 0; begin < keys.size(); begin += kKeys) {
      {
        const Hold hold(lock);
        for (size_t k = begin; k < std::min(begin + kKeys, keys.size()); ++k) {
          if (const Place place = index.Find(keys[k], Hash(keys[k]))) f(place);
        }
      }
      between();
    }
  }

  mutable Lock lock;
  Index index;
  Slab slab;
  Admission admission;
  mutable std::mutex scanning;  // one scan at a time: the index writes down moves for one
};

// All shards of a table, side by side.
class Shards {
 public:
  static constexpr size_t kMost = 256;

  Shards(size_t row_floats, const AdmissionConfig& config, size_t n)
      : block_(n * sizeof(Shard)), shift_(63 - (std::bit_width(n) - 1)) {
    for (; size_ < n; ++size_) new (&(*this)[size_]) Shard(row_floats, config, size_, n, &pager_);
  }
  Shards(const Shards&) = delete;
  Shards& operator=(const Shards&) = delete;
  ~Shards() {
    pager_.Stop();  // before the memory goes
    while (size_ > 0) (*this)[--size_].~Shard();
  }

  Shard& operator[](size_t s) const { return static_cast<Shard*>(block_.data())[s]; }
  size_t size() const { return size_; }
  size_t Of(uint64_t hash) const { return hash >> 1 >> shift_; }  // in two steps: one shard shifts by 64

 private:
  Pager pager_;
  const Block block_;
  const int shift_;
  size_t size_ = 0;
};

struct Item {
  int64_t key;
  uint32_t i;  // place in the batch
};

// One of `count` parts of a batch, by shard: the calls for all parts, made at once by as many threads, are the batch's,
// with the same result whatever the timing (a key given twice is one part's), and never wait for each other's locks.
struct Part {
  size_t index = 0, count = 1;
};

// Fetches what keys will need, group by group: group g + 3: bucket a | g + 2: bucket b, row | g + 1: row | g: used.
template <class Key>
class Ahead {
 public:
  static constexpr size_t kGroup = 16;  // lines in flight: about what a core's miss buffers hold
  static constexpr size_t kGroups = 3;  // so many groups ahead of use
  static constexpr size_t kRound = 16;  // groups from one look at the shards to the next: some 10 us

  // What is asked of a shard for each key, as it was at one moment, side by side.
  struct alignas(kLine) View {
    Bucket* buckets;
    const char* rows;
    size_t stride;  // bytes
    Shape shape;
    uint32_t version;  // odd: not to be trusted

    [[gnu::always_inline]] Bucket* Of(uint32_t choice) const { return buckets + shape.Bucket(choice); }
    [[gnu::always_inline]] const float* Row(uint32_t row) const {
      return reinterpret_cast<const float*>(rows + row * stride);
    }
  };
  struct Group {
    const View* view[kGroup];
    Bucket* bucket[kGroup];            // where the key is, or bucket b
    const float* row[kGroup];          // nullptr: it has none
    uint32_t absent[kGroup], absents;  // keys that are not in bucket a; at last, that have no row
  };

  // `key(i)` for i < n; `bytes` of each row will be used.
  Ahead(const Shards& shards, size_t n, size_t bytes, Key key) : shards_(shards), n_(n), bytes_(bytes), key_(key) {}

  // To be called for g = 0, 1, ...: then group g - kGroups is there.
  [[gnu::always_inline]] void Fetch(size_t g) {
    First(g);
    if (g >= 1) Second(g - 1);
    if (g >= 2) Third(g - 2);
  }
  const Group& At(size_t g) const { return groups_[g % 4]; }
  [[gnu::always_inline]] size_t Size(size_t g) const { return g * kGroup < n_ ? std::min(kGroup, n_ - g * kGroup) : 0; }

  // Whether shard s is as it was for group g.
  bool Stands(size_t g, size_t s) const { return shards_[s].lock.Stands(ViewsOf(g)[s].version); }
  bool Stands(size_t g) const {
    bool all = true;
    for (size_t s = 0; s < shards_.size(); ++s) all &= Stands(g, s);
    return all;
  }

 private:
  const View* ViewsOf(size_t g) const { return views_[g / kRound % 2]; }

  void Look(View* views) const {
    for (size_t s = 0; s < shards_.size(); ++s) {
      const Shard& shard = shards_[s];
      const uint32_t version = shard.lock.version();  // before all else that is read
      const Shape shape = shard.index.shape();
      views[s] = {&shard.index.At(0), reinterpret_cast<const char*>(shard.slab.At(0)), shard.slab.stride_bytes(), shape,
                  version | shape.stashed};
    }
  }
  [[gnu::always_inline]] void First(size_t g) {
    Group& group = groups_[g % 4];
    const size_t m = Size(g);
    if (g % kRound == 0 && m > 0) Look(views_[g / kRound % 2]);
    const View* views = ViewsOf(g);
    for (size_t j = 0; j < m; ++j) {
      const uint64_t hash = Hash(key_(g * kGroup + j));
      group.view[j] = &views[shards_.Of(hash)];
      group.bucket[j] = group.view[j]->Of(Index::ChoiceA(hash));
      __builtin_prefetch(group.bucket[j]);
    }
  }
  [[gnu::always_inline]] void Second(size_t g) {
    Group& group = groups_[g % 4];
    const size_t m = Size(g);
    size_t absents = 0;
    for (size_t j = 0; j < m; ++j) {
      const uint32_t row = group.bucket[j]->FindRow(key_(g * kGroup + j));
      const bool absent = row == Slab::kNoRow;
      group.row[j] = Fetched(group.view[j]->Row(row + absent));  // row 0 instead of none: without a branch
      group.absent[absents] = static_cast<uint32_t>(j);
      absents += absent;
    }
    for (size_t h = 0; h < absents; ++h) {
      const size_t j = group.absent[h];
      group.bucket[j] = group.view[j]->Of(Index::ChoiceB(Hash(key_(g * kGroup + j))));
      __builtin_prefetch(group.bucket[j]);
    }
    group.absents = static_cast<uint32_t>(absents);
  }
  [[gnu::always_inline]] void Third(size_t g) {
    if (Size(g) == 0) return;
    Group& group = groups_[g % 4];
    uint32_t absents = 0;
    for (size_t h = 0; h < group.absents; ++h) {
      const uint32_t j = group.absent[h], row = group.bucket[j]->FindRow(key_(g * kGroup + j));
      if (row == Slab::kNoRow) {
        group.row[j] = nullptr;
        group.absent[absents++] = j;
      } else {
        group.row[j] = Fetched(group.view[j]->Row(row));
      }
    }
    group.absents = absents;
  }
  [[gnu::always_inline]] const float* Fetched(const float* row) const {
    size_t byte = 0;
    do {
      __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
    } while ((byte += kLine) < bytes_);
    return row;
  }

  const Shards& shards_;
  const size_t n_, bytes_;
  const Key key_;
  Group groups_[4];
  View views_[2][Shards::kMost];
};

// Weights of keys without a lock. `rest`: the places of those whose shard was changed meanwhile, and of those that have
// no row where `misses` asks for them (they read as zeros where not); in the batch's order.
CUCKOO_VERSIONS inline void Glance(const Shards& shards, const int64_t* keys, size_t n, size_t dim, float* weights,
                                   bool misses, std::vector<uint32_t>* rest) {
  rest->clear();
  rest->reserve(2 * n);
  const auto key = [keys](size_t i) { return keys[i]; };
  using Fetcher = Ahead<decltype(key)>;
  Fetcher ahead(shards, n, dim * sizeof(float), key);
  size_t round = 0, sure = 0;  // where this round begins, in the batch and in `rest`
  for (size_t step = 0; step * Fetcher::kGroup < n + Fetcher::kGroups * Fetcher::kGroup; ++step) {
    ahead.Fetch(step);
    if (step < Fetcher::kGroups) continue;
    const size_t g = step - Fetcher::kGroups, begin = g * Fetcher::kGroup, end = begin + ahead.Size(g);
    const auto& group = ahead.At(g);
    for (size_t i = begin; i < end; ++i) {
      const float* row = group.row[i - begin];
      if (row == nullptr) {
        std::memset(weights + i * dim, 0, dim * sizeof(float));
      } else {
        Copy(row, weights + i * dim, dim);
      }
    }
    for (size_t a = 0; misses && a < group.absents; ++a)
      rest->push_back(static_cast<uint32_t>(begin + group.absent[a]));
    if (end < n && (g + 1) % Fetcher::kRound != 0) continue;
    if (!ahead.Stands(g)) {
      for (size_t i = round; i < end; ++i) {
        if (!ahead.Stands(g, shards.Of(Hash(keys[i])))) rest->push_back(static_cast<uint32_t>(i));
      }
      std::sort(rest->begin() + sure, rest->end());
      rest->erase(std::unique(rest->begin() + sure, rest->end()), rest->end());
    }
    round = end, sure = rest->size();
  }
}

// Calls f(shard, items, count, ahead) for runs of keys of one shard; f takes the lock, and calls ahead(m) before it
// uses item m: the bucket where its key was seen. `which` chooses places of the batch; nullptr is all.
template <class F>
void ForEachRun(const Shards& shards, const int64_t* keys, const uint32_t* which, size_t n, size_t bytes, Part part,
                F f) {
  constexpr size_t kRun = 256;        // keys a lock is held for: how long others wait
  constexpr size_t kBatch = 1 << 14;  // bounds the scratch of a call
  thread_local std::vector<Item> items;
  thread_local std::vector<uint8_t> of;
  const size_t first = shards.size() * part.index / part.count, last = shards.size() * (part.index + 1) / part.count;
  items.resize(std::min(n, kBatch));
  of.resize(items.size());
  for (size_t begin = 0; begin < n; begin += kBatch) {
    const size_t m = std::min(n - begin, kBatch);
    const auto place = [&](size_t j) { return which == nullptr ? static_cast<uint32_t>(begin + j) : which[begin + j]; };
    size_t ends[Shards::kMost + 1] = {};
    for (size_t j = 0; j < m; ++j) {
      of[j] = static_cast<uint8_t>(shards.Of(Hash(keys[place(j)])));
      ++ends[of[j] + 1];
    }
    for (size_t s = 0; s <= first; ++s) ends[s] = 0;
    for (size_t s = first; s < last; ++s) ends[s + 1] += ends[s];
    const size_t mine = ends[last];
    for (size_t j = 0; j < m; ++j) {  // leaves in ends[s] where shard s ends
      if (of[j] - first < last - first) items[ends[of[j]]++] = {keys[place(j)], place(j)};
    }
    const Item* sorted = items.data();
    const auto key = [sorted](size_t j) { return sorted[j].key; };
    using Fetcher = Ahead<decltype(key)>;
    Fetcher fetch(shards, mine, bytes, key);
    size_t fetched = 0;
    for (size_t s = first, at = 0; s < last; ++s) {
      while (at < ends[s]) {
        const size_t count = std::min(kRun, ends[s] - at);
        f(shards[s], &items[at], count, [&](size_t j) {
          const size_t g = (at + j) / Fetcher::kGroup;
          while (fetched <= g + Fetcher::kGroups) fetch.Fetch(fetched++);
          return fetch.At(g).bucket[(at + j) % Fetcher::kGroup];
        });
        at += count;
      }
    }
  }
}

}  // namespace cuckoo
