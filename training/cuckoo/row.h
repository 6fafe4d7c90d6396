// What a row holds: how it begins, and how a step changes it. No TensorFlow here.
//
//   | linear (zero_prefix numbers, zero) | vector (zeros, uniform or normal) | slots (a constant) |
//     `------------- dim weights -------------------------------------'
//
// Invariants
//   - A row's beginning is a function of (seed, key, column) alone: it does not depend on order, shard or machine.
//   - Kernels give the same bits in each of their versions (no contraction: build with -ffp-contract=off).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "training/cuckoo/index.h"

// One version a CPU: the user's machine picks at load. Sanitizers cannot run the picking.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define CUCKOO_VERSIONS __attribute__((target_clones("default", "avx2")))
#else
#define CUCKOO_VERSIONS
#endif

namespace cuckoo {

enum class Kind { kZeros, kUniform, kNormal };

struct Initializer {
  Kind kind = Kind::kZeros;
  float scale = 0;         // uniform: in [-scale, scale); normal: standard deviation
  size_t zero_prefix = 0;  // so many columns begin with zero whatever the kind
  uint64_t seed = 0;

  bool operator==(const Initializer&) const = default;

  // u(key, i) = (Mix(Mix((key + golden) ^ Mix(seed)) + (i + 1) * golden) >> 11) * 2^-53, all modulo 2^64
  static double Uniform(uint64_t state, size_t i) {
    return static_cast<double>(Mix(state + (i + 1) * kGolden) >> 11) * 0x1p-53;
  }

  // Uniform: scale * (2 u(column) - 1). Normal: columns 2p and 2p + 1 are Box and Muller's transform of u(2p), u(2p +
  // 1).
  void Fill(int64_t key, float* weights, size_t dim) const {
    const uint64_t state = Mix((static_cast<uint64_t>(key) + kGolden) ^ Mix(seed));
    for (size_t i = 0; i < dim; ++i) {
      if (kind == Kind::kZeros) {
        weights[i] = 0;
      } else if (kind == Kind::kUniform) {
        weights[i] = static_cast<float>(scale * (2 * Uniform(state, i) - 1));
      } else if (i % 2 == 0) {
        const double radius = scale * std::sqrt(-2 * std::log(1 - Uniform(state, i)));
        const double angle = 6.283185307179586 * Uniform(state, i + 1);
        weights[i] = static_cast<float>(radius * std::cos(angle));
        if (i + 1 < dim) weights[i + 1] = static_cast<float>(radius * std::sin(angle));
      }
    }
    std::fill_n(weights, zero_prefix, 0.0f);
  }
};

// Adagrad as Keras 3 writes it: a += g^2; w -= lr * g / sqrt(a + epsilon)   (Duchi et al., JMLR 12, 2011, figure 1)
CUCKOO_VERSIONS inline void Adagrad(float* __restrict w, float* __restrict a, const float* __restrict g, size_t dim,
                                    float learning_rate, float epsilon) {
  for (size_t i = 0; i < dim; ++i) {
    a[i] += g[i] * g[i];
    w[i] -= learning_rate * g[i] / std::sqrt(a[i] + epsilon);
  }
}

}  // namespace cuckoo
