// The collisionless embedding table: int64 key -> row of weights and optimizer slots. No TensorFlow here.
//
//   batch of keys --counting sort by shard--> runs of <= 256 keys --one lock a run--> groups of 16, prefetched
//
//   Table ── Shard 0 ── Lock | Index (buckets of key, row, tick) | Slab (rows: weights, slots)
//         ── Shard 1 ── ...         `---- row number ----------------^
//
// Invariants
//   - Every call may be made from any number of threads. A row is read and written whole; a batch is not one step.
//   - A lock is held for at most 256 keys (growth and the scans of KeysSince and Evict: for one shard's index).
//   - tick of a row <= tick of the table, which never falls. A row is stamped when it is inserted or applied to.
//   - SetTick(t + 1), then KeysSince(s <= t): a change is either seen by this scan or stamped t + 1, never lost between
//     two deltas. (The stamp is read under the shard's lock, the scan takes the lock after the clock has moved.)
//   - On std::bad_alloc the keys before it are done, the others not; the table is whole.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "training/cuckoo/admission.h"
#include "training/cuckoo/index.h"
#include "training/cuckoo/lock.h"
#include "training/cuckoo/row.h"
#include "training/cuckoo/storage.h"

namespace cuckoo {

struct Config {
  Layout layout;       // what a row holds
  size_t shards = 64;  // a power of two, at most kMaxShards
  AdmissionConfig admission;

  bool operator==(const Config&) const = default;
};

struct Stats {
  size_t size, capacity, bytes;
};

// One of `count` parts of a batch, by shard: the calls for all parts, made at once by as many threads, are the batch's,
// with the same result whatever the timing (a key given twice is one part's), and never wait for each other's locks.
struct Part {
  size_t index = 0, count = 1;
};

class Table {
 public:
  static constexpr size_t kMaxShards = 256;

  explicit Table(const Config& config) : config_(config), shift_(64 - std::bit_width(config.shards - 1)) {
    for (size_t s = 0; s < config.shards; ++s) {
      shards_.push_back(std::make_unique<Shard>(config, static_cast<double>(s) / config.shards, layout().floats()));
    }
  }

  const Config& config() const { return config_; }
  const Layout& layout() const { return config_.layout; }

  uint32_t tick() const { return tick_.load(); }

  // Moves the clock on; a tick before the present one changes nothing and returns false.
  bool SetTick(uint32_t tick) {
    uint32_t now = tick_.load();
    while (now < tick && !tick_.compare_exchange_weak(now, tick)) {
    }
    return now <= tick;
  }

  // Weights of each key; zeros where there is none.
  void Find(const int64_t* keys, size_t n, float* weights) const {
    ForEachRun(keys, n, [&](const Shard& shard, const Item* items, size_t count) {
      std::shared_lock hold(shard.lock);
      ForEachPlace(shard, keys, items, count, layout().dim(), [&](size_t i, Place place) {
        CopyOrZero(place ? shard.slab.At(place.row()) : nullptr, weights + i * layout().dim(), layout().dim());
      });
    });
  }

  // Weights of each key; a new one that is admitted is inserted, initialised by its key and stamped; zeros of one that
  // is not. Key i is seen `sights[i]` times, once where there are no sights.
  void Lookup(const int64_t* keys, size_t n, float* weights, const int64_t* sights = nullptr) {
    ForEachRun(keys, n, [&](Shard& shard, const Item* items, size_t count) {
      Item missing[kRun];
      size_t misses = 0;
      {
        std::shared_lock hold(shard.lock);
        size_t at = 0;
        ForEachPlace(shard, keys, items, count, layout().dim(), [&](size_t i, Place place) {
          if (place) {
            std::memcpy(weights + i * layout().dim(), shard.slab.At(place.row()), layout().dim() * sizeof(float));
          } else {
            missing[misses++] = items[at];
          }
          ++at;
        });
      }
      if (misses == 0) return;
      std::unique_lock hold(shard.lock);
      for (size_t m = 0; m < misses; ++m) {
        const auto [hash, i] = missing[m];
        const Place place = shard.index.Find(keys[i], hash);  // the batch may hold it twice, another thread was faster
        const float* row =
            place ? shard.slab.At(place.row()) : Admit(shard, keys[i], hash, sights == nullptr ? 1 : sights[i]);
        CopyOrZero(row, weights + i * layout().dim(), layout().dim());
      }
    });
  }

  // Calls f(float* row, size_t i) for each key i that has a row (weights, then slots), and stamps it; the row is f's
  // alone. A key without a row is passed over: it was removed, or never admitted. Returns how many rows there were.
  // A key given twice is called twice, in the batch's order. f must not call the table.
  template <class F>
  size_t Update(const int64_t* keys, size_t n, F f, Part part = {}) {
    size_t updated = 0;
    ForEachRun(
        keys, n,
        [&](Shard& shard, const Item* items, size_t count) {
          std::unique_lock hold(shard.lock);
          const uint32_t now = tick();
          ForEachPlace(shard, keys, items, count, layout().floats(), [&](size_t i, Place place) {
            if (!place) return;
            f(shard.slab.At(place.row()), i);
            place.tick() = now;
            ++updated;
          });
        },
        part);
    return updated;
  }

