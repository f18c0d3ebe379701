// Which products the sm_90a families take.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// Fills the plan and returns true where a family of wgmma kernels takes the product. plan() calls it first.
inline bool plan_hopper(const Problem&, const Machine&, Plan*) { return false; }

}  // namespace fastdl::gemm
