#include "gemm/launch_wgmma.h"

namespace fastdl::gemm {

const char* launch_wgmma_bfloat16(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_wgmma_typed<bfloat16>(p, plan, workspace, stream);
}

const char* launch_wgmma(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const char* error = p.dtype == kBfloat16 ? launch_wgmma_bfloat16(p, plan, workspace, stream)
                                           : launch_wgmma_half(p, plan, workspace, stream);
  return error || plan.parts_in_memory() == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
