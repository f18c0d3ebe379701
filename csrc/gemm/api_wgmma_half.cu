#include "gemm/launch_wgmma.h"

namespace fastdl::gemm {

const char* launch_wgmma_half(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_wgmma_typed<half>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
