// A step that was checked, to be taken again: while layouts are the same, addresses are all that is looked
// at. To turn thousands of tensors into an op's lists, and to check each, costs more than to update small
// ones.
#pragma once
#include "optim/device_records.h"
#include "optim/snapshot.h"
#include "optim/staging.h"

namespace fastdl::optim {

// What is optional of a CPU step is a number here.
struct Scalars {
  optional<double> grad_scale, found_inf, max_grad_norm, grad_norm;
};
void run_step(RuleName rule, std::vector<Record>& records, const Scalars& given);

// Where a step runs; its records are the snapshot's.
class Executor {
 public:
  virtual ~Executor() = default;
  // Null pointers: not given. Returns false, with nothing done, where an operand is not as it must be.
  virtual bool step(Snapshot& snapshot, PyObject* grad_scale, PyObject* found_inf) = 0;
};

class OnCpu : public Executor {
 public:
  bool step(Snapshot& s, PyObject* grad_scale, PyObject* found_inf) override {
    Scalars given;
    if (!read(s, grad_scale, given.grad_scale) || !read(s, found_inf, given.found_inf)) return false;
    given.max_grad_norm = s.max_grad_norm();
    const py::gil_scoped_release release;
    run_step(s.rule(), s.records(), given);
    return true;
  }

 private:
  static bool read(const Snapshot& s, PyObject* given, optional<double>& value) {
    dlpack::Tensor t;
    ScalarType dtype;
    if (given == Py_None) return true;
    if (!s.exchange().describe(given, t) || t.device.type != dlpack::kCpu || !known_dtype(t.dtype, dtype))
      return false;
    value = value_of(t, dtype);
    return t.numel() == 1;
  }
};

class OnDevice : public Executor {
 public:
  // workspace() -> device memory of workspace_bytes(); pinned(bytes) -> tensor. A capture has no room for
  // them.
  OnDevice(const DeviceLibrary& library, Snapshot& s, const py::object& workspace, py::object pinned)
      : library_(library), staging_(library, std::move(pinned)) {
    if (library.is_capturing(s.exchange().stream(s.device())))
      throw py::value_error("OptimReplay: in a capture");
    workspace_ = workspace();
    dlpack::Tensor memory;
    if (!s.exchange().describe(workspace_.ptr(), memory)) throw py::type_error("OptimReplay: no workspace");
    base_ = static_cast<char*>(memory.address());
    std::vector<Record>& records = s.records();
    step_.tiles = number_tiles(records);
    step_.count = int32_t(records.size());
    step_.row_count = int32_t(s.rows().size());
    step_.counts = any_step(records);
    step_.partials = reinterpret_cast<double*>(base_);
    step_.records = reinterpret_cast<const DeviceRecord*>(base_ + kRecordsAt);
    table_.resize(size_t(table_bytes(step_.row_count, step_.count)));
    for (const Record& r : records) {
      const bool float_master = !r.master.data || r.master.dtype == ScalarType::Float;
      if (!float_master) throw py::value_error("OptimReplay: master_param must be float32");
    }
    const size_t largest = std::max(table_.size(), records.size() * sizeof(DeviceRecord));
    for (int slot = 0; slot < 2; ++slot) staging_.reserve(largest);
  }

  bool step(Snapshot& s, PyObject* grad_scale, PyObject* found_inf) override {
    if (!find(s, grad_scale, step_.grad_scale) || !find(s, found_inf, step_.found_inf)) {
      return false;
    }
    const CurrentDevice current(library_, s.device().index);
    void* const stream = s.exchange().stream(s.device());
    const bool capturing = library_.is_capturing(stream);
    if (s.has_moved() && !send_records(s, stream, capturing)) return false;
    step_.max_grad_norm = s.max_grad_norm().value_or(0);
    fill_table(s);
    step_.table = nullptr;
    if (!library_.fits_arguments(int64_t(table_.size()))) {
      char* const place = base_ + table_at(step_.count);
      staging_.send(place, table_.data(), table_.size(), stream, capturing);
      step_.table = place;
    }
    captured_ = captured_ || capturing;
    const Options& first = s.rows()[0].options;
    check_launch(library_.launch_step(s.rule(), uniform_, first, step_, table_.data(), stream),
                 "optim_step_");
    return true;
  }

