#include "gemm/launch_wgmma.h"

namespace fastdl::gemm {

// wgmma multiplies tf32 where k is adjacent alone: other operands were repacked.
const char* launch_wgmma_tf32(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_wgmma_layout<float, true, true>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
