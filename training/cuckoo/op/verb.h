// The table as a TensorFlow resource, and the checks and errors that all verbs of ops.cc share.
//
// Invariants
//   - A verb checks every shape before it touches the table, so an InvalidArgument has changed nothing.
//   - Ticks are uint32 in the core and int64 in tensors, because TensorFlow has more kernels for int64.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/util/work_sharder.h"
#include "training/cuckoo/core/table.h"

namespace cuckoo {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

class TableResource : public tensorflow::ResourceBase {
 public:
  TableResource(const Config& config, const std::string& name, bool zero_nonfinite)
      : table(config), name(name), zero_nonfinite(zero_nonfinite) {}
  std::string DebugString() const override { return "CuckooTable " + name; }
  int64_t MemoryUsed() const override { return static_cast<int64_t>(table.stats().bytes); }
  Table table;
  const std::string name;     // as the user gave it, for errors
  const bool zero_nonfinite;  // NaN and Inf in gradients read 0; otherwise they are refused
};

// A verb: finds the table, runs Do, turns a failed allocation into ResourceExhausted.
class Verb : public OpKernel {
 public:
  explicit Verb(OpKernelConstruction* c) : OpKernel(c) {}

  void Compute(OpKernelContext* c) final {
    tensorflow::core::RefCountPtr<TableResource> resource;
    OP_REQUIRES_OK(c, LookupResource(c, tensorflow::HandleFromInput(c, 0), &resource));
    try {
      Do(c, resource.get());
    } catch (const std::bad_alloc&) {
      c->CtxFailure(tensorflow::errors::ResourceExhausted("table ", resource->name, ": no memory for ", name(),
                                                          "; it holds ", resource->table.stats().size, " rows"));
    }
  }

 protected:
  virtual void Do(OpKernelContext* c, TableResource* resource) = 0;

  static absl::Status Keys(OpKernelContext* c, const int64_t** keys, size_t* n) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(c->input("keys", &tensor));
    if (tensor->dims() != 1)
      return InvalidArgument("keys has shape ", tensor->shape().DebugString(), ", allowed is [n]");
    *keys = tensor->flat<int64_t>().data();
    *n = tensor->dim_size(0);
    return absl::OkStatus();
  }

  static absl::Status Matrix(OpKernelContext* c, const char* what, size_t n, size_t width, const float** data) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(c->input(what, &tensor));
    const TensorShape want({static_cast<int64_t>(n), static_cast<int64_t>(width)});
    if (tensor->shape() != want) {
      return InvalidArgument(what, " has shape ", tensor->shape().DebugString(), ", allowed is ", want.DebugString(),
                             ": a row a key");
    }
    *data = tensor->flat<float>().data();
    return absl::OkStatus();
  }

  // Into how many parts a batch of n is worth dividing: one a thread of this device, and work enough in each.
  static size_t Parts(OpKernelContext* c, size_t n) {
    constexpr size_t kLeast = 2048;  // keys: some 0.1 ms, ten times what waking a thread takes
    return std::clamp<size_t>(n / kLeast, 1, c->device()->tensorflow_cpu_worker_threads()->num_threads);
  }

  // Calls f(part) for each part, on the device's threads and this one.
  template <class F>
  static void InParts(OpKernelContext* c, size_t parts, F f) {
    if (parts == 1) return f(0);
    std::atomic<bool> failed = false;  // an exception must not leave a thread of TensorFlow's
    const auto run = [&](int64_t begin, int64_t end) {
      try {
        for (int64_t part = begin; part < end; ++part) f(part);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    };
    constexpr int64_t kCost = 1'000'000;  // cycles of a part: more than the threshold at which Shard uses threads
    tensorflow::Shard(parts, c->device()->tensorflow_cpu_worker_threads()->workers, parts, kCost, run);
    if (failed) throw std::bad_alloc();
  }

  template <class T>
  static absl::Status Scalar(OpKernelContext* c, const char* what, T* value) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(c->input(what, &tensor));
    if (tensor->dims() != 0)
      return InvalidArgument(what, " has shape ", tensor->shape().DebugString(), ", allowed is []");
    *value = tensor->scalar<T>()();
    return absl::OkStatus();
  }

  static absl::Status ToTick(const char* what, int64_t value, uint32_t* tick) {
    if (value < 0 || value > std::numeric_limits<uint32_t>::max()) {
      return InvalidArgument(what, " holds ", value, ", allowed is 0 to 4294967295");
    }
    *tick = static_cast<uint32_t>(value);
    return absl::OkStatus();
  }

  static absl::Status TickInput(OpKernelContext* c, uint32_t* tick) {
    int64_t value;
    TF_RETURN_IF_ERROR(Scalar(c, "tick", &value));
    return ToTick("tick", value, tick);
  }

  template <class T>
  static absl::Status Temporary(OpKernelContext* c, std::vector<size_t> dims, Tensor* tensor) {
    TensorShape shape;
    for (const size_t d : dims) shape.AddDim(static_cast<int64_t>(d));
    return c->allocate_temp(tensorflow::DataTypeToEnum<T>::value, shape, tensor);
  }

  template <class T>
  static absl::Status Output(OpKernelContext* c, int index, std::vector<size_t> dims, T** data) {
    TensorShape shape;
    for (const size_t d : dims) shape.AddDim(static_cast<int64_t>(d));
    Tensor* tensor;
    TF_RETURN_IF_ERROR(c->allocate_output(index, shape, &tensor));
    *data = tensor->flat<T>().data();
    return absl::OkStatus();
  }
};

}  // namespace cuckoo
