#include "gemm/launch_mma.h"

namespace fastdl::gemm {

const char* launch_mma_bfloat16(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_mma_typed<bfloat16>(p, plan, workspace, stream);
}

const char* launch_mma(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const auto launch_typed = p.dtype == kBfloat16  ? launch_mma_bfloat16
                            : p.dtype == kFloat16 ? launch_mma_half
                                                  : launch_mma_tf32;
  const char* error = launch_typed(p, plan, workspace, stream);
  return error || plan.splits == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
