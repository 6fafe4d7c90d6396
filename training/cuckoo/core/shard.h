// A shard (one lock, one index, one slab), and all shards of a table. No TensorFlow here.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "training/cuckoo/core/admission.h"
#include "training/cuckoo/core/index.h"
#include "training/cuckoo/core/lock.h"
#include "training/cuckoo/core/storage.h"

namespace cuckoo {

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

}  // namespace cuckoo
