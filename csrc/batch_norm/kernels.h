// The kernels of a direction and a dtype, by layout. They are compiled side by side: api_channels.cu,
// api_rows.cu.
#pragma once
#include "batch_norm/plan.h"
#include "simt.h"

namespace fastdl::batch_norm {

// Contiguous, [0] for single channels and [1] for packs of short rows. The last parameter is the workspace;
// apply gets none where nothing was summed before it.
template <class Arguments>
struct Kernels {
  using Kernel = void (*)(Arguments, Plan, void*);
  Kernel resident[2], sums, merge, apply[2];  // merge: channels last
};

// Launches the merge of the moments that a product has left (given.cuh) to `merged`, three doubles a channel.
const char* merge_given(const ForwardArguments& arguments, void* merged, void* stream);

Kernels<ForwardArguments> channel_forward_kernels(Dtype dtype);
Kernels<BackwardArguments> channel_backward_kernels(Dtype dtype);
Kernels<ForwardArguments> row_forward_kernels(Dtype dtype);
Kernels<BackwardArguments> row_backward_kernels(Dtype dtype);

// f(scalar_t()).
template <class F>
auto with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float());
    case Dtype::kFloat64:
      return f(double());
    case Dtype::kFloat16:
      return f(half());
    default:
      return f(bfloat16());
  }
}

}  // namespace fastdl::batch_norm
