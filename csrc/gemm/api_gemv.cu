#include "gemm/api.h"

namespace fastdl::gemm {

const char* launch_gemv(const Problem&, const Plan&, void*, void*) { return "no such kernels"; }

}  // namespace fastdl::gemm
