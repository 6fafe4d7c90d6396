// Steps a segment of a row by one of five rules, each in one fused pass. No TensorFlow here.
//
// Invariants
//   - The formulas give the same numbers as Keras 3's. A step does not touch a row without a gradient (lazy): neither
//     its weights nor its moments decay meanwhile.
//   - A kernel gives the same bits in each of its versions (no contraction: build with -ffp-contract=off).
//   - One call steps many rows, because a call costs a fourth of a row's step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

// One version a CPU: the user's machine picks at load. Sanitizers cannot run the picking.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#if __GNUC__ >= 12
#define CUCKOO_VERSIONS __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define CUCKOO_VERSIONS __attribute__((target_clones("default", "avx2")))
#endif
#else
#define CUCKOO_VERSIONS
#endif
// What a version calls for each key, so that it is of that version too.
#define CUCKOO_INLINE __attribute__((always_inline))

namespace cuckoo {

// w -= lr * g
CUCKOO_INLINE inline void Sgd(float* __restrict w, const float* __restrict g, size_t n, float rate) {
  for (size_t i = 0; i < n; ++i) w[i] -= rate * g[i];
}

// m = momentum * m - lr * g; w += m   (Polyak 1964)
CUCKOO_INLINE inline void Momentum(float* __restrict w, float* __restrict m, const float* __restrict g, size_t n,
                                   float rate, float momentum) {
  for (size_t i = 0; i < n; ++i) {
    m[i] = m[i] * momentum - g[i] * rate;
    w[i] += m[i];
  }
}

// m = momentum * m - lr * g; w += momentum * m - lr * g   (Sutskever et al., ICML 2013, equations 3 and 4, in Keras'
// form)
CUCKOO_INLINE inline void Nesterov(float* __restrict w, float* __restrict m, const float* __restrict g, size_t n,
                                   float rate, float momentum) {
  for (size_t i = 0; i < n; ++i) {
    const float step = g[i] * rate;
    m[i] = m[i] * momentum - step;
    w[i] += m[i] * momentum - step;
  }
}

// a += g^2; w -= lr * g / sqrt(a + epsilon)   (Duchi et al., JMLR 12, 2011, figure 1)
CUCKOO_INLINE inline void Adagrad(float* __restrict w, float* __restrict a, const float* __restrict g, size_t n,
                                  float rate, float epsilon) {
  for (size_t i = 0; i < n; ++i) {
    a[i] += g[i] * g[i];
    w[i] -= rate * g[i] / std::sqrt(a[i] + epsilon);
  }
}

// m += (1 - beta_1) (g - m); v += (1 - beta_2) (g^2 - v); w -= alpha * m / (sqrt(v) + epsilon)
// (Kingma and Ba, ICLR 2015, algorithm 1 in the order that section 2 ends with: alpha carries both corrections)
CUCKOO_INLINE inline void Adam(float* __restrict w, float* __restrict m, float* __restrict v, const float* __restrict g,
                               size_t n, float alpha, float one_minus_beta_1, float one_minus_beta_2, float epsilon) {
  for (size_t i = 0; i < n; ++i) {
    m[i] += (g[i] - m[i]) * one_minus_beta_1;
    v[i] += (g[i] * g[i] - v[i]) * one_minus_beta_2;
    w[i] -= m[i] * alpha / (std::sqrt(v[i]) + epsilon);
  }
}

// FTRL-Proximal, a the sum of squares and z the linear term (McMahan et al., KDD 2013, algorithm 1; shrinkage as in
// Keras):
//   a' = a + g^2; z += g + 2 shrinkage w - w (sqrt(a') - sqrt(a)) / lr
//   w = (clamp(z, -l1, l1) - z) / (sqrt(a') / lr + 2 l2 + beta / lr)
CUCKOO_INLINE inline void Ftrl(float* __restrict w, float* __restrict a, float* __restrict z, const float* __restrict g,
                               size_t n, float rate, float l1, float l2, float shrinkage, float beta) {
  const float fixed = 2 * (l2 + beta / (2 * rate));
  for (size_t i = 0; i < n; ++i) {
    const float sum = a[i] + g[i] * g[i], root = std::sqrt(sum);
    z[i] += (g[i] + 2 * shrinkage * w[i]) - (root - std::sqrt(a[i])) / rate * w[i];
    const float clamped = std::min(std::max(z[i], -l1), l1);
    w[i] = (clamped - z[i]) / (root / rate + fixed);
    a[i] = sum;
  }
}

// Rows that take a step each, in their order: whole rows, and gradients of their weights.
struct Rows {
  float* const* row;
  const float* const* gradient;
  size_t count;
};

// Where in a row the weights and the slots of a segment begin.
struct Span {
  size_t weights, slots;
};

enum class Rule { kSgd, kMomentum, kNesterov, kAdagrad, kAdam, kFtrl };

struct Optimizer {
  Rule rule = Rule::kSgd;
  float decay = 0;      // of the weights, before the step: w -= w * decay * lr
  float clip = 0;       // each number of the gradient into [-clip, clip]; 0: as it is
  float clip_norm = 0;  // the gradient's L2 norm over the segment of one row at most this; 0: as it is
  float start = 0;      // Adagrad, FTRL: what the sum of squares begins with
  float epsilon = 0;    // Adagrad, Adam
  float beta_1 = 0;     // momentum's momentum; Adam
  float beta_2 = 0;     // Adam
  float l1 = 0, l2 = 0, shrinkage = 0, beta = 0;  // FTRL

