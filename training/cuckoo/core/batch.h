// Deals a batch of keys to the shards. No TensorFlow here.
//
//   batch of keys --counting sort by shard--> runs of <= 256 keys of one shard --one lock a run--> f
//
//   Glance: the batch in its own order, without a lock; keys that it could not prove take the way above
//
// Invariants
//   - What Ahead reads is a hint: it is read again under the lock. Or Stands() has proved it.
//   - The order of a batch is kept within a shard, so equal keys are used in their order.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "training/cuckoo/core/optimizer.h"
#include "training/cuckoo/core/shard.h"

namespace cuckoo {

// Copies a row that may change meanwhile. The race is intended, and Stands() detects it.
__attribute__((no_sanitize("thread"))) inline void Copy(const float* from, float* to, size_t n) {
  using Eight = float __attribute__((vector_size(32), aligned(4), may_alias));
  size_t i = 0;
  for (; i + 8 <= n; i += 8) *reinterpret_cast<Eight*>(to + i) = *reinterpret_cast<const Eight*>(from + i);
  for (; i < n; ++i) to[i] = from[i];
}

struct Item {
  int64_t key;
  uint32_t i;  // place in the batch
};

// One of `count` parts of a batch, by shard. As many threads may call for all parts at once: together they do the
// batch, with the same result whatever the timing (a repeated key is in one part), and never wait for each other's
// locks.
struct Part {
  size_t index = 0, count = 1;
};

// Finds keys without a lock, a round of them at a time, in passes over the round:
//
//   hash: shard, bucket a, bucket b       bucket a: is the key there?       bucket b, of those that were not in a
//
// and then the caller's own pass, over the rows. A pass has no branch on what it finds. It asks for the lines of 16
// keys at once and then uses those of the 16 before: a core can wait for as many lines as its window holds instructions
// that ask for one, so nothing else comes between them (docs/table.md).
class Ahead {
 public:
  static constexpr size_t kRound = 512;  // keys from one look at the shards to the next: some 20 us
  static constexpr size_t kGroup = 16;   // keys: about as many as a core's miss buffers hold lines

  explicit Ahead(const Shards& shards) : shards_(shards) {}

  // Takes the `n` <= kRound keys that lie `stride` bytes apart from `keys` on.
  CUCKOO_VERSIONS void See(const int64_t* keys, size_t stride, size_t n) {
    const auto key = [=](size_t j) CUCKOO_INLINE {
      return *reinterpret_cast<const int64_t*>(reinterpret_cast<const char*>(keys) + j * stride);
    };
    for (size_t s = 0; s < shards_.size(); ++s) Look(shards_[s], &views_[s]);
    for (size_t j = 0; j < n; ++j) {
      const uint64_t hash = Hash(key(j));
      const View& view = views_[shards_.Of(hash)];
      const uint64_t folded = Fold(hash, view.secret);
      view_[j] = &view;
      choice_[j] = Index::ChoiceB(folded);
      bucket_[j] = view.Of(Index::ChoiceA(folded));
    }
    absents_ = 0;
    InGroups(
        n, [&](size_t j) CUCKOO_INLINE { __builtin_prefetch(bucket_[j]); },
        [&](size_t j) CUCKOO_INLINE {
          const uint32_t row = bucket_[j]->FindRow(key(j));
          const bool absent = row == Slab::kNoRow;
          row_[j] = view_[j]->Row(row + absent);  // row 0 instead of none: without a branch
          absent_[absents_] = static_cast<uint16_t>(j);
          absents_ += absent;
        });
    const size_t guests = absents_;
    for (size_t h = 0; h < guests; ++h) {
      const size_t j = absent_[h];
      bucket_[j] = view_[j]->Of(choice_[j]);
    }
    absents_ = 0;
    InGroups(
        guests, [&](size_t h) CUCKOO_INLINE { __builtin_prefetch(bucket_[absent_[h]]); },
        [&](size_t h) CUCKOO_INLINE {
          const uint16_t j = absent_[h];
          const uint32_t row = bucket_[j]->FindRow(key(j));
          const bool absent = row == Slab::kNoRow;
          row_[j] = absent ? nullptr : view_[j]->Row(row);
          absent_[absents_] = j;
          absents_ += absent;
        });
  }

  Bucket* bucket(size_t j) const { return bucket_[j]; }  // where key j is, or its bucket b
  const float* row(size_t j) const { return row_[j]; }   // nullptr: it has none
  size_t absents() const { return absents_; }            // keys that have no row,
  size_t absent(size_t h) const { return absent_[h]; }   // in their order

