// From the op's flat lists to one record per parameter. All checks are here: nothing has been written when
// one fails.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include "optim/api.h"
#include "torch_glue.h"

namespace fastdl::optim {

struct Operand {
  void* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  const int64_t* strides = nullptr;  // null: element i of the parameter is element i of the memory
  const Tensor* tensor = nullptr;
};

struct Record {
  Operand param, grad, state[kMaxStates], master, ema;
  Operand step;  // 0-dim; see has_step
  const Options* options;
  const int64_t* sizes;
  int64_t dim, numel, first_tile;
  uint32_t ordinal;  // place among the optimizer's parameters: the random stream of its rounding
};

struct Lists {
  const std::vector<Tensor>&params, &grads, &states;  // states: each parameter's in turn (see read_records)
  const std::vector<int64_t>&counts, &ordinals;  // parameters per row of options; Record::ordinal or none
};

inline bool is_low_precision(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

// Whether a parameter's steps are counted: SGD's formula does without, the bits of rounding do not.
inline bool has_step(RuleName rule, const Options& o) { return rule != kSgd || o.stochastic_rounding != 0; }

inline int state_count(RuleName rule, const Options& o) {
  switch (rule) {
    case kSgd:
      return o.momentum != 0;
    case kAdam:
      return 2 + (o.amsgrad != 0);
    case kRmsProp:
      return 1 + (o.centered != 0) + (o.momentum > 0);
    case kAdagrad:
      return 1;
  }
  return 0;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() && a.dim() == b.dim() &&
         std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  return std::equal(a.strides().begin(), a.strides().end(), b.strides().begin());
}

// Whether the elements fill memory without gaps or overlaps, in any order of dimensions (channels_last,
// .t()).
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline void check_written(const Tensor& t) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    STD_TORCH_CHECK(
        t.stride(d) != 0 || t.size(d) < 2,
        "unsupported operation: more than one element of the written-to tensor refers to a single memory "
        "location. Please clone() the tensor before performing the operation.");
  }
}

class RecordReader {
 public:
  RecordReader(RuleName rule, const Lists& lists) : rule_(rule), lists_(lists) {}

  // Each parameter's states: [step, see has_step], the rule's, [master], [ema].
  std::vector<Record> read(const std::vector<Options>& options) {
    std::vector<Record> records(lists_.params.size());
    size_t i = 0;
    for (size_t row = 0; row < options.size(); ++row) {
      for (int64_t k = 0; k < lists_.counts[row]; ++k, ++i) {
        STD_TORCH_CHECK(i < records.size(), "optim_step_: more parameters counted than given");
        fill(records[i], i, options[row]);
      }
    }
    STD_TORCH_CHECK(i == records.size() && next_ == lists_.states.size(),
                    "optim_step_: the lists do not fit the options");
    return records;
  }

 private:
  void fill(Record& r, size_t i, const Options& o) {
    const Tensor& param = lists_.params[i];
    r.options = &o;
    r.sizes = param.sizes().data();
    r.dim = param.dim();
    r.numel = param.numel();
    r.ordinal = uint32_t(lists_.ordinals.empty() ? int64_t(i) : lists_.ordinals[i]);
    std::array<std::pair<Operand*, const Tensor*>, kMaxStates + 4> operands;
    size_t n = 0;
    operands[n++] = {&r.param, &param};
    operands[n++] = {&r.grad, &lists_.grads[i]};
    if (has_step(rule_, o)) {
      const Tensor& step = next_state();
      STD_TORCH_CHECK(
          step.numel() == 1 &&
              (step.scalar_type() == ScalarType::Float || step.scalar_type() == ScalarType::Double),
          "optim_step_: step must be one float32 or float64 value, got ", dtype_name(step.scalar_type()));
      r.step = operand(step);
    }
    for (int k = 0; k < state_count(rule_, o); ++k) operands[n++] = {&r.state[k], &next_state()};
    if (o.master_weights != 0 && is_low_precision(param.scalar_type()))
      operands[n++] = {&r.master, &next_state()};
    if (o.ema_decay >= 0) operands[n++] = {&r.ema, &next_state()};

    // Rounding is keyed on the logical element index, which a permuted walk over memory would lose.
    bool flat = o.stochastic_rounding != 0 ? param.is_contiguous() : is_dense(param);
    for (size_t k = 0; k < n; ++k) {
      const Tensor& t = *operands[k].second;
      STD_TORCH_CHECK(same_shape(param, t), "optim_step_: parameter ", i, " has ", param.numel(),
                      " elements in ", param.dim(), " dimensions, its ", k == 1 ? "gradient" : "state",
                      " has ", t.numel(), " in ", t.dim(), "; they must have one shape");
      dispatch_floating("optim_step_", t.scalar_type(), [](auto) {});
      if (k != 1 || o.zero_grad != 0) check_written(t);
      flat = flat && same_strides(param, t);
    }
    for (size_t k = 0; k < n; ++k) {
      *operands[k].first = operand(*operands[k].second);
      if (!flat && !operands[k].second->is_contiguous()) {
        operands[k].first->strides = operands[k].second->strides().data();
      }
    }
  }

  const Tensor& next_state() {
    STD_TORCH_CHECK(next_ < lists_.states.size(), "optim_step_: fewer states than the options ask for");
    return lists_.states[next_++];
  }

  static Operand operand(const Tensor& t) { return {t.data_ptr(), t.scalar_type(), nullptr, &t}; }

  RuleName rule_;
  const Lists& lists_;
  size_t next_ = 0;
};

inline double read_scalar(const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 1, "optim_step_: lr, grad_scale and found_inf must have one element, got ",
                  t.numel());
  double value = 0;
  dispatch_floating("optim_step_", t.scalar_type(),
                    [&](auto zero) { value = double(*static_cast<const decltype(zero)*>(t.data_ptr())); });
  return value;
}

inline void check_lists(const Lists& lists, size_t rows) {
  STD_TORCH_CHECK(lists.grads.size() == lists.params.size() && lists.counts.size() == rows,
                  "optim_step_: every parameter needs a gradient, and every count a row of options");
  STD_TORCH_CHECK(lists.ordinals.empty() || lists.ordinals.size() == lists.params.size(),
                  "optim_step_: ordinals must be one a parameter, or none");
  for (const auto* list : {&lists.params, &lists.grads, &lists.states}) {
    for (const Tensor& t : *list) {
      STD_TORCH_CHECK(t.get_device_index() == lists.params[0].get_device_index() &&
                          t.is_cpu() == lists.params[0].is_cpu(),
                      "optim_step_: parameters, gradients and states must be on one device");
    }
  }
}

inline std::vector<Options> read_options(const std::vector<double>& values) {
  STD_TORCH_CHECK(values.size() % kOptionCount == 0, "optim_step_: options must come in rows of ",
                  kOptionCount);
  std::vector<Options> options(values.size() / kOptionCount);
  std::memcpy(options.data(), values.data(), values.size() * sizeof(double));
  return options;
}

}  // namespace fastdl::optim
