// From a checked record to what the kernel reads of it.
#pragma once
#include <cstring>
#include "optim/records.h"

namespace fastdl::optim {

inline Dtype tag(ScalarType dtype) {
  if (dtype == ScalarType::Double) return kFloat64;
  if (dtype == ScalarType::Half) return kFloat16;
  return dtype == ScalarType::BFloat16 ? kBfloat16 : kFloat32;
}

// row: of its options; memory(operand): where its elements lie without gaps.
template <class Memory>
DeviceRecord device_record(const Record& r, int32_t row, Memory&& memory) {
  DeviceRecord d;
  std::memset(&d, 0, sizeof d);  // compared by bytes
  const auto take = [&](const Operand& operand, Dtype* dtype) -> void* {
    if (!operand.data) return nullptr;
    const Dtype own = tag(operand.dtype);
    if (dtype) *dtype = own;
    d.in_double |= own == kFloat64;
    return memory(operand);
  };
  d.param = take(r.param, &d.param_dtype);
  for (int k = 0; k < kMaxStates; ++k) d.state[k] = take(r.state[k], &d.state_dtype[k]);
  d.ema = take(r.ema, &d.ema_dtype);
  d.master = take(r.master, nullptr);
  d.grad_dtype = tag(r.grad.dtype);
  d.in_double |= d.grad_dtype == kFloat64;
  d.step = r.step.data;
  d.step_dtype = tag(r.step.dtype);
  d.numel = r.numel;
  d.first_tile = int32_t(r.first_tile);
  d.row = row;
  d.ordinal = r.ordinal;
  return d;
}

// The same update rule to the last flag: what a kernel of one rule type asks for.
inline bool same_flags(RuleName rule, const Options& a, const Options& b) {
  return state_count(rule, a) == state_count(rule, b) && (a.centered != 0) == (b.centered != 0);
}

inline bool any_step(const std::vector<Record>& records) {
  return std::any_of(records.begin(), records.end(), [](const Record& r) { return r.step.data != nullptr; });
}

// Numbers the records' tiles; returns how many there are. Fails over what a launch can count.
inline int64_t number_tiles(std::vector<Record>& records) {
  int64_t tiles = 0;
  for (Record& r : records) {
    r.first_tile = tiles;
    tiles += tiles_of(r.numel);
  }
  STD_TORCH_CHECK(tiles < INT32_MAX, "optim_step_: more than 2^43 elements");
  return tiles;
}

}  // namespace fastdl::optim
