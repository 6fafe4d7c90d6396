// What a row holds: segments side by side, each with an initializer and an optimizer of its own. No TensorFlow here.
//
//   | bias (1 weight) | vector (16 weights) | bias's slots (FTRL: 2) | vector's slots (Adagrad: 16) |
//     `------------- dim weights ---------'   `---------------- slot_floats ---------------------'
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "training/cuckoo/initializer.h"
#include "training/cuckoo/optimizer.h"

namespace cuckoo {

struct Segment {
  size_t dim = 0;
  Initializer initializer;
  Optimizer optimizer;

  bool operator==(const Segment&) const = default;
};

class Layout {
 public:
  Layout() = default;
  Layout(std::vector<Segment> segments, uint64_t seed) : segments_(std::move(segments)), seed_(seed) {
    for (const Segment& s : segments_) {
      dim_ += s.dim;
      slot_floats_ += s.optimizer.slot_floats(s.dim);
    }
  }

  bool operator==(const Layout&) const = default;

  const std::vector<Segment>& segments() const { return segments_; }
  size_t dim() const { return dim_; }
  size_t slot_floats() const { return slot_floats_; }
  size_t floats() const { return dim_ + slot_floats_; }

  // A new row: floats() numbers.
  void Begin(int64_t key, float* row) const {
    const uint64_t state = Initializer::State(seed_, key);
    size_t column = 0;
    float* slots = row + dim_;
    for (const Segment& s : segments_) {
      s.initializer.Fill(state, column, s.dim, row + column);
      s.optimizer.Begin(s.dim, slots);
      column += s.dim;
      slots += s.optimizer.slot_floats(s.dim);
    }
  }

  // One step of a row with a gradient of dim() numbers; a learning rate a segment.
  void Step(float* row, const float* gradient, const float* rates) const {
    size_t column = 0;
    float* slots = row + dim_;
    for (const Segment& s : segments_) {
      s.optimizer.Step(row + column, slots, gradient + column, s.dim, *rates++);
      column += s.dim;
      slots += s.optimizer.slot_floats(s.dim);
    }
  }

 private:
  std::vector<Segment> segments_;
  uint64_t seed_ = 0;
  size_t dim_ = 0, slot_floats_ = 0;
};

}  // namespace cuckoo
