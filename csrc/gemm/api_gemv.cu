#include "gemm/launch_gemv.h"

namespace fastdl::gemm {

const char* launch_gemv_words(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return p.dtype == kFloat32 ? launch_gemv_typed<float>(p, plan, workspace, stream)
                             : launch_gemv_typed<double>(p, plan, workspace, stream);
}

const char* launch_gemv(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const bool words = p.dtype == kFloat32 || p.dtype == kFloat64;
  const char* error =
      words ? launch_gemv_words(p, plan, workspace, stream) : launch_gemv_halves(p, plan, workspace, stream);
  return error || plan.splits == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
