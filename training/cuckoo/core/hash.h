// The hash of a key, and the secret that folds it.
#pragma once

#include <cstdint>
#include <random>

namespace cuckoo {

// splitmix64's finalizer: a bijection, so that two keys never share a whole hash.
inline uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// A function of the key alone. Its top bits choose the shard.
inline uint64_t Hash(int64_t key) { return Mix(static_cast<uint64_t>(key) + kGolden); }

// The hash, folded with a secret: both halves of their product.
[[gnu::always_inline]] inline uint64_t Fold(uint64_t hash, uint64_t secret) {
  const auto product = static_cast<unsigned __int128>(hash) * secret;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A secret for Fold, odd.
inline uint64_t Secret() {
  std::random_device random;
  return (uint64_t{random()} << 32 | random()) | 1;
}

}  // namespace cuckoo
