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
  size_t i = 0;
  for (; i + 8 <= n; i += 8) __builtin_memcpy(to + i, from + i, 8 * sizeof(float));
  for (; i + 4 <= n; i += 4) __builtin_memcpy(to + i, from + i, 4 * sizeof(float));
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

  struct Group {
    const Shard* shard[kGroup];
    const Bucket* bucket[kGroup];
    uint32_t version[kGroup];  // odd: not to be trusted
    uint32_t row[kGroup];
    uint32_t other[kGroup];  // choice b
    uint32_t absent[kGroup], absents;
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

 private:
  [[gnu::always_inline]] size_t Size(size_t g) const { return g * kGroup < n_ ? std::min(kGroup, n_ - g * kGroup) : 0; }

  [[gnu::always_inline]] void First(size_t g) {
    Group& group = groups_[g % 4];
    const size_t m = Size(g);
    for (size_t j = 0; j < m; ++j) {
      const uint64_t hash = Hash(key_(g * kGroup + j));
      const Shard& shard = shards_[shards_.Of(hash)];
      const uint32_t version = shard.lock.version();  // before all else that is read
      const Shape shape = shard.index.shape();
      group.shard[j] = &shard;
      group.version[j] = version | shape.stashed;
      group.other[j] = Index::ChoiceB(hash);
      group.bucket[j] = &shard.index.At(shape.Bucket(Index::ChoiceA(hash)));
      __builtin_prefetch(group.bucket[j]);
    }
  }
  [[gnu::always_inline]] void Second(size_t g) {
    Group& group = groups_[g % 4];
    const size_t m = Size(g);
    uint32_t here[kGroup];
    size_t absents = 0, heres = 0;
    for (size_t j = 0; j < m; ++j) {
      group.row[j] = group.bucket[j]->FindRow(key_(g * kGroup + j));
      const bool absent = group.row[j] == Slab::kNoRow;
      group.absent[absents] = here[heres] = static_cast<uint32_t>(j);
      absents += absent;
      heres += !absent;
    }
    for (size_t h = 0; h < heres; ++h) FetchRow(*group.shard[here[h]], group.row[here[h]]);
    for (size_t h = 0; h < absents; ++h) {
      const size_t j = group.absent[h];
      const Index& index = group.shard[j]->index;
      group.bucket[j] = &index.At(index.shape().Bucket(group.other[j]));
      __builtin_prefetch(group.bucket[j]);
    }
    group.absents = static_cast<uint32_t>(absents);
  }
  [[gnu::always_inline]] void Third(size_t g) {
    if (Size(g) == 0) return;
    Group& group = groups_[g % 4];
    for (size_t h = 0; h < group.absents; ++h) {
      const size_t j = group.absent[h];
      group.row[j] = group.bucket[j]->FindRow(key_(g * kGroup + j));
      if (group.row[j] != Slab::kNoRow) FetchRow(*group.shard[j], group.row[j]);
    }
  }
  [[gnu::always_inline]] void FetchRow(const Shard& shard, uint32_t row) const {
    const char* at = reinterpret_cast<const char*>(shard.slab.At(row));
    for (size_t byte = 0; byte < bytes_; byte += kLine) __builtin_prefetch(at + byte);
  }

  const Shards& shards_;
  const size_t n_, bytes_;
  const Key key_;
  Group groups_[4];
};

// Weights of keys without a lock. `rest`: the places of those whose shard was changed meanwhile, and of those that have
// no row where `misses` asks for them (they read as zeros where not).
CUCKOO_VERSIONS inline void Glance(const Shards& shards, const int64_t* keys, size_t n, size_t dim, float* weights,
                                   bool misses, std::vector<uint32_t>* rest) {
  rest->clear();
  rest->reserve(n);
  const auto key = [keys](size_t i) { return keys[i]; };
  using Fetcher = Ahead<decltype(key)>;
  Fetcher ahead(shards, n, dim * sizeof(float), key);
  for (size_t step = 0; step * Fetcher::kGroup < n + Fetcher::kGroups * Fetcher::kGroup; ++step) {
    ahead.Fetch(step);
    if (step < Fetcher::kGroups) continue;
    const size_t begin = (step - Fetcher::kGroups) * Fetcher::kGroup;
    const auto& group = ahead.At(step - Fetcher::kGroups);
    for (size_t j = 0; j < std::min(Fetcher::kGroup, n - begin); ++j) {
      float* to = weights + (begin + j) * dim;
      const Shard& shard = *group.shard[j];
      const bool absent = group.row[j] == Slab::kNoRow;
      if (absent) {
        std::memset(to, 0, dim * sizeof(float));
      } else {
        Copy(shard.slab.At(group.row[j]), to, dim);
      }
      if (!shard.lock.Stands(group.version[j]) || (misses && absent)) {
        rest->push_back(static_cast<uint32_t>(begin + j));
      }
    }
  }
}

// Calls f(shard, items, count, ahead) for runs of keys of one shard; f takes the lock, and calls ahead(m) before it
// uses item m. `which` chooses places of the batch; nullptr is all.
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
    size_t ends[257] = {};
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
          while (fetched <= (at + j) / Fetcher::kGroup + Fetcher::kGroups) fetch.Fetch(fetched++);
        });
        at += count;
      }
    }
  }
}

}  // namespace cuckoo
