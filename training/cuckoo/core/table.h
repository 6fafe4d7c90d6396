// The embedding table without collisions: int64 key -> row of weights and optimizer slots. No TensorFlow here.
//
//   Table ── Shard 0 ── Lock | Index (buckets of key, row, tick) | Slab (rows: weights, slots) | Admission
//         ── Shard 1 ── ...         `---- row number ----------------^
//
//   Find, and Lookup of keys that are there: in the batch's order, without a lock (lock.h, glance)
//   all other calls, and keys that a glance could not prove: dealt to shards, a lock for at most 256 keys (batch.h)
//
// Invariants
//   - Every call may be made from any number of threads. A row is read and written whole; a batch is not one step.
//   - A lock is held for at most 256 keys, or for a piece of a scan (KeysSince, Evict).
//   - tick of a row <= tick of the table, which never falls. A row is stamped when it is inserted or applied to.
//   - SetTick(t + 1), then KeysSince(s <= t): a change is either seen by this scan or stamped t + 1, never lost between
//     two deltas. (The stamp is read under the shard's lock, the scan takes the lock after the clock has moved.)
//   - A scan sees each key that is there from its beginning to its end, once. The index records a key that changes its
//     bucket between two pieces, and the scan looks it up at the end.
//   - On std::bad_alloc the keys before it are done and the others are not. The table is whole.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "training/cuckoo/core/batch.h"
#include "training/cuckoo/core/row.h"

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

class Table {
 public:
  static constexpr size_t kMaxShards = Shards::kMost;
  static constexpr size_t kTogether = 16;  // rows of one call of Update's: those that were fetched meanwhile

