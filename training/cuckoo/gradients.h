// What `apply` makes of a batch: a repeated id's gradients summed, numbers that are none found. No TensorFlow here.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "training/cuckoo/index.h"
#include "training/cuckoo/optimizer.h"

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

// Each key once, with the sum of its gradients in the order of the batch. A batch without repeats is not copied.
class Gradients {
 public:
  Gradients(const int64_t* keys, size_t n, const float* values, size_t dim)
      : keys_(keys), n_(n), values_(values), dim_(dim) {
    thread_local std::vector<uint32_t> first;  // open addressing: place of the key among the unique ones, + 1
    const size_t mask = std::bit_ceil(2 * n + 1) - 1;
    first.assign(mask + 1, 0);
    for (size_t i = 0; i < n; ++i) {
      size_t at = Hash(keys[i]) & mask;
      while (first[at] != 0 && keys_[first[at] - 1] != keys[i]) at = (at + 1) & mask;
      if (first[at] != 0) {
        if (keys_ == keys) Own(keys, i, n);
        const float* from = values + i * dim;
        float* to = &own_values_[(first[at] - 1) * dim];
        for (size_t j = 0; j < dim; ++j) to[j] += from[j];
      } else if (keys_ == keys) {
        first[at] = i + 1;
      } else {
        own_keys_[n_] = keys[i];
        std::memcpy(&own_values_[n_ * dim], values + i * dim, dim * sizeof(float));
        first[at] = ++n_;
      }
    }
  }
  Gradients(const Gradients&) = delete;
  Gradients& operator=(const Gradients&) = delete;

  const int64_t* keys() const { return keys_; }
  size_t size() const { return n_; }
  const float* values() const { return values_; }

  bool finite() const { return Finite(values_, n_ * dim_); }

  // Numbers that are not finite become 0.
  void ZeroNonfinite() {
    if (own_values_.empty()) own_values_.assign(values_, values_ + n_ * dim_);
    for (float& value : own_values_) value = Finite(&value, 1) ? value : 0;
    values_ = own_values_.data();
  }

 private:
  // The first repeat is key `i`: those before it are unique.
  void Own(const int64_t* keys, size_t i, size_t n) {
    own_keys_.resize(n);
    own_values_.resize(n * dim_);
    std::memcpy(own_keys_.data(), keys, i * sizeof(int64_t));
    std::memcpy(own_values_.data(), values_, i * dim_ * sizeof(float));
    keys_ = own_keys_.data();
    values_ = own_values_.data();
    n_ = i;
  }

  const int64_t* keys_;
  size_t n_;
  const float* values_;
  const size_t dim_;
  std::vector<int64_t> own_keys_;
  std::vector<float> own_values_;
};

}  // namespace cuckoo