  // Whether a graph reads the workspace and the pinned memory.
  bool is_captured() const { return captured_; }
  size_t pinned_slots() const { return staging_.size(); }

 private:
  class CurrentDevice {
   public:
    CurrentDevice(const DeviceLibrary& library, int device)
        : library_(library), before_(library.exchange_device(device)) {}
    CurrentDevice(const CurrentDevice&) = delete;
    ~CurrentDevice() { library_.exchange_device(before_); }

   private:
    const DeviceLibrary& library_;
    int before_;
  };

  static bool find(const Snapshot& s, PyObject* given, const float*& pointer) {
    dlpack::Tensor t;
    pointer = nullptr;
    if (given == Py_None) return true;
    if (!s.exchange().describe(given, t) || t.device != s.device()) return false;
    pointer = static_cast<const float*>(t.address());
    return t.numel() == 1 && t.dtype.code == dlpack::kFloat && t.dtype.bits == 32;
  }

  // A graph would send the records at every replay, those of a step that may be long past; and what a graph
  // reads stays as it was.
  bool send_records(Snapshot& s, void* stream, bool capturing) {
    if (capturing || captured_) return false;
    std::vector<DeviceRecord> records;
    uniform_ = true;
    for (const Record& r : s.records()) {
      const auto row = reinterpret_cast<const Row*>(r.options) - s.rows().data();
      records.push_back(device_record(r, int32_t(row), [](const Operand& operand) { return operand.data; }));
      uniform_ =
          uniform_ && !records.back().in_double && same_flags(s.rule(), s.rows()[0].options, *r.options);
    }
    staging_.send(base_ + kRecordsAt, records.data(), records.size() * sizeof(DeviceRecord), stream, false);
    return true;
  }

  void fill_table(Snapshot& s) {
    std::memcpy(table_.data(), s.rows().data(), s.rows().size() * sizeof(Row));
    void** grad = reinterpret_cast<void**>(table_.data() + s.rows().size() * sizeof(Row));
    for (const Record& r : s.records()) *grad++ = r.grad.data;
  }

  const DeviceLibrary& library_;
  py::object workspace_;
  char* base_;
  Staging staging_;
  StepArguments step_{};
  std::vector<char> table_;
  bool uniform_ = true, captured_ = false;
};

class Replay {
 public:
  // library: address of a DeviceLibrary, 0 for CPU. See fastdl/optim/_replay.py for the rest.
  Replay(int64_t rule, py::list groups, py::dict state, optional<double> max_grad_norm, py::object refresh,
         int64_t library, py::object workspace, py::object pinned)
      : snapshot_(RuleName(rule), std::move(groups), std::move(state), max_grad_norm, std::move(refresh)) {
    snapshot_.release();
    if (library == 0) {
      executor_ = std::make_unique<OnCpu>();
      return;
    }
    auto device = std::make_unique<OnDevice>(*reinterpret_cast<const DeviceLibrary*>(library), snapshot_,
                                             std::move(workspace), std::move(pinned));
    device_ = device.get();
    executor_ = std::move(device);
  }

  // Takes the step; returns lists of what it wrote to, for the version counters, or None, with nothing done,
  // where more than addresses and options has changed.
  py::object step(py::list groups, py::dict state, py::object grad_scale, py::object found_inf) {
    py::object written = py::none();
    if (snapshot_.look(groups, std::move(state)) &&
        executor_->step(snapshot_, grad_scale.ptr(), found_inf.ptr())) {
      written = snapshot_.written(groups);
    }
    snapshot_.release();
    return written;
  }

  bool is_captured() const { return device_ && device_->is_captured(); }
  size_t pinned_slots() const { return device_ ? device_->pinned_slots() : 0; }

 private:
  Snapshot snapshot_;
  std::unique_ptr<Executor> executor_;
  OnDevice* device_ = nullptr;
};

}  // namespace fastdl::optim