  explicit Table(const Config& config)
      : config_(config), shards_(config.layout.floats(), config.admission, config.shards) {}

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
    std::vector<uint32_t>& rest = Rest();
    for (size_t begin = 0; begin < n; begin += kGlance) {
      const int64_t* these = keys + begin;
      float* out = weights + begin * dim();
      Glance(shards_, these, std::min(kGlance, n - begin), dim(), out, false, &rest);
      ForEachRun(shards_, these, rest.data(), rest.size(), WeightBytes(), {},
                 [&](const Shard& shard, const Item* items, size_t count, auto ahead) {
                   std::shared_lock hold(shard.lock);
                   for (size_t m = 0; m < count; ++m) {
                     const Place place = shard.index.Find(items[m].key, ahead(m));
                     CopyOrZero(place ? shard.slab.At(place.row()) : nullptr, out + items[m].i * dim());
                   }
                 });
    }
  }

  // Weights of each key; a new one that is admitted is inserted, initialised by its key and stamped; zeros of one that
  // is not. Key i is seen `sights[i]` times, once where there are no sights.
  void Lookup(const int64_t* keys, size_t n, float* weights, const int64_t* sights = nullptr) {
    std::vector<uint32_t>& rest = Rest();
    for (size_t begin = 0; begin < n; begin += kGlance) {
      const int64_t* these = keys + begin;
      float* out = weights + begin * dim();
      Glance(shards_, these, std::min(kGlance, n - begin), dim(), out, true, &rest);
      ForEachRun(shards_, these, rest.data(), rest.size(), WeightBytes(), {},
                 [&](Shard& shard, const Item* items, size_t count, auto ahead) {
                   std::unique_lock hold(shard.lock);
                   for (size_t m = 0; m < count; ++m) {
                     const auto [key, i] = items[m];
                     const uint64_t hash = Hash(key);
                     const Place place = shard.index.Find(key, ahead(m));  // the batch may hold it twice
                     CopyOrZero(place ? shard.slab.At(place.row())
                                      : Admit(shard, key, hash, sights == nullptr ? 1 : sights[begin + i]),
                                out + i * dim());
                   }
                 });
    }
  }

  // Calls f(float* const* rows, const uint32_t* places, size_t n) with the rows (weights, then slots) of up to
  // kTogether keys, and their places in the batch; stamps them. The rows are f's alone. A key without a row is passed
  // over: it was removed, or never admitted. Returns how many rows there were. A key given twice is there twice, in the
  // batch's order. f must not call the table.
  template <class F>
  size_t Update(const int64_t* keys, size_t n, F f, Part part = {}) {
    size_t updated = 0;
    ForEachRun(shards_, keys, nullptr, n, RowBytes(), part,
               [&](Shard& shard, const Item* items, size_t count, auto ahead) {
                 float* rows[kTogether];
                 uint32_t places[kTogether];
                 size_t held = 0;
                 std::unique_lock hold(shard.lock);
                 const uint32_t now = tick();
                 for (size_t m = 0; m < count; ++m) {
                   if (const Place place = shard.index.Find(items[m].key, ahead(m))) {
                     rows[held] = shard.slab.At(place.row());
                     places[held++] = items[m].i;
                     place.tick() = now;
                   }
                   if (held < kTogether && m + 1 < count) continue;
                   f(rows, places, held);
                   updated += std::exchange(held, 0);
                 }
               });
    return updated;
  }

  // Sets whole rows, inserting where needed; of a key given twice the last one stands. The clock follows the ticks.
  void Import(const int64_t* keys, size_t n, const float* weights, const float* slots, const uint32_t* ticks,
              Part part = {}) {
    ForEachRun(shards_, keys, nullptr, n, RowBytes(), part,
               [&](Shard& shard, const Item* items, size_t count, auto ahead) {
                 std::unique_lock hold(shard.lock);
                 for (size_t m = 0; m < count; ++m) {
                   const auto [key, i] = items[m];
                   const uint64_t hash = Hash(key);
                   SetTick(ticks[i]);
                   const Place place = shard.index.Find(key, ahead(m));
                   if (place) place.tick() = ticks[i];
                   float* row = place ? shard.slab.At(place.row()) : shard.Insert(key, hash, ticks[i]);
                   std::memcpy(row, weights + i * dim(), WeightBytes());
                   std::memcpy(row + dim(), slots + i * layout().slot_floats(), SlotBytes());
                 }
               });
  }

  // Keys of rows with a tick after `tick`; of all rows if it is 0.
  std::vector<int64_t> KeysSince(uint32_t tick) const {
    std::vector<int64_t> keys, found, moved;
    const auto add = [&](Place place) {
      if (tick == 0 || place.tick() > tick) found.push_back(place.key());
    };
    for (size_t s = 0; s < shards_.size(); ++s) {
      const Shard& shard = shards_[s];
      const size_t begin = keys.size();
      const auto collect = [&] {
        keys.insert(keys.end(), found.begin(), found.end());
        found.clear();
      };
      shard.Scan<std::shared_lock<Lock>>(&moved, add, collect);
      if (moved.empty()) continue;
      const auto is_moved = [&](int64_t key) { return std::binary_search(moved.begin(), moved.end(), key); };
      keys.erase(std::remove_if(keys.begin() + begin, keys.end(), is_moved), keys.end());
      shard.Visit<std::shared_lock<Lock>>(moved, add, collect);
    }
    return keys;
  }

  // Takes out the rows with a stamp <= `tick` and appends their keys. A row stamped meanwhile stays or goes whole.
  size_t Evict(uint32_t tick, std::vector<int64_t>* keys) {
    const size_t before = keys->size();
    std::vector<int64_t> moved;
    for (size_t s = 0; s < shards_.size(); ++s) {
      Shard& shard = shards_[s];
      const auto evict = [&](Place place) {
        if (place.tick() > tick) return;
        keys->push_back(place.key());  // first: it may throw
        shard.Erase(place);
      };
      shard.Scan<std::unique_lock<Lock>>(&moved, evict, [] {});
      shard.Visit<std::unique_lock<Lock>>(moved, evict, [] {});
    }
    return keys->size() - before;
  }

  // Whole rows. `found[i]` says whether key i has one; where not, the others are left as they are. Returns how many.
  size_t Read(const int64_t* keys, size_t n, float* weights, float* slots, uint32_t* ticks, bool* found) const {
    size_t total = 0;
    ForEachRun(shards_, keys, nullptr, n, RowBytes(), {},
               [&](const Shard& shard, const Item* items, size_t count, auto ahead) {
                 std::shared_lock hold(shard.lock);
                 for (size_t m = 0; m < count; ++m) {
                   const size_t i = items[m].i;
                   const Place place = shard.index.Find(items[m].key, ahead(m));
                   found[i] = static_cast<bool>(place);
                   if (!place) continue;
                   const float* row = shard.slab.At(place.row());
                   std::memcpy(weights + i * dim(), row, WeightBytes());
                   std::memcpy(slots + i * layout().slot_floats(), row + dim(), SlotBytes());
                   ticks[i] = place.tick();
                   ++total;
                 }
               });
    return total;
  }

  // Takes rows out; their memory is used again. `removed[i]` says whether key i had one.
  size_t Remove(const int64_t* keys, size_t n, bool* removed) {
    size_t total = 0;
    ForEachRun(shards_, keys, nullptr, n, kLine, {}, [&](Shard& shard, const Item* items, size_t count, auto ahead) {
      std::unique_lock hold(shard.lock);
      for (size_t m = 0; m < count; ++m) {
        const Place place = shard.index.Find(items[m].key, ahead(m));
        removed[items[m].i] = static_cast<bool>(place);
        if (!place) continue;
        shard.Erase(place);
        ++total;
      }
    });
    return total;
  }

  // Calls f(AdmissionLine&, place) for each line of the admission filters, in one order; the shard is held.
  template <class F>
  void ForEachAdmissionLine(F f) {
    size_t place = 0;
    for (size_t s = 0; s < shards_.size(); ++s) {
      Shard& shard = shards_[s];
      for (size_t i = 0; i < shard.admission.lines();) {
        std::unique_lock hold(shard.lock);
        const size_t end = std::min(i + kLinesHeld, shard.admission.lines());
        for (; i < end; ++i) f(shard.admission.At(i), place++);
      }
    }
  }

  Shard& shard(size_t s) const { return shards_[s]; }
  size_t ShardOf(uint64_t hash) const { return shards_.Of(hash); }

  Stats stats() const {
    Stats stats{0, 0, sizeof(Table) + shards_.size() * sizeof(Shard)};
    for (size_t s = 0; s < shards_.size(); ++s) {
      const Shard& shard = shards_[s];
      std::shared_lock hold(shard.lock);
      stats.size += shard.index.size();
      stats.capacity += shard.index.capacity();
      stats.bytes += shard.index.bytes() + shard.slab.bytes() + shard.admission.bytes();
    }
    return stats;
  }

 private:
  static constexpr size_t kGlance = 1 << 14;  // bounds what is left to the locked way at a time
  static constexpr size_t kLinesHeld = 1024;  // 64 KB

  size_t dim() const { return layout().dim(); }
  size_t WeightBytes() const { return dim() * sizeof(float); }
  size_t SlotBytes() const { return layout().slot_floats() * sizeof(float); }
  size_t RowBytes() const { return WeightBytes() + SlotBytes(); }

  static std::vector<uint32_t>& Rest() {
    thread_local std::vector<uint32_t> rest;
    return rest;
  }

  void CopyOrZero(const float* from, float* to) const {
    if (from != nullptr) {
      std::memcpy(to, from, WeightBytes());
    } else {
      std::memset(to, 0, WeightBytes());
    }
  }

  // A new row that begins as its key says, nullptr if the key is not admitted; the shard is held.
  float* Admit(Shard& shard, int64_t key, uint64_t hash, uint64_t sights) {
    if (!shard.admission.Admit(hash, sights, tick())) return nullptr;
    float* row = shard.Insert(key, hash, tick());
    layout().Begin(key, row);
    return row;
  }

  const Config config_;
  std::atomic<uint32_t> tick_{1};
  Shards shards_;
};

}  // namespace cuckoo
