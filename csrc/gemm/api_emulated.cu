// The pass that splits float32 operands into bfloat16 terms, then their products.
#include "gemm/emulated_terms.cuh"
#include "gemm/launch_emulated.h"
#include "gemm/split.h"

namespace fastdl::gemm {

const char* launch_emulated(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const EmulatedWorkspace at = emulated_workspace(p, split_workspace_bytes(p, plan.splits));
  auto* const bytes = static_cast<unsigned char*>(workspace);
  const TermsOperand a{p.a, at.a, p.k, reinterpret_cast<bfloat16*>(bytes + at.a_offset)};
  const TermsOperand b{p.b.transposed(), at.b, p.k, reinterpret_cast<bfloat16*>(bytes + at.b_offset)};
  if (a.blocks() + b.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  LaunchConfig config{dim3(unsigned(a.blocks() + b.blocks())), dim3(kTermsThreads)};
  config.stream = stream;
  const char* error = launch(terms_kernel, config, a, b);
  if (!error) {
    error = plan.family == kEmulatedWgmma ? launch_emulated_wgmma(p, plan, at, bytes, stream)
                                          : launch_emulated_mma(p, plan, at, bytes, stream);
  }
  return error || plan.splits == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
