// Matrix products on the device. Every function returns an error text, or null when all launches were
// accepted.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// The device that launches go to.
Machine machine();

// One product by a plan of it; sizes other than k are positive. workspace: plan.workspace_bytes.
const char* launch_product(const Problem& problem, const Plan& plan, void* workspace, void* stream);

// The families, each in its own api_*.cu.
const char* launch_simt(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_mma(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_wgmma(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_gemv(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_emulated(const Problem& problem, const Plan& plan, void* workspace, void* stream);

// The second launch of a product whose k was split: see split.cuh.
const char* launch_split_sum(const Problem& problem, int splits, void* workspace, void* stream);

// grad_input (rows, n) = grad_output masked by dropout * activation'(saved), and its column sums (n).
struct ActivationBackward {
  int64_t rows, n;
  Dtype dtype;
  int32_t activation;
  bool aligned;             // as in Epilogue
  const void* grad_output;  // adjacent columns
  int64_t grad_row;
  const void* saved;    // contiguous; null: the slope is 1
  const int64_t* seed;  // null: no dropout
  KeepRule keep;
  double keep_scale;
  void* grad_input;   // contiguous
  void* column_sums;  // (n); null: absent
};
int64_t activation_backward_workspace_bytes(const ActivationBackward& problem);
const char* launch_activation_backward(const ActivationBackward& problem, void* workspace, void* stream);

// partial (count, n) of the accumulator's type -> sum (n) of the dtype.
const char* launch_sum_partials(Dtype dtype, const void* partial, void* sum, int64_t count, int64_t n,
                                void* stream);

}  // namespace fastdl::gemm
