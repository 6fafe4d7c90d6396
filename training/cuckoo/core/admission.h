// The admission filter decides which unknown ids get a row. Only an insert asks it, so an id with a row never does.
// No TensorFlow here.
//
// By count: an id is admitted at its n-th sight. The filter remembers a tag and a count of a pending id, in one line.
//
//   Line, one cache line                                                   the hash chooses line and tag
//   | tag 0 .. 19: uint16, 40 B | count 0 .. 19: uint8, 20 B | tick: 4 B |
//     oldest sight ........ newest sight, then places with count 0
//
// By probability: each sight is one draw. A shard's one line counts the draws, so that a replay makes the same draws.
//
//   | draws: uint64 | unused: 52 B | tick: 4 B |
//
// Error of the count, with lines made for `pending` ids (8 a line) that wait at the same time:
//   - Early: another pending id of the line has the same tag. At most 20 * 2^-16 = 0.03 % a new id, 0.012 % on average.
//   - Late: a full line forgets the id it has not seen for longest, which then begins again. So the count is exact
//     while fewer than 20 others of its line are seen between two sights of the id. With `pending` others 0.03 % are
//     forgotten (Poisson, mean 8), with half as many less than one in a million.
//   - There is no other error. A count stays below the threshold (at most 255, so it never saturates), and an
//     admitted id leaves the filter.
// The filter ages by forgetting: an id that is never seen again gives way to a new one. It needs no clock and does not
// halve the counts of others.
//
// Invariants
//   - The caller holds the shard's lock exclusively. The filter takes its memory when it is made, and none later.
//   - If memory ends, an admitted id may get no row. It then begins again.
//   - The lines are the whole state. A line carries the tick of its last change, as a row does. A delta carries the
//     lines with a tick after the last committed cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "training/cuckoo/core/hash.h"
#include "training/cuckoo/core/storage.h"

namespace cuckoo {

struct AdmissionConfig {
  uint32_t after = 1;      // admitted at this sight; 1 to kMaxAfter
  double probability = 1;  // in (0, 1]: of each sight; `after` is 1 then
  size_t pending = 0;      // ids that are remembered at a time, over all shards
  uint64_t seed = 0;

  static constexpr uint32_t kMaxAfter = 255;

  bool all() const { return after == 1 && probability >= 1; }  // no id is refused

  bool operator==(const AdmissionConfig&) const = default;
};

struct alignas(kLine) AdmissionLine {
  static constexpr size_t kPlaces = 20;
  uint16_t tag[kPlaces];
  uint8_t count[kPlaces];
  uint32_t tick;

  size_t used() const {
    size_t n = 0;
    while (n < kPlaces && count[n] != 0) ++n;
    return n;
  }
  size_t Find(uint16_t t) const {
    size_t i = 0;
    while (i < kPlaces && !(tag[i] == t && count[i] != 0)) ++i;
    return i;
  }
  // The places behind i move up by one; the last one is empty.
  void Erase(size_t i) {
    std::memmove(tag + i, tag + i + 1, (kPlaces - 1 - i) * sizeof tag[0]);
    std::memmove(count + i, count + i + 1, kPlaces - 1 - i);
    tag[kPlaces - 1] = 0;
    count[kPlaces - 1] = 0;
  }
};
static_assert(sizeof(AdmissionLine) == kLine);

class Admission {
 public:
  static constexpr size_t kLoad = 8;  // pending ids a line: 8 bytes an id

  // Of one shard among `shards`.
  Admission(const AdmissionConfig& config, size_t shards)
      : config_(config), lines_(Lines(config, shards)), block_(lines_ == 0 ? Block() : Block(lines_ * kLine)) {
    if (lines_ > 0) std::memset(block_.data(), 0, lines_ * kLine);
  }

  // Lines a shard has: none where every id is admitted.
  static size_t Lines(const AdmissionConfig& config, size_t shards) {
    if (config.after > 1) return std::max<size_t>(1, (config.pending + kLoad * shards - 1) / (kLoad * shards));
    return config.probability < 1 ? 1 : 0;
  }

  // `sights` more of an id without a row: whether it is to get one now.
  bool Admit(uint64_t hash, uint64_t sights, uint32_t tick) {
    if (lines_ == 0) return true;
    return config_.after > 1 ? Count(hash, sights, tick) : Draw(hash, sights, tick);
  }

  size_t lines() const { return lines_; }
  size_t bytes() const { return lines_ * kLine; }
  AdmissionLine& At(size_t line) const { return static_cast<AdmissionLine*>(block_.data())[line]; }

 private:
  bool Count(uint64_t hash, uint64_t sights, uint32_t tick) {
    const uint64_t own = Mix(hash ^ kGolden);  // the hash's own bits chose the shard
    AdmissionLine& line = At(((own >> 32) * lines_) >> 32);
    const uint16_t tag = static_cast<uint16_t>(own);
    const size_t at = line.Find(tag);
    const bool known = at < AdmissionLine::kPlaces;
    const uint64_t seen = std::min<uint64_t>(sights, config_.after) + (known ? line.count[at] : 0);
    if (known) line.Erase(at);
    const bool admitted = seen >= config_.after;
    if (known || !admitted) line.tick = tick;
    if (admitted) return true;
    size_t end = line.used();
    if (end == AdmissionLine::kPlaces) {
      line.Erase(0);
      --end;
    }
    line.tag[end] = tag;
    line.count[end] = static_cast<uint8_t>(seen);
    return false;
  }

  // u = (Mix(hash ^ Mix(seed + draw * golden)) >> 11) * 2^-53 < probability, one draw a sight
  bool Draw(uint64_t hash, uint64_t sights, uint32_t tick) {
    AdmissionLine& line = At(0);
    uint64_t draws;
    std::memcpy(&draws, line.tag, sizeof draws);
    bool admitted = false;
    for (; sights > 0 && !admitted; --sights) {
      const uint64_t bits = Mix(hash ^ Mix(config_.seed + ++draws * kGolden));
      admitted = static_cast<double>(bits >> 11) * 0x1p-53 < config_.probability;
    }
    std::memcpy(line.tag, &draws, sizeof draws);
    line.tick = tick;
    return admitted;
  }

  const AdmissionConfig config_;
  const size_t lines_;
  Block block_;
};

}  // namespace cuckoo
