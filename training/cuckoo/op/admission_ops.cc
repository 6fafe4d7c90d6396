// Kernels that export and import the state of the admission filters: lines of 64 bytes by their place (admission.h).
#include <cstring>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "training/cuckoo/op/verb.h"

namespace cuckoo {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::shape_inference::InferenceContext;

class ExportAdmissionOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    uint32_t tick;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    std::vector<int64_t> places;
    std::vector<AdmissionLine> lines;
    resource->table.ForEachAdmissionLine([&](const AdmissionLine& line, size_t place) {
      if (line.tick <= tick) return;
      places.push_back(static_cast<int64_t>(place));
      lines.push_back(line);
    });
    int64_t* out_places;
    uint8_t* out_lines;
    OP_REQUIRES_OK(c, Output(c, 0, {places.size()}, &out_places));
    OP_REQUIRES_OK(c, Output(c, 1, {lines.size(), kLine}, &out_lines));
    std::copy(places.begin(), places.end(), out_places);
    if (!lines.empty()) std::memcpy(out_lines, lines.data(), lines.size() * kLine);
  }
};

class ImportAdmissionOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    const Tensor *places, *lines;
    OP_REQUIRES_OK(c, c->input("places", &places));
    OP_REQUIRES_OK(c, c->input("lines", &lines));
    OP_REQUIRES(c, places->dims() == 1,
                InvalidArgument("places has shape ", places->shape().DebugString(), ", allowed is [n]"));
    const size_t n = places->dim_size(0);
    const TensorShape want({static_cast<int64_t>(n), static_cast<int64_t>(kLine)});
    OP_REQUIRES(c, lines->shape() == want,
                InvalidArgument("lines has shape ", lines->shape().DebugString(), ", allowed is ", want.DebugString()));
    const auto place = places->flat<int64_t>();
    const uint8_t* line = lines->flat<uint8_t>().data();
    size_t all = 0;
    resource->table.ForEachAdmissionLine([&](const AdmissionLine&, size_t) { ++all; });
    std::vector<const uint8_t*> given(all, nullptr);
    for (size_t i = 0; i < n; ++i) {
      OP_REQUIRES(c, place(i) >= 0 && static_cast<size_t>(place(i)) < all,
                  InvalidArgument("places holds ", place(i), ", allowed are those of the filter's ", all, " lines"));
      given[place(i)] = line + i * kLine;
    }
    resource->table.ForEachAdmissionLine([&](AdmissionLine& to, size_t at) {
      if (given[at] != nullptr) std::memcpy(&to, given[at], kLine);
    });
  }
};

absl::Status LinesShape(InferenceContext* c) {
  c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
  c->set_output(1, c->Matrix(InferenceContext::kUnknownDim, kLine));
  return absl::OkStatus();
}

REGISTER_OP("CuckooExportAdmission")
    .Input("table: resource")
    .Input("tick: int64")
    .Output("places: int64")
    .Output("lines: uint8")
    .SetIsStateful()
    .SetShapeFn(LinesShape)
    .Doc("Lines of the admission filters that changed after the tick.");
REGISTER_OP("CuckooImportAdmission")
    .Input("table: resource")
    .Input("places: int64")
    .Input("lines: uint8")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Sets lines of the admission filters.");

REGISTER_KERNEL_BUILDER(Name("CuckooExportAdmission").Device(DEVICE_CPU), ExportAdmissionOp);
REGISTER_KERNEL_BUILDER(Name("CuckooImportAdmission").Device(DEVICE_CPU), ImportAdmissionOp);

}  // namespace
}  // namespace cuckoo
