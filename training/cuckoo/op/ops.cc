// The table's kernels: a thin one for each verb of table.h. Their signatures are in signatures.cc.
#include <atomic>
#include <memory>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "training/cuckoo/core/gradients.h"
#include "training/cuckoo/op/file_ops.h"
#include "training/cuckoo/op/table_op.h"
#include "training/cuckoo/op/verb.h"

// library.py reads this from the file before it loads it: another TensorFlow would crash, not complain.
extern "C" __attribute__((used, visibility("default"))) const char cuckoo_built_for[] =
    "CUCKOO_BUILT_FOR_TENSORFLOW=" CUCKOO_TENSORFLOW ";";

namespace cuckoo {
namespace {

using tensorflow::DEVICE_CPU;

class LookupOp : public Verb {
 public:
  explicit LookupOp(OpKernelConstruction* c) : Verb(c) {
    OP_REQUIRES_OK(c, c->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(c, c->GetAttr("insert", &insert_));
  }

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    const int64_t* keys;
    size_t n;
    const Tensor* sights;
    float* rows;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, c->input("sights", &sights));
    const int64_t* sights_of = sights->NumElements() == 0 ? nullptr : sights->flat<int64_t>().data();
    OP_REQUIRES(c, sights_of == nullptr || sights->shape() == c->input(1).shape(),
                InvalidArgument("sights has shape ", sights->shape().DebugString(), ", allowed is [", n, "] or [0]"));
    for (size_t i = 0; sights_of != nullptr && i < n; ++i) {
      OP_REQUIRES(c, sights_of[i] >= 1, InvalidArgument("sights holds ", sights_of[i], ", allowed is 1 or more"));
    }
    OP_REQUIRES(c, table.layout().dim() == static_cast<size_t>(dim_),
                InvalidArgument("dim is ", dim_, ", the table's is ", table.layout().dim()));
    OP_REQUIRES_OK(c, Output(c, 0, {n, table.layout().dim()}, &rows));
    const size_t dim = table.layout().dim();
    // With admission the order of sights speaks: one thread.
    const size_t parts = insert_ && !table.config().admission.all() ? 1 : Parts(c, n);
    InParts(c, parts, [&](size_t part) {
      const size_t begin = n * part / parts, count = n * (part + 1) / parts - begin;
      if (insert_) {
        table.Lookup(keys + begin, count, rows + begin * dim, sights_of == nullptr ? nullptr : sights_of + begin);
      } else {
        table.Find(keys + begin, count, rows + begin * dim);
      }
    });
  }

  int64_t dim_;
  bool insert_;
};

class ApplyOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    const Layout& layout = table.layout();
    const size_t dim = layout.dim();
    const int64_t* keys;
    size_t n;
    const float *values, *rates;
    int64_t* applied;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Matrix(c, "gradients", n, dim, &values));
    OP_REQUIRES_OK(c, Rates(c, resource, &rates));
    OP_REQUIRES_OK(c, Output(c, 0, {}, &applied));
    // All parts are read and found finite before the first row is changed.
    std::vector<std::unique_ptr<Gradients>> batch(Parts(c, n));
    std::atomic<bool> finite = true;
    InParts(c, batch.size(), [&](size_t part) {
      batch[part] = std::make_unique<Gradients>(keys, n, values, dim, part, batch.size());
      if (resource->zero_nonfinite) {
        batch[part]->ZeroNonfinite();
      } else if (!batch[part]->finite()) {
        finite = false;
      }
    });
    OP_REQUIRES(c, finite,
                InvalidArgument("table ", resource->name,
                                ": gradients hold NaN or Inf, allowed are finite numbers (nonfinite='zero' reads them"
                                " as 0)"));
    std::atomic<size_t> updated = 0;
    InParts(c, batch.size(), [&](size_t part) {
      updated += table.Update(batch[part]->keys(), batch[part]->size(), GradientStep{layout, *batch[part], rates});
    });
    *applied = static_cast<int64_t>(updated);
  }

  static absl::Status Rates(OpKernelContext* c, TableResource* resource, const float** rates) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(c->input("learning_rates", &tensor));
    const TensorShape want({static_cast<int64_t>(resource->table.layout().segments().size())});
    if (tensor->shape() != want) {
      return InvalidArgument("learning_rates has shape ", tensor->shape().DebugString(), ", allowed is ",
                             want.DebugString(), ": a rate a segment");
    }
    *rates = tensor->flat<float>().data();
    for (int64_t s = 0; s < tensor->NumElements(); ++s) {
      const bool divides = resource->table.layout().segments()[s].optimizer.rule == Rule::kFtrl;
      if (Finite(*rates + s, 1) && (divides ? (*rates)[s] > 0 : (*rates)[s] >= 0)) continue;
      return InvalidArgument("table ", resource->name, ": learning_rates holds ", (*rates)[s],
                             ", allowed is a finite number ", divides ? "> 0 for FTRL" : ">= 0");
    }
    return absl::OkStatus();
  }
};

class ImportOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    const int64_t* keys;
    size_t n;
    const float *rows, *slots;
    const Tensor* ticks;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Matrix(c, "rows", n, table.layout().dim(), &rows));
    OP_REQUIRES_OK(c, Matrix(c, "slots", n, table.layout().slot_floats(), &slots));
    OP_REQUIRES_OK(c, c->input("ticks", &ticks));
    OP_REQUIRES(
        c, ticks->shape() == c->input(1).shape(),
        InvalidArgument("ticks has shape ", ticks->shape().DebugString(), ", allowed is [", n, "]: a tick a key"));
    std::vector<uint32_t> narrow(n);
    for (size_t i = 0; i < n; ++i) OP_REQUIRES_OK(c, ToTick("ticks", ticks->flat<int64_t>()(i), &narrow[i]));
    const size_t parts = Parts(c, n);
    InParts(c, parts, [&](size_t part) { table.Import(keys, n, rows, slots, narrow.data(), {part, parts}); });
  }
};

class ExportSinceOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    const Table& table = resource->table;
    uint32_t tick;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    const size_t dim = table.layout().dim(), slot_floats = table.layout().slot_floats();
    const std::vector<int64_t> keys = table.KeysSince(tick);
    const size_t n = keys.size();
    Tensor out_keys, out_rows, out_slots, out_ticks;
    OP_REQUIRES_OK(c, Temporary<int64_t>(c, {n}, &out_keys));
    OP_REQUIRES_OK(c, Temporary<float>(c, {n, dim}, &out_rows));
    OP_REQUIRES_OK(c, Temporary<float>(c, {n, slot_floats}, &out_slots));
    OP_REQUIRES_OK(c, Temporary<int64_t>(c, {n}, &out_ticks));
    auto *rows = out_rows.flat<float>().data(), *slots = out_slots.flat<float>().data();
    const std::unique_ptr<bool[]> found(new bool[n]);
    const std::unique_ptr<uint32_t[]> ticks(new uint32_t[n]);
    const size_t parts = Parts(c, n);
    InParts(c, parts, [&](size_t part) {
      const size_t begin = n * part / parts, count = n * (part + 1) / parts - begin;
      table.Read(keys.data() + begin, count, rows + begin * dim, slots + begin * slot_floats, &ticks[begin],
                 &found[begin]);
    });
    // A row that another thread removed meanwhile is left out; in place, for a second copy would be another delta.
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) {
      if (!found[i]) continue;
      out_keys.flat<int64_t>()(left) = keys[i];
      out_ticks.flat<int64_t>()(left) = ticks[i];
      if (left < i) {
        std::copy_n(rows + i * dim, dim, rows + left * dim);
        std::copy_n(slots + i * slot_floats, slot_floats, slots + left * slot_floats);
      }
      ++left;
    }
    int output = 0;
    for (const Tensor& tensor : {out_keys, out_rows, out_slots, out_ticks}) {
      c->set_output(output++, left == n ? tensor : tensor.Slice(0, left));
    }
  }
};

class RemoveOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    const int64_t* keys;
    size_t n;
    bool* removed;
    OP_REQUIRES_OK(c, Keys(c, &keys, &n));
    OP_REQUIRES_OK(c, Output(c, 0, {n}, &removed));
    table.Remove(keys, n, removed);
  }
};

class EvictOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    uint32_t tick;
    int64_t* out;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    std::vector<int64_t> keys;
    resource->table.Evict(tick, &keys);
    OP_REQUIRES_OK(c, Output(c, 0, {keys.size()}, &out));
    std::copy(keys.begin(), keys.end(), out);
  }
};

class TickOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    int64_t* tick;
    OP_REQUIRES_OK(c, Output(c, 0, {}, &tick));
    *tick = table.tick();
  }
};

class SetTickOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    uint32_t tick;
    OP_REQUIRES_OK(c, TickInput(c, &tick));
    OP_REQUIRES(c, table.SetTick(tick),
                InvalidArgument("tick is ", tick, ", allowed is the present one (", table.tick(), ") or a later one"));
  }
};

class StatsOp : public Verb {
 public:
  using Verb::Verb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    Table& table = resource->table;
    int64_t* out;
    OP_REQUIRES_OK(c, Output(c, 0, {3}, &out));
    const Stats stats = table.stats();
    out[0] = static_cast<int64_t>(stats.size);
    out[1] = static_cast<int64_t>(stats.capacity);
    out[2] = static_cast<int64_t>(stats.bytes);
  }
};

REGISTER_KERNEL_BUILDER(Name("CuckooTable").Device(DEVICE_CPU), TableOp);
REGISTER_KERNEL_BUILDER(Name("CuckooLookup").Device(DEVICE_CPU), LookupOp);
REGISTER_KERNEL_BUILDER(Name("CuckooApply").Device(DEVICE_CPU), ApplyOp);
REGISTER_KERNEL_BUILDER(Name("CuckooImport").Device(DEVICE_CPU), ImportOp);
REGISTER_KERNEL_BUILDER(Name("CuckooExportSince").Device(DEVICE_CPU), ExportSinceOp);
REGISTER_KERNEL_BUILDER(Name("CuckooRemove").Device(DEVICE_CPU), RemoveOp);
REGISTER_KERNEL_BUILDER(Name("CuckooEvict").Device(DEVICE_CPU), EvictOp);
REGISTER_KERNEL_BUILDER(Name("CuckooTick").Device(DEVICE_CPU), TickOp);
REGISTER_KERNEL_BUILDER(Name("CuckooSetTick").Device(DEVICE_CPU), SetTickOp);
REGISTER_KERNEL_BUILDER(Name("CuckooSave").Device(DEVICE_CPU), SaveOp);
REGISTER_KERNEL_BUILDER(Name("CuckooRestore").Device(DEVICE_CPU), RestoreOp);
REGISTER_KERNEL_BUILDER(Name("CuckooStats").Device(DEVICE_CPU), StatsOp);

}  // namespace
}  // namespace cuckoo
