#include "gemm/launch_wgmma.h"

namespace fastdl::gemm {

const char* launch_wgmma_bfloat16(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_wgmma_typed<bfloat16>(p, plan, workspace, stream);
}

const char* launch_wgmma(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const auto launch_typed = p.dtype == kBfloat16  ? launch_wgmma_bfloat16
                            : p.dtype == kFloat16 ? launch_wgmma_half
                                                  : launch_wgmma_tf32;
  const char* error = launch_typed(p, plan, workspace, stream);
  return error || plan.parts_in_memory() == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