  // Sets whole rows, inserting where needed; of a key given twice the last one stands. The clock follows the ticks.
  void Import(const int64_t* keys, size_t n, const float* weights, const float* slots, const uint32_t* ticks) {
    ForEachRun(keys, n, [&](Shard& shard, const Item* items, size_t count) {
      std::unique_lock hold(shard.lock);
      const auto set = [&](float* row, size_t i) {
        std::memcpy(row, weights + i * layout().dim(), layout().dim() * sizeof(float));
        std::memcpy(row + layout().dim(), slots + i * layout().slot_floats(), layout().slot_floats() * sizeof(float));
      };
      Item missing[kRun];
      size_t misses = 0, at = 0;
      ForEachPlace(shard, keys, items, count, layout().floats(), [&](size_t i, Place place) {
        SetTick(ticks[i]);
        if (place) {
          place.tick() = ticks[i];
          set(shard.slab.At(place.row()), i);
        } else {
          missing[misses++] = items[at];
        }
        ++at;
      });
      for (size_t m = 0; m < misses; ++m) {
        const auto [hash, i] = missing[m];
        const Place place = shard.index.Find(keys[i], hash);  // the batch may hold it twice
        if (place) place.tick() = ticks[i];
        set(place ? shard.slab.At(place.row()) : Insert(shard, keys[i], hash, ticks[i]), i);
      }
    });
  }

  // Keys of rows with a tick after `tick`; of all rows if it is 0.
  std::vector<int64_t> KeysSince(uint32_t tick) const {
    std::vector<int64_t> keys;
    for (const auto& shard : shards_) {
      std::shared_lock hold(shard->lock);
      shard->index.ForEach([&](Place place) {
        if (tick == 0 || place.tick() > tick) keys.push_back(place.bucket->key[place.slot]);
        return true;
      });
    }
    return keys;
  }

  // Whole rows. `found[i]` says whether key i has one; where not, the others are left as they are. Returns how many.
  size_t Read(const int64_t* keys, size_t n, float* weights, float* slots, uint32_t* ticks, bool* found) const {
    size_t total = 0;
    ForEachRun(keys, n, [&](const Shard& shard, const Item* items, size_t count) {
      std::shared_lock hold(shard.lock);
      ForEachPlace(shard, keys, items, count, layout().floats(), [&](size_t i, Place place) {
        found[i] = static_cast<bool>(place);
        if (!place) return;
        const float* row = shard.slab.At(place.row());
        std::memcpy(weights + i * layout().dim(), row, layout().dim() * sizeof(float));
        std::memcpy(slots + i * layout().slot_floats(), row + layout().dim(), layout().slot_floats() * sizeof(float));
        ticks[i] = place.tick();
        ++total;
      });
    });
    return total;
  }

  // Takes rows out; their memory is used again. `removed[i]` says whether key i had one.
  size_t Remove(const int64_t* keys, size_t n, bool* removed) {
    size_t total = 0;
    ForEachRun(keys, n, [&](Shard& shard, const Item* items, size_t count) {
      std::unique_lock hold(shard.lock);
      for (size_t m = 0; m < count; ++m) {
        const auto [hash, i] = items[m];
        const Place place = shard.index.Find(keys[i], hash);
        removed[i] = static_cast<bool>(place);
        if (!place) continue;
        shard.slab.Free(place.row());
        shard.index.Erase(place);
        ++total;
      }
    });
    return total;
  }

  // Takes out the rows with a stamp <= `tick` and appends their keys. A row stamped meanwhile stays or goes whole.
  size_t Evict(uint32_t tick, std::vector<int64_t>* keys) {
    const size_t before = keys->size();
    for (auto& shard : shards_) {
      std::unique_lock hold(shard->lock);
      shard->index.ForEach([&](Place place) {
        if (place.tick() > tick) return true;
        keys->push_back(place.bucket->key[place.slot]);  // first: it may throw
        shard->slab.Free(place.row());
        shard->index.Erase(place);
        return true;
      });
    }
    return keys->size() - before;
  }

  // Calls f(admission, number of the shard) for each shard, which is held.
  template <class F>
  void ForEachAdmission(F f) {
    for (size_t s = 0; s < shards_.size(); ++s) {
      std::unique_lock hold(shards_[s]->lock);
      f(shards_[s]->admission, s);
    }
  }

  Stats stats() const {
    Stats stats{0, 0, sizeof(Table) + shards_.size() * sizeof(Shard)};
    for (const auto& shard : shards_) {
      std::shared_lock hold(shard->lock);
      stats.size += shard->index.size();
      stats.capacity += shard->index.capacity();
      stats.bytes += shard->index.bytes() + shard->slab.bytes() + shard->admission.bytes();
    }
    return stats;
  }

