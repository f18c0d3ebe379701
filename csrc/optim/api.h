// The optimizer kernel's interface: what a step needs, as pointers. No torch.
#pragma once
#include <cstdint>
#include "optim/options.h"

namespace fastdl::optim {

enum Dtype : uint8_t { kFloat32, kFloat64, kFloat16, kBfloat16 };

constexpr int kMaxStates = 3;
constexpr int kTile = 4096;       // elements a block takes at a time
constexpr int kMaxBlocks = 2048;  // of a launch: one partial sum each
constexpr int kInlineRows = 16;   // rows of options that travel with the launch

// One parameter. All pointers are to contiguous memory of numel elements, in one order.
struct DeviceRecord {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  void* master;  // null: none
  void* ema;     // null: none
  void* step;    // one element; null: none (SGD)
  int64_t numel;
  int32_t first_tile, row;  // of options
  uint32_t ordinal;         // random stream
  Dtype param_dtype, grad_dtype, state_dtype[kMaxStates], ema_dtype, step_dtype;
  bool in_double;  // some operand is float64
};

// What stays on the device between steps: a partial sum per block, then the records.
inline int64_t workspace_bytes(int64_t parameters) {
  return kMaxBlocks * int64_t(sizeof(double)) + parameters * int64_t(sizeof(DeviceRecord));
}

struct Row {
  Options options;
  const void* lr;  // read on the device where not null
  Dtype lr_dtype;
};

struct StepArguments {
  const DeviceRecord* records;  // on the device, by first_tile
  int64_t tiles;
  int32_t count;
  double* partials;         // kMaxBlocks, on the device
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: no GradScaler
  const float* grad_norm;   // null: computed here
  const int64_t* seed;      // null: no stochastic rounding
  double max_grad_norm;     // 0: no clipping
  const Row* rows;          // null: inline_rows
  Row inline_rows[kInlineRows];
};

// The whole step in one launch. uniform: all parameters have the rule's flags of `options`, and none is
// in_double. Returns null, or why the launch was refused.
const char* launch_step(RuleName rule, bool uniform, const Options& options, const StepArguments& arguments,
                        void* stream);

}  // namespace fastdl::optim
