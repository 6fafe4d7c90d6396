// Keys as somebody who knows the hash would craft them: the inverse of Hash (hash.h).
#pragma once

#include <cstdint>

#include "training/cuckoo/core/hash.h"

namespace cuckoo {

// The key whose hash is `hash`.
inline int64_t KeyOf(uint64_t hash) {
  hash ^= hash >> 31 ^ hash >> 62;
  hash *= 0x319642b2d24d8ec3;  // times 0x94d049bb133111eb it is 1 modulo 2^64
  hash ^= hash >> 27 ^ hash >> 54;
  hash *= 0x96de1b173f119089;  // times 0xbf58476d1ce4e5b9
  hash ^= hash >> 30 ^ hash >> 60;
  return static_cast<int64_t>(hash - kGolden);
}

}  // namespace cuckoo
