// The layout of a row: segments side by side, each with an initializer and an optimizer of its own. No TensorFlow here.
//
//   | bias (1 weight) | vector (16 weights) | bias's slots (FTRL: 2) | vector's slots (Adagrad: 16) |
//     `------------- dim weights ---------'   `---------------- slot_floats ---------------------'
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "training/cuckoo/core/initializer.h"
#include "training/cuckoo/core/optimizer.h"

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
      places_.push_back({dim_, slot_floats_});
      dim_ += s.dim;
      slot_floats_ += s.optimizer.slot_floats(s.dim);
    }
    for (Span& place : places_) place.slots += dim_;
  }

  bool operator==(const Layout& other) const { return segments_ == other.segments_ && seed_ == other.seed_; }

  const std::vector<Segment>& segments() const { return segments_; }
  size_t dim() const { return dim_; }
  size_t slot_floats() const { return slot_floats_; }
  size_t floats() const { return dim_ + slot_floats_; }

  // A new row: floats() numbers.
  void Begin(int64_t key, float* row) const {
    const uint64_t state = Initializer::State(seed_, key);
    for (size_t s = 0; s < segments_.size(); ++s) {
      const auto& [dim, initializer, optimizer] = segments_[s];
      initializer.Fill(state, places_[s].weights, dim, row + places_[s].weights);
      optimizer.Begin(dim, row + places_[s].slots);
    }
  }

  // One step of each row with a gradient of dim() numbers; a learning rate a segment.
  void Step(const Rows& rows, const float* rates) const {
    for (size_t s = 0; s < segments_.size(); ++s) {
      segments_[s].optimizer.Step(rows, places_[s], segments_[s].dim, rates[s]);
    }
  }

 private:
  std::vector<Segment> segments_;
  std::vector<Span> places_;
  uint64_t seed_ = 0;
  size_t dim_ = 0, slot_floats_ = 0;
};

}  // namespace cuckoo
