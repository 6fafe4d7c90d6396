// The table as a TensorFlow resource: its handle op, and what all verbs of ops.cc share (inputs checked, errors named).
//
// Invariants
//   - A verb checks every shape before it touches the table: an InvalidArgument has changed nothing.
//   - Ticks are uint32 in the core and int64 in tensors, whose kernels are complete for it.
#pragma once

#include <limits>
#include <new>
#include <string>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_op_kernel.h"
#include "training/cuckoo/table.h"

namespace cuckoo {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

class TableResource : public tensorflow::ResourceBase {
 public:
  explicit TableResource(const Config& config) : table(config) {}
  std::string DebugString() const override { return "CuckooTable"; }
  int64_t MemoryUsed() const override { return static_cast<int64_t>(table.stats().bytes); }
  Table table;
};

class TableOp : public tensorflow::ResourceOpKernel<TableResource> {
 public:
  explicit TableOp(OpKernelConstruction* c) : ResourceOpKernel(c) {
    int64_t dim, slots, shards, zero_prefix, seed;
    std::string initializer;
    OP_REQUIRES_OK(c, c->GetAttr("dim", &dim));
    OP_REQUIRES_OK(c, c->GetAttr("slots", &slots));
    OP_REQUIRES_OK(c, c->GetAttr("shards", &shards));
    OP_REQUIRES_OK(c, c->GetAttr("zero_prefix", &zero_prefix));
    OP_REQUIRES_OK(c, c->GetAttr("seed", &seed));
    OP_REQUIRES_OK(c, c->GetAttr("initializer", &initializer));
    OP_REQUIRES_OK(c, c->GetAttr("scale", &config_.initializer.scale));
    OP_REQUIRES_OK(c, c->GetAttr("slot_value", &config_.slot_value));
    OP_REQUIRES(c, shards <= static_cast<int64_t>(Table::kMaxShards) && (shards & (shards - 1)) == 0,
                InvalidArgument("shards is ", shards, ", allowed is a power of two from 1 to ", Table::kMaxShards));
    OP_REQUIRES(c, zero_prefix <= dim,
                InvalidArgument("zero_prefix is ", zero_prefix, ", allowed is 0 to dim (", dim, ")"));
    config_.dim = dim;
    config_.slots = slots;
    config_.shards = shards;
    config_.initializer.zero_prefix = zero_prefix;
    config_.initializer.seed = static_cast<uint64_t>(seed);
    config_.initializer.kind = initializer == "zeros"     ? Kind::kZeros
                               : initializer == "uniform" ? Kind::kUniform
                                                          : Kind::kNormal;
  }

 private:
  absl::Status CreateResource(TableResource** resource) override {
    try {
      *resource = new TableResource(config_);
    } catch (const std::bad_alloc&) {
      return tensorflow::errors::ResourceExhausted("no memory for a new table");
    }
    return absl::OkStatus();
  }

  absl::Status VerifyResource(TableResource* resource) override {
    if (resource->table.config() == config_) return absl::OkStatus();
    return InvalidArgument("table ", cinfo_.name(), " is there already with another dim, slots, shards or initializer");
  }

  Config config_;
};

// A verb: finds the table, runs Do, turns a failed allocation into ResourceExhausted.
class Verb : public OpKernel {
 public:
  explicit Verb(OpKernelConstruction* c) : OpKernel(c) {}

  void Compute(OpKernelContext* c) final {
    tensorflow::core::RefCountPtr<TableResource> resource;
    OP_REQUIRES_OK(c, LookupResource(c, tensorflow::HandleFromInput(c, 0), &resource));
    try {
      Do(c, &resource->table);
    } catch (const std::bad_alloc&) {
      c->CtxFailure(tensorflow::errors::ResourceExhausted(name(), ": no memory for more rows; the table holds ",
                                                          resource->table.stats().size));
    }
  }

 protected:
  virtual void Do(OpKernelContext* c, Table* table) = 0;

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
