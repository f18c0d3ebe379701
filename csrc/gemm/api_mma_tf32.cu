#include "gemm/launch_mma.h"

namespace fastdl::gemm {

const char* launch_mma_tf32(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return launch_mma_typed<float>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
