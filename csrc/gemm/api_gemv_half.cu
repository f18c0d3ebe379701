#include "gemm/launch_gemv.h"

namespace fastdl::gemm {

const char* launch_gemv_halves(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return p.dtype == kBfloat16 ? launch_gemv_typed<bfloat16>(p, plan, workspace, stream)
                              : launch_gemv_typed<half>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
