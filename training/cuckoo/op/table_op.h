// The handle op: makes a Config of the attributes and finds or makes the resource of that name.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tensorflow/core/framework/resource_op_kernel.h"
#include "training/cuckoo/op/verb.h"

namespace cuckoo {

class TableOp : public tensorflow::ResourceOpKernel<TableResource> {
 public:
  explicit TableOp(OpKernelConstruction* c) : ResourceOpKernel(c) {
    std::vector<int64_t> dims;
    std::vector<std::string> optimizers, initializers;
    std::vector<float> settings, scales;
    int64_t shards, seed, after, pending;
    float probability;
    OP_REQUIRES_OK(c, c->GetAttr("dims", &dims));
    OP_REQUIRES_OK(c, c->GetAttr("optimizers", &optimizers));
    OP_REQUIRES_OK(c, c->GetAttr("settings", &settings));
    OP_REQUIRES_OK(c, c->GetAttr("initializers", &initializers));
    OP_REQUIRES_OK(c, c->GetAttr("scales", &scales));
    OP_REQUIRES_OK(c, c->GetAttr("shards", &shards));
    OP_REQUIRES_OK(c, c->GetAttr("seed", &seed));
    OP_REQUIRES_OK(c, c->GetAttr("admit_after", &after));
    OP_REQUIRES_OK(c, c->GetAttr("admit_probability", &probability));
    OP_REQUIRES_OK(c, c->GetAttr("pending_ids", &pending));
    OP_REQUIRES_OK(c, c->GetAttr("zero_nonfinite", &zero_nonfinite_));
    OP_REQUIRES_OK(c, c->GetAttr("label", &label_));
    OP_REQUIRES(c, shards <= static_cast<int64_t>(Table::kMaxShards) && (shards & (shards - 1)) == 0,
                InvalidArgument("shards is ", shards, ", allowed is a power of two from 1 to ", Table::kMaxShards));
    OP_REQUIRES(c, after >= 1 && after <= AdmissionConfig::kMaxAfter,
                InvalidArgument("admit_after is ", after, ", allowed is 1 to ", AdmissionConfig::kMaxAfter));
    OP_REQUIRES(c, probability > 0 && probability <= 1 && (probability == 1 || after == 1),
                InvalidArgument("admit_probability is ", probability,
                                ", allowed is > 0 to 1, and only 1 beside an admit_after > 1"));
    const size_t n = dims.size();
    OP_REQUIRES(
        c, optimizers.size() == n && settings.size() == n * kSettings && initializers.size() == n && scales.size() == n,
        InvalidArgument("of ", n, " segments: ", optimizers.size(), " optimizers, ", settings.size(),
                        " settings (allowed are ", kSettings, " a segment), ", initializers.size(), " initializers, ",
                        scales.size(), " scales"));
    std::vector<Segment> segments;
    for (size_t s = 0; s < n; ++s) {
      OP_REQUIRES(c, dims[s] >= 1, InvalidArgument("dims holds ", dims[s], ", allowed is 1 or more"));
      segments.push_back({static_cast<size_t>(dims[s]),
                          {kKinds.at(initializers[s]), scales[s]},
                          ToOptimizer(optimizers[s], &settings[s * kSettings])});
    }
    config_.layout = Layout(std::move(segments), static_cast<uint64_t>(seed));
    config_.shards = shards;
    config_.admission = {static_cast<uint32_t>(after), probability, static_cast<size_t>(pending),
                         static_cast<uint64_t>(seed)};
  }

 private:
  static constexpr size_t kSettings = 11;

  // The names are those of the attributes, which TensorFlow has held against their list.
  inline static const std::map<std::string, Kind> kKinds = {
      {"zeros", Kind::kZeros}, {"constant", Kind::kConstant}, {"uniform", Kind::kUniform}, {"normal", Kind::kNormal}};
  inline static const std::map<std::string, Rule> kRules = {
      {"sgd", Rule::kSgd},         {"momentum", Rule::kMomentum}, {"nesterov", Rule::kNesterov},
      {"adagrad", Rule::kAdagrad}, {"adam", Rule::kAdam},         {"ftrl", Rule::kFtrl}};

  // In the order of optimizers.py's SETTINGS.
  static Optimizer ToOptimizer(const std::string& rule, const float* s) {
    return {kRules.at(rule), s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10]};
  }

  absl::Status CreateResource(TableResource** resource) override {
    try {
      *resource = new TableResource(config_, label_, zero_nonfinite_);
    } catch (const std::bad_alloc&) {
      return tensorflow::errors::ResourceExhausted("table ", label_, ": no memory for a new table");
    }
    return absl::OkStatus();
  }

  absl::Status VerifyResource(TableResource* resource) override {
    if (resource->table.config() == config_ && resource->zero_nonfinite == zero_nonfinite_) return absl::OkStatus();
    return InvalidArgument("table ", cinfo_.name(),
                           " is there already with other segments, shards, seed, admission or setting of nonfinite");
  }

  Config config_;
  std::string label_;
  bool zero_nonfinite_;
};

}  // namespace cuckoo
