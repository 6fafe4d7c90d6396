// Declares the table's ops to TensorFlow: inputs, attributes, shapes. The kernels are in ops.cc.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace cuckoo {
namespace {

using tensorflow::shape_inference::InferenceContext;

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

absl::Status UnknownVectorShape(InferenceContext* c) {
  c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
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
    .Attr("dims: list(int) >= 1")
    .Attr("optimizers: list({'sgd', 'momentum', 'nesterov', 'adagrad', 'adam', 'ftrl'})")
    .Attr("settings: list(float)")
    .Attr("initializers: list({'zeros', 'constant', 'uniform', 'normal'})")
    .Attr("scales: list(float)")
    .Attr("seed: int")
    .Attr("shards: int >= 1")
    .Attr("admit_after: int = 1")
    .Attr("admit_probability: float = 1.0")
    .Attr("pending_ids: int >= 1 = 1")
    .Attr("zero_nonfinite: bool = false")
    .Attr("label: string = ''")
    .Attr("container: string = ''")
    .Attr("shared_name: string = ''")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc("The table of this shared_name, made if there is none.");
REGISTER_OP("CuckooLookup")
    .Input("table: resource")
    .Input("keys: int64")
    .Input("sights: int64")
    .Output("rows: float")
    .Attr("dim: int")
    .Attr("insert: bool")
    .SetIsStateful()
    .SetShapeFn(RowShape)
    .Doc("Weights of keys; a new key is inserted if it is admitted; else, and where insert is false, it reads zeros.");
REGISTER_OP("CuckooApply")
    .Input("table: resource")
    .Input("keys: int64")
    .Input("gradients: float")
    .Input("learning_rates: float")
    .Output("applied: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc("One step of the rows of keys, repeated keys' gradients summed; how many rows were changed.");
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
REGISTER_OP("CuckooEvict")
    .Input("table: resource")
    .Input("tick: int64")
    .Output("keys: int64")
    .SetIsStateful()
    .SetShapeFn(UnknownVectorShape)
    .Doc("Takes out the rows with a tick up to the given one, and says which.");
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
REGISTER_OP("CuckooSave")
    .Input("table: resource")
    .Input("folder: string")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Writes a file a shard.");
REGISTER_OP("CuckooRestore")
    .Input("table: resource")
    .Input("folder: string")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Reads what CuckooSave wrote into an empty table.");
REGISTER_OP("CuckooStats")
    .Input("table: resource")
    .Output("stats: int64")
    .SetIsStateful()
    .SetShapeFn(StatsShape)
    .Doc("Rows, places for keys, bytes.");

}  // namespace
}  // namespace cuckoo
