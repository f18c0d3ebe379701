// The optimizer kernel's interface: what a step needs, as pointers. No torch.
#pragma once
#include <cstddef>
#include <cstdint>
#include "optim/options.h"

namespace fastdl::optim {

enum Dtype : uint8_t { kFloat32, kFloat64, kFloat16, kBfloat16 };

constexpr int kMaxStates = 3;
constexpr int kTile = 4096;       // elements a block takes at a time
constexpr int kMaxBlocks = 2048;  // of a launch: one partial sum each

// Bytes of arguments that every launch takes, and that CUDA 12.1 takes from compute capability 7.0 on.
constexpr int kArguments = 4096, kManyArguments = 32764;

// One parameter but for its gradient. All pointers are to contiguous memory of numel elements, in one order.
struct DeviceRecord {
  void* param;
  void* state[kMaxStates];
  void* master;  // null: none
  void* ema;     // null: none
  void* step;    // one element; null: not counted
  int64_t numel;
  int32_t first_tile, row;  // of options
  uint32_t ordinal;         // random stream
  Dtype param_dtype, grad_dtype, state_dtype[kMaxStates], ema_dtype, step_dtype;
  bool in_double;  // some operand is float64
};

// Tiles of a parameter; an empty one has one too, whose block counts the step.
constexpr int64_t tiles_of(int64_t numel) { return numel > kTile ? (numel + kTile - 1) / kTile : 1; }

// What stays on the device between steps: a partial sum per block, then the records, then room for a table of
// rows and gradients that arguments cannot hold.
constexpr int64_t kRecordsAt = kMaxBlocks * int64_t(sizeof(double));
constexpr int64_t table_at(int64_t parameters) {
  return kRecordsAt + parameters * int64_t(sizeof(DeviceRecord));
}

struct Row {
  Options options;
  const void* lr;  // read on the device where not null
  Dtype lr_dtype;
};

struct StepArguments {
  const DeviceRecord* records;  // on the device, by first_tile
  int64_t tiles;
  int32_t count;            // of records
  int32_t row_count;        // of rows
  bool counts;              // some record has a step
  double* partials;         // kMaxBlocks, on the device
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: no GradScaler
  const float* grad_norm;   // null: computed here
  double max_grad_norm;     // 0: no clipping
  const void* table;        // rows, then the gradients' addresses; null: behind these arguments
};

// Bytes of the table: rows, then one address a gradient.
constexpr int64_t table_bytes(int64_t rows, int64_t count) {
  return rows * int64_t(sizeof(Row)) + count * int64_t(sizeof(void*));
}
inline int64_t workspace_bytes(int64_t parameters, int64_t rows) {
  return table_at(parameters) + table_bytes(rows, parameters);
}

// Whether a launch on the current device takes a table of so many bytes among its arguments.
bool fits_arguments(int64_t table_bytes);

// The whole step in one launch. uniform: all parameters have the rule's flags of `options`, and none is
// in_double. table: on the host, read unless arguments.table is set. Returns null, or why the launch was
// refused.
const char* launch_step(RuleName rule, bool uniform, const Options& options, const StepArguments& arguments,
                        const void* table, void* stream);

// A place in a stream: has_passed says whether the device has come by.
struct Mark;

// The library that kernels run in, as host code reaches it without torch's dispatcher.
struct DeviceLibrary {
  decltype(&optim::fits_arguments) fits_arguments;
  decltype(&optim::launch_step) launch_step;
  int (*exchange_device)(int device);  // makes it the current one; returns the one before
  // In the stream's order; `pinned` is read until a mark set behind the copy has passed.
  const char* (*copy_to_device)(void* target, const void* pinned, size_t bytes, void* stream);
  bool (*is_capturing)(void* stream);
  Mark* (*new_mark)();
  void (*delete_mark)(Mark* mark);
  const char* (*set_mark)(Mark* mark, void* stream);
  bool (*has_passed)(const Mark* mark);  // true for one never set
};
const DeviceLibrary& device_library();

}  // namespace fastdl::optim
