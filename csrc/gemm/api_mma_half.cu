#include "gemm/launch_mma.h"

namespace fastdl::gemm {

const char* launch_mma_half(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_mma_typed<half>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
