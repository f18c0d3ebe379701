// One optimizer step over all parameters on the device. What the kernel must know of them is written there
// once, and again when a pointer has changed: in the steady state a step is one launch, without copies or
// allocation.
#include "optim/records.h"

namespace fastdl::optim {
namespace {

static_assert(sizeof(StepArguments) <= 4096, "what a launch carries everywhere");

Dtype tag(ScalarType dtype) {
  if (dtype == ScalarType::Double) return kFloat64;
  if (dtype == ScalarType::Half) return kFloat16;
  return dtype == ScalarType::BFloat16 ? kBfloat16 : kFloat32;
}

// Contiguous copies of operands that are no range of memory; what was written goes back after the launch.
class StandIns {
 public:
  void* operator()(const Operand& operand, bool written) {
    if (!operand.strides) return operand.data;
    copies_.push_back({*operand.tensor, torch::stable::contiguous(*operand.tensor), written});
    return copies_.back().copy.data_ptr();
  }
  void write_back() {
    for (Copy& c : copies_) {
      if (c.written) torch::stable::copy_(c.original, c.copy);
    }
  }

 private:
  struct Copy {
    Tensor original, copy;
    bool written;
  };
  std::vector<Copy> copies_;
};

DeviceRecord device_record(const Record& r, const Options* rows, StandIns& memory) {
  DeviceRecord d;
  std::memset(&d, 0, sizeof d);  // compared by bytes
  d.param = memory(r.param, true);
  d.grad = memory(r.grad, false);
  d.param_dtype = tag(r.param.dtype);
  d.grad_dtype = tag(r.grad.dtype);
  d.in_double = d.param_dtype == kFloat64 || d.grad_dtype == kFloat64;
  for (int k = 0; k < kMaxStates && r.state[k].tensor; ++k) {
    d.state[k] = memory(r.state[k], true);
    d.state_dtype[k] = tag(r.state[k].dtype);
    d.in_double |= d.state_dtype[k] == kFloat64;
  }
  if (r.master.tensor) {
    STD_TORCH_CHECK(r.master.dtype == ScalarType::Float, "optim_step_: master_param must be float32, got ",
                    dtype_name(r.master.dtype));
    d.master = memory(r.master, true);
  }
  if (r.ema.tensor) {
    d.ema = memory(r.ema, true);
    d.ema_dtype = tag(r.ema.dtype);
    d.in_double |= d.ema_dtype == kFloat64;
  }
  d.step = r.step.data;
  d.step_dtype = tag(r.step.dtype);
  d.numel = r.numel;
  d.row = int32_t(r.options - rows);
  d.ordinal = r.ordinal;
  return d;
}

// The same update rule to the last flag: what a kernel of one rule type asks for.
bool same_flags(RuleName rule, const Options& a, const Options& b) {
  return state_count(rule, a) == state_count(rule, b) && (a.centered != 0) == (b.centered != 0);
}

Tensor bytes_like(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {&bytes, 1}, ScalarType::Byte);
}

template <class T>
const T* pointer(const optional<Tensor>& t, ScalarType dtype, const char* name) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->numel() == 1 && t->scalar_type() == dtype, "optim_step_: ", name,
                  " must be one value of ", dtype_name(dtype), ", got ", t->numel(), " of ",
                  dtype_name(t->scalar_type()));
  return static_cast<const T*>(t->data_ptr());
}

}  // namespace

// See fastdl/optim/_step.py for the arguments. workspace: [device bytes, the host's copy of them] or empty.
void optim_step(int64_t rule, std::vector<Tensor> params, std::vector<Tensor> grads,
                std::vector<Tensor> states, std::vector<Tensor> lrs, std::vector<int64_t> counts,
                std::vector<double> options, optional<Tensor> grad_scale, optional<Tensor> found_inf,
                optional<double> max_grad_norm, optional<Tensor> grad_norm, optional<Tensor> seed,
                std::vector<Tensor> workspace) {
  if (params.empty()) return;
  const RuleName name = RuleName(rule);
  const std::vector<Options> rows = read_options(options);
  const Lists lists{params, grads, states, counts};
  check_lists(lists, rows.size());
  const std::vector<Record> records = RecordReader(name, lists).read(rows);

  StepArguments a{};
  a.grad_scale = pointer<float>(grad_scale, ScalarType::Float, "grad_scale");
  a.found_inf = pointer<float>(found_inf, ScalarType::Float, "found_inf");
  a.grad_norm = pointer<float>(grad_norm, ScalarType::Float, "grad_norm");
  a.seed = pointer<int64_t>(seed, ScalarType::Long, "seed");
  a.max_grad_norm = max_grad_norm.value_or(0);
  std::vector<Row> table(rows.size());
  for (size_t k = 0; k < rows.size(); ++k) {
    table[k].options = rows[k];
    if (rows[k].lr_index < 0) continue;
    const Tensor& lr = lrs.at(size_t(rows[k].lr_index));
    STD_TORCH_CHECK(lr.numel() == 1, "optim_step_: lr must have one element, got ", lr.numel());
    dispatch_floating("optim_step_", lr.scalar_type(), [](auto) {});
    table[k].lr = lr.data_ptr();
    table[k].lr_dtype = tag(lr.scalar_type());
  }

  DeviceGuard guard(params[0]);
  StandIns memory;
  std::vector<DeviceRecord> device_records;
  bool uniform = true;
  for (const Record& r : records) {
    DeviceRecord d = device_record(r, rows.data(), memory);
    d.first_tile = int32_t(a.tiles);
    a.tiles += (d.numel + kTile - 1) / kTile;
    uniform = uniform && !d.in_double && same_flags(name, rows[0], *r.options);
    device_records.push_back(d);
  }
  STD_TORCH_CHECK(a.tiles < INT32_MAX, "optim_step_: more than 2^43 elements");
  a.count = int32_t(device_records.size());

  const int64_t bytes = workspace_bytes(a.count), head = kMaxBlocks * int64_t(sizeof(double));
  const bool keeps = workspace.size() == 2 && workspace[0].numel() >= bytes && workspace[1].numel() >= bytes;
  const Tensor device = keeps ? workspace[0] : bytes_like(params[0], bytes);
  char* known = keeps ? static_cast<char*>(workspace[1].data_ptr()) + head : nullptr;
  if (!known || std::memcmp(known, device_records.data(), size_t(bytes - head)) != 0) {
    Tensor target = device;
    upload(torch::stable::narrow(target, 0, head, bytes - head), device_records.data(), bytes - head);
    if (known) std::memcpy(known, device_records.data(), size_t(bytes - head));
  }
  a.partials = static_cast<double*>(device.data_ptr());
  a.records = reinterpret_cast<const DeviceRecord*>(static_cast<char*>(device.data_ptr()) + head);
  optional<Tensor> long_table;
  if (table.size() > kInlineRows) {
    const int64_t size = int64_t(table.size() * sizeof(Row));
    long_table = bytes_like(params[0], size);
    upload(*long_table, table.data(), size);
    a.rows = static_cast<const Row*>(long_table->data_ptr());
  } else {
    std::copy(table.begin(), table.end(), a.inline_rows);
  }
  check_launch(launch_step(name, uniform, rows[0], a, current_stream(params[0])), "optim_step_");
  memory.write_back();
}

FASTDL_KERNEL_LIBRARY(m) { m.impl("optim_step_", TORCH_BOX(&optim_step)); }

}  // namespace fastdl::optim