 private:
  static constexpr size_t kRun = 256;        // keys a lock is held for: the readers' tail
  static constexpr size_t kGroup = 16;       // lines in flight: about what a core's miss buffers hold
  static constexpr size_t kBatch = 1 << 16;  // bounds the scratch of a call

  struct Shard {
    Shard(const Config& config, double stagger, size_t row_floats)
        : index(stagger), slab(row_floats), admission(config.admission, config.shards) {}
    mutable Lock lock;
    Index index;
    Slab slab;
    Admission admission;
  };

  struct Item {
    uint64_t hash;
    size_t i;  // place in the batch
  };

  size_t ShardOf(uint64_t hash) const { return shift_ == 64 ? 0 : hash >> shift_; }

  static void CopyOrZero(const float* from, float* to, size_t n) {
    if (from != nullptr) {
      std::memcpy(to, from, n * sizeof(float));
    } else {
      std::memset(to, 0, n * sizeof(float));
    }
  }

  // Calls f(shard, items, count) for runs of keys of one shard, in the batch's order within a shard.
  template <class F>
  void ForEachRun(const int64_t* keys, size_t n, F f, Part part = {}) const {
    const size_t first = shards_.size() * part.index / part.count;
    const size_t last = shards_.size() * (part.index + 1) / part.count;
    thread_local std::vector<Item> items;
    for (size_t begin = 0; begin < n; begin += kBatch) {
      const size_t end = std::min(n, begin + kBatch);
      size_t ends[kMaxShards + 1] = {};
      for (size_t i = begin; i < end; ++i) ++ends[ShardOf(Hash(keys[i])) + 1];
      for (size_t s = 0; s < shards_.size(); ++s) ends[s + 1] += ends[s];
      items.resize(end - begin);
      for (size_t i = begin; i < end; ++i) {
        const uint64_t hash = Hash(keys[i]);
        items[ends[ShardOf(hash)]++] = {hash, i};  // leaves in ends[s] where shard s ends
      }
      for (size_t s = first, at = first == 0 ? 0 : ends[first - 1]; s < last; ++s) {
        for (; at < ends[s]; at += std::min(kRun, ends[s] - at))
          f(*shards_[s], &items[at], std::min(kRun, ends[s] - at));
      }
    }
  }

  // Calls f(i, place) for each item in order. Bucket a, bucket b and the row are each fetched a group ahead of use.
  // f must not insert: it would move places.
  template <class F>
  void ForEachPlace(const Shard& shard, const int64_t* keys, const Item* items, size_t count, size_t row_floats,
                    F f) const {
    Index::Choice choices[kGroup];
    Place places[kGroup];
    for (size_t begin = 0; begin < count; begin += kGroup) {
      const size_t m = std::min(kGroup, count - begin);
      for (size_t j = 0; j < m; ++j) {
        choices[j] = shard.index.Choose(items[begin + j].hash);
        __builtin_prefetch(&shard.index.At(choices[j].a));
      }
      for (size_t j = 0; j < m; ++j) {
        Bucket& bucket = shard.index.At(choices[j].a);
        const int slot = bucket.Find(keys[items[begin + j].i]);
        places[j] = slot >= 0 ? Place{&bucket, slot} : Place{};
        if (slot >= 0) {
          PrefetchRow(shard, places[j].row(), row_floats);
        } else {
          __builtin_prefetch(&shard.index.At(choices[j].b));
        }
      }
      for (size_t j = 0; j < m; ++j) {
        if (places[j]) continue;
        Bucket& bucket = shard.index.At(choices[j].b);
        const int slot = bucket.Find(keys[items[begin + j].i]);
        if (slot < 0) continue;
        places[j] = {&bucket, slot};
        PrefetchRow(shard, places[j].row(), row_floats);
      }
      for (size_t j = 0; j < m; ++j) f(items[begin + j].i, places[j]);
    }
  }

  static void PrefetchRow(const Shard& shard, uint32_t row, size_t floats) {
    const char* at = reinterpret_cast<const char*>(shard.slab.At(row));
    for (size_t byte = 0; byte < floats * sizeof(float); byte += kLine) __builtin_prefetch(at + byte);
  }

  // A new row that begins as its key says, nullptr if the key is not admitted; the shard is held.
  float* Admit(Shard& shard, int64_t key, uint64_t hash, uint64_t sights) {
    if (!shard.admission.Admit(hash, sights, tick())) return nullptr;
    float* row = Insert(shard, key, hash, tick());
    layout().Begin(key, row);
    return row;
  }

  // A new row, for the caller to fill; the shard is held. Throws std::bad_alloc and has changed nothing.
  float* Insert(Shard& shard, int64_t key, uint64_t hash, uint32_t tick) {
    const uint32_t row = shard.slab.New();
    try {
      while (!shard.index.Insert(key, hash, row, tick)) shard.index.Grow();
    } catch (...) {
      shard.slab.Free(row);
      throw;
    }
    return shard.slab.At(row);
  }

  const Config config_;
  const int shift_;
  std::atomic<uint32_t> tick_{1};
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace cuckoo
