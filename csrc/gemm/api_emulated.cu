// The pass that splits float32 operands into bfloat16 terms, then their products.
#include "gemm/emulated_terms.cuh"
#include "gemm/launch_emulated.h"
#include "gemm/split.h"

namespace fastdl::gemm {

const char* launch_emulated(const Problem& problem, const Plan& plan, void* workspace, void* stream) {
  Problem p = problem;
  const EmulatedWorkspace at = emulated_workspace(p, split_workspace_bytes(p, plan.splits));
  auto* const bytes = static_cast<unsigned char*>(workspace);
  auto* const row_sums = p.a_sums ? reinterpret_cast<float*>(bytes + at.row_sums_offset) : nullptr;
  p.a_sums = nullptr;  // the terms' pass has them
  const TermsOperand a{p.a, at.a, p.k, reinterpret_cast<bfloat16*>(bytes + at.a_offset), row_sums};
  const TermsOperand b{p.b.transposed(), at.b, p.k, reinterpret_cast<bfloat16*>(bytes + at.b_offset),
                       nullptr};
  if (a.blocks() + b.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  LaunchConfig config{dim3(unsigned(a.blocks() + b.blocks())), dim3(kTermsThreads)};
  config.stream = stream;
  const char* error = launch(terms_kernel, config, a, b);
  if (!error) {
    error = plan.family == kEmulatedWgmma ? launch_emulated_wgmma(p, plan, at, bytes, stream)
                                          : launch_emulated_mma(p, plan, at, bytes, stream);
  }
  if (!error && plan.splits > 1) error = launch_split_sum(p, plan.splits, workspace, stream);
  if (error || !row_sums) return error;
  return launch_sum_partials(kFloat32, row_sums, problem.a_sums, at.row_sums, p.m, stream);
}

}  // namespace fastdl::gemm
