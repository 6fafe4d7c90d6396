// Initializes a row's weights. No TensorFlow here.
//
// Invariant: a weight's first value is a function of (seed, key, column) alone. It does not depend on order, shard,
// thread or machine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "training/cuckoo/core/hash.h"

namespace cuckoo {

enum class Kind { kZeros, kConstant, kUniform, kNormal };

struct Initializer {
  Kind kind = Kind::kZeros;
  float scale = 0;  // constant: the value; uniform: in [-scale, scale); normal: standard deviation

  bool operator==(const Initializer&) const = default;

  // What a key's columns draw from.
  static uint64_t State(uint64_t seed, int64_t key) { return Mix((static_cast<uint64_t>(key) + kGolden) ^ Mix(seed)); }

  // u(key, i) = (Mix(State + (i + 1) * golden) >> 11) * 2^-53, all modulo 2^64
  static double Uniform(uint64_t state, size_t i) {
    return static_cast<double>(Mix(state + (i + 1) * kGolden) >> 11) * 0x1p-53;
  }

  // Columns [begin, begin + n) of the row. Uniform: scale * (2 u(column) - 1). Normal: columns 2p and 2p + 1 are Box
  // and Muller's transform of u(2p), u(2p + 1).
  void Fill(uint64_t state, size_t begin, size_t n, float* weights) const {
    for (size_t i = 0; i < n; ++i) {
      const size_t column = begin + i;
      if (kind == Kind::kZeros) {
        weights[i] = 0;
      } else if (kind == Kind::kConstant) {
        weights[i] = scale;
      } else if (kind == Kind::kUniform) {
        weights[i] = static_cast<float>(scale * (2 * Uniform(state, column) - 1));
      } else {
        const size_t even = column & ~size_t{1};
        const double radius = scale * std::sqrt(-2 * std::log(1 - Uniform(state, even)));
        const double angle = 6.283185307179586 * Uniform(state, even + 1);
        if (column == even) weights[i++] = static_cast<float>(radius * std::cos(angle));
        if (i < n) weights[i] = static_cast<float>(radius * std::sin(angle));
      }
    }
  }
};

}  // namespace cuckoo
