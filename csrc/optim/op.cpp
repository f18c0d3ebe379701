// One optimizer step over all parameters on the device. What the kernel must know of them is written there
// once, and again when a pointer has changed: in the steady state a step is one launch, without copies or
// allocation.
#include "optim/device_records.h"

namespace fastdl::optim {
namespace {

static_assert(sizeof(StepArguments) <= kArguments, "what a launch carries everywhere");

// Contiguous copies of operands that are no range of memory; what was written goes back after the launch.
class StandIns {
 public:
  void* operator()(const Operand& operand, bool written) {
    if (!operand.strides) return operand.data;
    copies_.push_back({*operand.tensor, torch::stable::contiguous(*operand.tensor), written});
    return copies_.back().copy.data_ptr();
  }
  bool empty() const { return copies_.empty(); }
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

// The gradients' addresses and the rows of options, as the kernel reads them.
std::vector<char> make_table(const std::vector<Options>& rows, const std::vector<Tensor>& lrs,
                             const std::vector<void*>& grads) {
  std::vector<char> table(size_t(table_bytes(int64_t(rows.size()), int64_t(grads.size()))));
  Row* row = reinterpret_cast<Row*>(table.data());
  for (const Options& o : rows) {
    Row r{o, nullptr, kFloat32};
    if (o.lr_index >= 0) {
      const Tensor& lr = lrs.at(size_t(o.lr_index));
      STD_TORCH_CHECK(lr.numel() == 1, "optim_step_: lr must have one element, got ", lr.numel());
      dispatch_floating("optim_step_", lr.scalar_type(), [](auto) {});
      r.lr = lr.data_ptr();
      r.lr_dtype = tag(lr.scalar_type());
    }
    *row++ = r;
  }
  std::memcpy(row, grads.data(), grads.size() * sizeof(void*));
  return table;
}

// A graph would send at every replay what the host holds at the capture alone.
void check_capture(bool sends, bool copies) {
  STD_TORCH_CHECK(
      !copies,
      "optim_step_: a graph cannot capture this step: some parameter, gradient or state has gaps in "
      "memory or another layout than its parameter; make them contiguous");
  STD_TORCH_CHECK(
      !sends,
      "optim_step_: a graph cannot capture this step: the device does not know its parameters and "
      "states yet, or they have moved since the last step; take two steps outside of the capture first");
}

// A workspace that a graph reads must stay as it is: the host's copy begins with this mark, see
// FusedOptimizer._workspace.
void mark_captured(Tensor& host) { *static_cast<char*>(host.data_ptr()) = 1; }

}  // namespace

// See fastdl/optim/_step.py for the arguments. workspace: [device bytes, the host's copy of them] or empty.
void optim_step(int64_t rule, std::vector<Tensor> params, std::vector<Tensor> grads,
                std::vector<Tensor> states, std::vector<Tensor> lrs, std::vector<int64_t> counts,
                std::vector<double> options, optional<Tensor> grad_scale, optional<Tensor> found_inf,
                optional<double> max_grad_norm, optional<Tensor> grad_norm, std::vector<int64_t> ordinals,
                std::vector<Tensor> workspace) {
  if (params.empty()) return;
  const RuleName name = RuleName(rule);
  const std::vector<Options> rows = read_options(options);
  const Lists lists{params, grads, states, counts, ordinals};
  check_lists(lists, rows.size());
  std::vector<Record> records = RecordReader(name, lists).read(rows);

  StepArguments a{};
  a.tiles = number_tiles(records);
  a.count = int32_t(records.size());
  a.row_count = int32_t(rows.size());
  a.counts = any_step(records);
  a.grad_scale = pointer<float>(grad_scale, ScalarType::Float, "grad_scale");
  a.found_inf = pointer<float>(found_inf, ScalarType::Float, "found_inf");
  a.grad_norm = pointer<float>(grad_norm, ScalarType::Float, "grad_norm");
  a.max_grad_norm = max_grad_norm.value_or(0);
  for (const Record& r : records) {
    STD_TORCH_CHECK(!r.master.tensor || r.master.dtype == ScalarType::Float,
                    "optim_step_: master_param must be float32, got ", dtype_name(r.master.dtype));
  }

  DeviceGuard guard(params[0]);
  StandIns memory;
  std::vector<DeviceRecord> device_records;
  std::vector<void*> addresses;
  bool uniform = true;
  for (const Record& r : records) {
    addresses.push_back(memory(r.grad, r.options->zero_grad != 0));
    device_records.push_back(device_record(r, int32_t(r.options - rows.data()),
                                           [&](const Operand& operand) { return memory(operand, true); }));
    uniform = uniform && !device_records.back().in_double && same_flags(name, rows[0], *r.options);
  }
  std::vector<char> table = make_table(rows, lrs, addresses);

  const int64_t bytes = a.count * int64_t(sizeof(DeviceRecord)), all = workspace_bytes(a.count, a.row_count);
  const bool keeps = workspace.size() == 2 && workspace[0].numel() >= all && workspace[1].numel() >= all;
  const Tensor device = keeps ? workspace[0] : bytes_like(params[0], all);
  char* known = keeps ? static_cast<char*>(workspace[1].data_ptr()) + kRecordsAt : nullptr;
  void* const stream = current_stream(params[0]);
  const bool moved = !known || std::memcmp(known, device_records.data(), size_t(bytes)) != 0;
  const bool fits = fits_arguments(int64_t(table.size()));
  if (device_library().is_capturing(stream)) {
    check_capture(moved || !fits, !memory.empty());
    mark_captured(workspace[1]);
  }
  if (moved) {
    Tensor target = device;
    upload(torch::stable::narrow(target, 0, kRecordsAt, bytes), device_records.data(), bytes);
    if (known) std::memcpy(known, device_records.data(), size_t(bytes));
  }
  char* base = static_cast<char*>(device.data_ptr());
  a.partials = reinterpret_cast<double*>(base);
  a.records = reinterpret_cast<const DeviceRecord*>(base + kRecordsAt);
  if (!fits) {
    Tensor target = device;
    upload(torch::stable::narrow(target, 0, table_at(a.count), int64_t(table.size())), table.data(),
           int64_t(table.size()));
    a.table = base + table_at(a.count);
    if (known)
      std::memset(known + bytes, 0xFF, table.size());  // no record of a longer step is there any more
  }
  check_launch(launch_step(name, uniform, rows[0], a, table.data(), stream), "optim_step_");
  memory.write_back();
}

// The address of this library's functions, for fastdl::optim::Replay.
int64_t optim_library(Tensor) { return reinterpret_cast<int64_t>(&device_library()); }

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("optim_step_", TORCH_BOX(&optim_step));
  m.impl("optim_library", TORCH_BOX(&optim_library));
}

}  // namespace fastdl::optim