  bool operator==(const Optimizer&) const = default;

  // Slots of a segment of n weights, first to last: momentum m; Adagrad a; Adam m, v and the row's count of steps (one
  // number); FTRL a, z.
  size_t slot_floats(size_t n) const {
    switch (rule) {
      case Rule::kSgd:
        return 0;
      case Rule::kMomentum:
      case Rule::kNesterov:
      case Rule::kAdagrad:
        return n;
      case Rule::kAdam:
        return 2 * n + 1;
      case Rule::kFtrl:
        return 2 * n;
    }
    __builtin_unreachable();
  }

  void Begin(size_t n, float* slots) const {
    std::fill_n(slots, slot_floats(n), 0.0f);
    if (rule == Rule::kAdagrad || rule == Rule::kFtrl) std::fill_n(slots, n, start);
  }

  // One step of the segment of n weights at `span` in each row, with learning rate `rate`.
  void Step(const Rows& rows, Span span, size_t n, float rate) const {
    if (rule != Rule::kAdam && clip == 0 && clip_norm == 0 && decay == 0) return Run(rows, span, n, n, rate);
    for (size_t r = 0; r < rows.count; ++r) {
      StepOne(rows.row[r] + span.weights, rows.row[r] + span.slots, rows.gradient[r] + span.weights, n, rate);
    }
  }

 private:
  void StepOne(float* w, float* slots, const float* g, size_t n, float rate) const {
    // The correction counts the row's own steps: with the table's, a row first met late would hardly move.
    const float alpha = rule == Rule::kAdam ? Alpha(slots[2 * n] += 1, rate) : rate;
    constexpr size_t kPart = 64;
    float part[kPart];
    const float scale = clip_norm == 0 ? 1 : clip_norm / std::max(Norm(g, n), clip_norm);
    const float bound = clip == 0 ? INFINITY : clip;
    for (size_t at = 0; at < n; at += kPart) {
      const size_t m = std::min(kPart, n - at);
      for (size_t i = 0; i < m; ++i) part[i] = std::min(std::max(g[at + i] * scale, -bound), bound);
      if (decay != 0) {
        for (size_t i = at; i < at + m; ++i) w[i] -= w[i] * decay * rate;
      }
      float* const row = w + at;
      const float* const gradient = part;
      Run({&row, &gradient, 1}, {0, static_cast<size_t>(slots - w)}, m, n, alpha);
    }
  }

  float Alpha(double steps, float rate) const {
    return static_cast<float>(rate * std::sqrt(1 - std::pow(static_cast<double>(beta_2), steps)) /
                              (1 - std::pow(static_cast<double>(beta_1), steps)));
  }

  static float Norm(const float* g, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(g[i]) * g[i];
    return static_cast<float>(std::sqrt(sum));
  }

  // `m` of the segment's `n` weights.
  CUCKOO_VERSIONS void Run(const Rows& rows, Span span, size_t m, size_t n, float rate) const {
    const auto each = [&](auto step) CUCKOO_INLINE {
      for (size_t r = 0; r < rows.count; ++r) {
        float* const slots = rows.row[r] + span.slots;
        step(rows.row[r] + span.weights, slots, slots + n, rows.gradient[r] + span.weights);
      }
    };
    switch (rule) {
      case Rule::kSgd:
        return each([=](float* w, float*, float*, const float* g) CUCKOO_INLINE { Sgd(w, g, m, rate); });
      case Rule::kMomentum:
        return each([=, this](float* w, float* s, float*, const float* g)
                        CUCKOO_INLINE { Momentum(w, s, g, m, rate, beta_1); });
      case Rule::kNesterov:
        return each([=, this](float* w, float* s, float*, const float* g)
                        CUCKOO_INLINE { Nesterov(w, s, g, m, rate, beta_1); });
      case Rule::kAdagrad:
        return each([=, this](float* w, float* s, float*, const float* g)
                        CUCKOO_INLINE { Adagrad(w, s, g, m, rate, epsilon); });
      case Rule::kAdam:
        return each([=, this](float* w, float* s, float* t, const float* g)
                        CUCKOO_INLINE { Adam(w, s, t, g, m, rate, 1 - beta_1, 1 - beta_2, epsilon); });
      case Rule::kFtrl:
        return each([=, this](float* w, float* s, float* t, const float* g)
                        CUCKOO_INLINE { Ftrl(w, s, t, g, m, rate, l1, l2, shrinkage, beta); });
    }
  }
};

}  // namespace cuckoo
