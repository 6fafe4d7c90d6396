// Computes a key's two buckets in an index that grows by one bucket at a time. No TensorFlow here.
// (Partial expansions: P.-A. Larson, "Linear hashing with partial expansions", VLDB 1980.)
//
//   2^level groups; group g holds buckets g, g + 2^level, g + 2 * 2^level, ...: k of them, or k + 1 where g < split
//
//   level 2, k 4, split 2   bucket  0 1 2 3   4 5 6 7   8 9 10 11   12 13 14 15   16 17   18 is next: of group 2
//                           group   0 1 2 3   0 1 2 3   0 1  2  3    0  1  2  3    0  1
//
// Invariants
//   - Growing by one bucket deals the keys of one group out again. A key of another group keeps both its buckets.
//   - k grows from 4 to 8. 8 buckets in 2^level groups are 4 in twice as many, so that step moves no key. (Bit `level`
//     of a choice is the lowest of its 3 bits inside a group of 8, and of the group's number from then on.)
//   - So all memory is always in use, and a bucket's share of the keys is at most 5/4 of another's.
#pragma once

#include <cstdint>

namespace cuckoo {

struct Shape {
  uint32_t level = 0;
  uint32_t k = 1;  // up to 4 only while there is one group
  uint32_t split = 0;
  bool stashed = false;  // some keys are in the index's stash

  static constexpr uint32_t kMaxLevel = 26;  // 2^31 keys: the 6 bits left over choose inside a group

  bool valid() const { return level <= kMaxLevel && 0 < k && k < 8 && (level == 0 || k >= 4) && split < groups(); }
  uint32_t groups() const { return uint32_t{1} << level; }
  uint32_t buckets() const { return (k << level) + split; }

  // The bucket of one choice, 32 hashed bits: the low ones are the group, the high ones the place in it.
  uint32_t Bucket(uint32_t choice) const {
    const uint32_t group = choice & (groups() - 1);
    const uint64_t inside = (choice & ~(1u << 29)) | (choice >> level & 1) << 29;
    return group + (static_cast<uint32_t>(inside * (k + (group < split)) >> 32) << level);
  }

  // With one bucket more: number buckets(), of group `split`.
  Shape Next() const {
    Shape next = *this;
    if (++next.split == groups()) {
      next.split = 0;
      if (++next.k == 8) next.k = 4, ++next.level;
    }
    return next;
  }

  // One word, for readers who hold no lock.
  uint64_t Pack() const { return split | uint64_t{k} << 32 | uint64_t{level} << 40 | uint64_t{stashed} << 48; }
  static Shape Unpack(uint64_t word) {
    return {static_cast<uint32_t>(word >> 40 & 0xff), static_cast<uint32_t>(word >> 32 & 0xff),
            static_cast<uint32_t>(word), (word >> 48) != 0};
  }
};

}  // namespace cuckoo
