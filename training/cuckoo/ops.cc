// The table's ops: one a verb of table.h, thin.
#include <memory>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "training/cuckoo/verb.h"

// library.py reads this from the file before it loads it: another TensorFlow would crash, not complain.
extern "C" __attribute__((used, visibility("default"))) const char cuckoo_built_for[] =
    "CUCKOO_BUILT_FOR_TENSORFLOW=" CUCKOO_TENSORFLOW ";";

namespace cuckoo {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::shape_inference::InferenceContext;

class LookupOp : public Verb {
 public:
  explicit LookupOp(OpKernelConstruction* c) : Verb(c) {
    OP_REQUIRES_OK(c, c->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(c, c->GetAttr("insert", &insert_));
  }

 private:
  void Do(OpKernelContext* c, Table* table) override {
    const int64_t* keys;
    size_t n;
    float* rows;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES(c, table->config().dim == static_cast<size_t>(dim_),
                InvalidArgument("dim is ", dim_, ", the table's is ", table->config().dim));
    OP_REQUIRES_OK(c, Output(c, 0, {n, table->config().dim}, &rows));
    if (insert_) {
      table->Lookup(keys, n, rows);
    } else {
      table->Find(keys, n, rows);
    }
  }

  int64_t dim_;
  bool insert_;
};

class ApplyAdagradOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    const int64_t* keys;
    size_t n;
    const float* gradients;
    float learning_rate, epsilon;
    int64_t* applied;
    OP_REQUIRES(c, table->config().slots == 1,
                InvalidArgument("Adagrad needs slots=1, the table has ", table->config().slots));
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Matrix(c, "gradients", n, table->config().dim, &gradients));
    OP_REQUIRES_OK(c, Scalar(c, "learning_rate", &learning_rate));
    OP_REQUIRES_OK(c, Scalar(c, "epsilon", &epsilon));
    OP_REQUIRES_OK(c, Output(c, 0, {}, &applied));
    *applied = static_cast<int64_t>(table->ApplyAdagrad(keys, n, gradients, learning_rate, epsilon));
  }
};

class ImportOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    const int64_t* keys;
    size_t n;
    const float *rows, *slots;
    const Tensor* ticks;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Matrix(c, "rows", n, table->config().dim, &rows));
    OP_REQUIRES_OK(c, Matrix(c, "slots", n, table->slot_floats(), &slots));
    OP_REQUIRES_OK(c, c->input("ticks", &ticks));
    OP_REQUIRES(
        c, ticks->shape() == c->input(1).shape(),
        InvalidArgument("ticks has shape ", ticks->shape().DebugString(), ", allowed is [", n, "]: a tick a key"));
    std::vector<uint32_t> narrow(n);
    for (size_t i = 0; i < n; ++i) OP_REQUIRES_OK(c, ToTick("ticks", ticks->flat<int64_t>()(i), &narrow[i]));
    table->Import(keys, n, rows, slots, narrow.data());
  }
};

class ExportSinceOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    uint32_t tick;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    const size_t dim = table->config().dim, slot_floats = table->slot_floats();
    std::vector<int64_t> keys = table->KeysSince(tick);
    // A row that another thread removes meanwhile is left out, and what is left is read again.
    while (true) {
      const size_t n = keys.size();
      int64_t *out_keys, *out_ticks;
      float *rows, *slots;
      OP_REQUIRES_OK(c, Output(c, 0, {n}, &out_keys));
      OP_REQUIRES_OK(c, Output(c, 1, {n, dim}, &rows));
      OP_REQUIRES_OK(c, Output(c, 2, {n, slot_floats}, &slots));
      OP_REQUIRES_OK(c, Output(c, 3, {n}, &out_ticks));
      std::vector<uint32_t> ticks(n);
      const std::unique_ptr<bool[]> found(new bool[n]);
      if (table->Read(keys.data(), n, rows, slots, ticks.data(), found.get()) == n) {
        std::copy(keys.begin(), keys.end(), out_keys);
        std::copy(ticks.begin(), ticks.end(), out_ticks);
        return;
      }
      size_t left = 0;
      for (size_t i = 0; i < n; ++i) {
        if (found[i]) keys[left++] = keys[i];
      }
      keys.resize(left);
    }
  }
};

class RemoveOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    const int64_t* keys;
    size_t n;
    bool* removed;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Output(c, 0, {n}, &removed));
    table->Remove(keys, n, removed);
  }
};

class TickOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    int64_t* tick;
    OP_REQUIRES_OK(c, Output(c, 0, {}, &tick));
    *tick = table->tick();
  }
};

class SetTickOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    uint32_t tick;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    OP_REQUIRES(c, table->SetTick(tick),
                InvalidArgument("tick is ", tick, ", allowed is the present one (", table->tick(), ") or a later one"));
  }
};

class StatsOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, Table* table) override {
    int64_t* out;
    OP_REQUIRES_OK(c, Output(c, 0, {3}, &out));
    const Stats stats = table->stats();
    out[0] = static_cast<int64_t>(stats.size);
    out[1] = static_cast<int64_t>(stats.capacity);
    out[2] = static_cast<int64_t>(stats.bytes);
  }
};

absl::Status RowShape(InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle keys;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &keys));
  int64_t dim;
  TF_RETURN_IF_ERROR(c->GetAttr("dim", &dim));
  c->set_output(0, c->Matrix(c->Dim(keys, 0), dim));
  return absl::OkStatus();
}

absl::Status ExportShape(InferenceContext* c) {
  c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
  c->set_output(1, c->Matrix(InferenceContext::kUnknownDim, InferenceContext::kUnknownDim));
  c->set_output(2, c->Matrix(InferenceContext::kUnknownDim, InferenceContext::kUnknownDim));
  c->set_output(3, c->Vector(InferenceContext::kUnknownDim));
  return absl::OkStatus();
}

absl::Status KeysShape(InferenceContext* c) {
  c->set_output(0, c->input(1));
  return absl::OkStatus();
}

absl::Status StatsShape(InferenceContext* c) {
  c->set_output(0, c->Vector(3));
  return absl::OkStatus();
}

using tensorflow::shape_inference::NoOutputs;
using tensorflow::shape_inference::ScalarShape;

REGISTER_OP("CuckooTable")
    .Output("table: resource")
    .Attr("dim: int >= 1")
    .Attr("slots: int >= 0")
    .Attr("shards: int >= 1")
    .Attr("initializer: {'zeros', 'uniform', 'normal'}")
    .Attr("scale: float")
    .Attr("zero_prefix: int >= 0")
    .Attr("seed: int")
    .Attr("slot_value: float")
    .Attr("container: string = ''")
    .Attr("shared_name: string = ''")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc("The table of this shared_name, made if there is none.");
REGISTER_OP("CuckooLookup")
    .Input("table: resource")
    .Input("keys: int64")
    .Output("rows: float")
    .Attr("dim: int")
    .Attr("insert: bool")
    .SetIsStateful()
    .SetShapeFn(RowShape)
    .Doc("Weights of keys; a new key is inserted, or reads zeros where insert is false.");
REGISTER_OP("CuckooApplyAdagrad")
    .Input("table: resource")
    .Input("keys: int64")
    .Input("gradients: float")
    .Input("learning_rate: float")
    .Input("epsilon: float")
    .Output("applied: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc("a += g^2; w -= learning_rate * g / sqrt(a + epsilon), of the keys that have a row.");
REGISTER_OP("CuckooImport")
    .Input("table: resource")
    .Input("keys: int64")
    .Input("rows: float")
    .Input("slots: float")
    .Input("ticks: int64")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Sets whole rows.");
REGISTER_OP("CuckooExportSince")
    .Input("table: resource")
    .Input("tick: int64")
    .Output("keys: int64")
    .Output("rows: float")
    .Output("slots: float")
    .Output("ticks: int64")
    .SetIsStateful()
    .SetShapeFn(ExportShape)
    .Doc("Whole rows with a tick after the given one; all rows if it is 0.");
REGISTER_OP("CuckooRemove")
    .Input("table: resource")
    .Input("keys: int64")
    .Output("removed: bool")
    .SetIsStateful()
    .SetShapeFn(KeysShape)
    .Doc("Takes rows out, and says which keys had one.");
REGISTER_OP("CuckooTick")
    .Input("table: resource")
    .Output("tick: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc("The clock.");
REGISTER_OP("CuckooSetTick")
    .Input("table: resource")
    .Input("tick: int64")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Moves the clock on.");
REGISTER_OP("CuckooStats")
    .Input("table: resource")
    .Output("stats: int64")
    .SetIsStateful()
    .SetShapeFn(StatsShape)
    .Doc("Rows, places for keys, bytes.");

REGISTER_KERNEL_BUILDER(Name("CuckooTable").Device(DEVICE_CPU), TableOp);
REGISTER_KERNEL_BUILDER(Name("CuckooLookup").Device(DEVICE_CPU), LookupOp);
REGISTER_KERNEL_BUILDER(Name("CuckooApplyAdagrad").Device(DEVICE_CPU), ApplyAdagradOp);
REGISTER_KERNEL_BUILDER(Name("CuckooImport").Device(DEVICE_CPU), ImportOp);
REGISTER_KERNEL_BUILDER(Name("CuckooExportSince").Device(DEVICE_CPU), ExportSinceOp);
REGISTER_KERNEL_BUILDER(Name("CuckooRemove").Device(DEVICE_CPU), RemoveOp);
REGISTER_KERNEL_BUILDER(Name("CuckooTick").Device(DEVICE_CPU), TickOp);
REGISTER_KERNEL_BUILDER(Name("CuckooSetTick").Device(DEVICE_CPU), SetTickOp);
REGISTER_KERNEL_BUILDER(Name("CuckooStats").Device(DEVICE_CPU), StatsOp);

}  // namespace
}  // namespace cuckoo