  // Asks for `bytes` of row j.
  [[gnu::always_inline]] void Fetch(size_t j, size_t bytes) const {
    const char* row = reinterpret_cast<const char*>(row_[j]);
    for (size_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(row + byte);
  }

  // True if shard s is, and if all are, as they were when they were read.
  bool Stands(size_t s) const { return shards_[s].lock.Stands(views_[s].version); }
  bool Stands() const {
    bool all = true;
    for (size_t s = 0; s < shards_.size(); ++s) all &= Stands(s);
    return all;
  }

  // first(j) for a group of j < n, then(j) for the group before, and so on.
  template <class First, class Then>
  [[gnu::always_inline]] static void InGroups(size_t n, First first, Then then) {
    for (size_t j = 0; j < std::min(n, kGroup); ++j) first(j);
    for (size_t begin = 0; begin < n; begin += kGroup) {
      const size_t end = std::min(n, begin + kGroup);
      for (size_t j = end; j < std::min(n, end + kGroup); ++j) first(j);
      for (size_t j = begin; j < end; ++j) then(j);
    }
  }

 private:
  // The values of a shard that each key needs, as they were at one moment, side by side.
  struct alignas(kLine) View {
    Bucket* buckets;
    const char* rows;
    size_t stride;  // bytes
    uint64_t secret;
    Shape shape;
    uint32_t version;  // odd: not to be trusted

    [[gnu::always_inline]] Bucket* Of(uint32_t choice) const { return buckets + shape.Bucket(choice); }
    [[gnu::always_inline]] const float* Row(uint32_t row) const {
      return reinterpret_cast<const float*>(rows + row * stride);
    }
  };

  static void Look(const Shard& shard, View* view) {
    const uint32_t version = shard.lock.version();  // before all else that is read
    const Shape shape = shard.index.shape();
    *view = {&shard.index.At(0),
             reinterpret_cast<const char*>(shard.slab.At(0)),
             shard.slab.stride_bytes(),
             shard.index.secret(),
             shape,
             version | shape.stashed};
  }

  const Shards& shards_;
  size_t absents_ = 0;
  Bucket* bucket_[kRound];
  const float* row_[kRound];
  const View* view_[kRound];
  uint32_t choice_[kRound];
  uint16_t absent_[kRound];
  View views_[Shards::kMost];
};

// Reads the weights of keys without a lock. `rest` gets the places of keys whose shard changed meanwhile. With `misses`
// it also gets those of keys without a row, which otherwise read zeros. `rest` is in the batch's order.
CUCKOO_VERSIONS inline void Glance(const Shards& shards, const int64_t* keys, size_t n, size_t dim, float* weights,
                                   bool misses, std::vector<uint32_t>* rest) {
  rest->clear();
  rest->reserve(2 * n);
  Ahead ahead(shards);
  for (size_t begin = 0; begin < n; begin += Ahead::kRound) {
    const size_t m = std::min(Ahead::kRound, n - begin), sure = rest->size();
    float* const out = weights + begin * dim;
    ahead.See(keys + begin, sizeof *keys, m);
    const auto copy = [&](auto known) CUCKOO_INLINE {  // a usual dimension: fewer instructions between the lines
      const size_t width = known == 0 ? dim : known;
      Ahead::InGroups(
          m, [&](size_t j) CUCKOO_INLINE { ahead.Fetch(j, width * sizeof(float)); },
          [&](size_t j) CUCKOO_INLINE {
            const float* row = ahead.row(j);
            if (row == nullptr) {
              std::memset(out + j * width, 0, width * sizeof(float));
            } else {
              Copy(row, out + j * width, width);
            }
          });
    };
    if (dim == 16) {
      copy(std::integral_constant<size_t, 16>());
    } else if (dim == 32) {
      copy(std::integral_constant<size_t, 32>());
    } else {
      copy(std::integral_constant<size_t, 0>());
    }
    for (size_t h = 0; misses && h < ahead.absents(); ++h) {
      rest->push_back(static_cast<uint32_t>(begin + ahead.absent(h)));
    }
    if (ahead.Stands()) continue;
    for (size_t i = begin; i < begin + m; ++i) {
      if (!ahead.Stands(shards.Of(Hash(keys[i])))) rest->push_back(static_cast<uint32_t>(i));
    }
    std::sort(rest->begin() + sure, rest->end());
    rest->erase(std::unique(rest->begin() + sure, rest->end()), rest->end());
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
  if (n == 0) return;
  const size_t first = shards.size() * part.index / part.count, last = shards.size() * (part.index + 1) / part.count;
  items.resize(std::min(n, kBatch));
  of.resize(items.size());
  Ahead seen(shards);
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
    size_t round = 0, end = 0;                        // the items that are seen
    const auto fetch = [&](size_t j) CUCKOO_INLINE {  // inline: called, it takes a fifth of apply's time
      for (size_t k = j; k < std::min(j + Ahead::kGroup, end - round); ++k) seen.Fetch(k, bytes);
    };
    for (size_t s = first, at = 0; s < last; ++s) {
      while (at < ends[s]) {
        if (at == end) {
          round = at, end = std::min(at + Ahead::kRound, mine);
          seen.See(&items[round].key, sizeof(Item), end - round);
          fetch(0);
        }
        const size_t count = std::min({kRun, ends[s] - at, end - at});
        f(shards[s], &items[at], count, [&](size_t m) {
          const size_t j = at + m - round;
          if (j % Ahead::kGroup == 0) fetch(j + Ahead::kGroup);
          return seen.bucket(j);
        });
        at += count;
      }
    }
  }
}

}  // namespace cuckoo
