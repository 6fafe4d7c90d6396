// Prepares a batch for `apply`: sums the gradients of a repeated id, finds NaN and Inf. No TensorFlow here.
//
//   batch --by hash--> part 0: its keys, each once | a gradient each: in the batch, or a sum of its own
//                      part 1: ...                   (a part a thread: they meet in a shard at their borders only)
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "training/cuckoo/core/hash.h"
#include "training/cuckoo/core/optimizer.h"
#include "training/cuckoo/core/table.h"

namespace cuckoo {

// Whether all numbers are finite.
CUCKOO_VERSIONS inline bool Finite(const float* x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000) == 0x7f800000;
  }
  return bad == 0;
}

// One part of a batch: each of its keys once, with the sum of its gradients in the order of the batch.
class Gradients {
 public:
  Gradients(const int64_t* keys, size_t n, const float* values, size_t dim, size_t part = 0, size_t parts = 1)
      : dim_(dim) {
    keys_.reserve(n / parts + n / 16);
    rows_.reserve(n / parts + n / 16);
    thread_local std::vector<uint32_t> first;      // open addressing: place of the key among keys_, + 1
    const size_t mask = std::bit_ceil(2 * n) - 1;  // all keys may be of one part
    static const uint64_t secret = Secret();       // and of one place, if somebody knew how to craft them
    first.assign(mask + 1, 0);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t hash = Hash(keys[i]);
      if (parts > 1 && ((hash >> 32) * parts) >> 32 != part) continue;
      size_t at = Fold(hash, secret) & mask;
      while (first[at] != 0 && keys_[first[at] - 1] != keys[i]) at = (at + 1) & mask;
      const float* row = values + i * dim;
      if (first[at] == 0) {
        keys_.push_back(keys[i]);
        rows_.push_back(row);
        first[at] = static_cast<uint32_t>(keys_.size());
        continue;
      }
      float* sum = Own(first[at] - 1, n);
      for (size_t j = 0; j < dim; ++j) sum[j] += row[j];
    }
  }

  const int64_t* keys() const { return keys_.data(); }
  size_t size() const { return keys_.size(); }
  const float* operator[](size_t i) const { return rows_[i]; }

  bool finite() const {
    for (const float* row : rows_) {
      if (!Finite(row, dim_)) return false;
    }
    return true;
  }

  // Numbers that are not finite become 0.
  void ZeroNonfinite() {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (Finite(rows_[i], dim_)) continue;
      float* row = Own(i, rows_.size());
      for (size_t j = 0; j < dim_; ++j) row[j] = Finite(row + j, 1) ? row[j] : 0;
    }
  }

 private:
  // A copy of row i that may be written. At most `most` rows are ever asked for: pointers stay.
  float* Own(size_t i, size_t most) {
    if (own_.capacity() == 0) own_.reserve(most * dim_);
    if (own_.empty() || rows_[i] < own_.data() || rows_[i] >= own_.data() + own_.size()) {
      own_.insert(own_.end(), rows_[i], rows_[i] + dim_);
      rows_[i] = own_.data() + own_.size() - dim_;
    }
    return own_.data() + (rows_[i] - own_.data());
  }

  size_t dim_;
  std::vector<int64_t> keys_;
  std::vector<const float*> rows_;
  std::vector<float> own_;
};

// What Table::Update calls: the step of rows.
struct GradientStep {
  const Layout& layout;
  const Gradients& gradients;
  const float* rates;

  void operator()(float* const* rows, const uint32_t* places, size_t n) const {
    const float* of[Table::kTogether];
    for (size_t r = 0; r < n; ++r) of[r] = gradients[places[r]];
    layout.Step({rows, of, n}, rates);
  }
};

}  // namespace cuckoo
