// Matrix products on the device. Every function returns an error text, or null when all launches were
// accepted.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// One per family, each in its own api_*.cu. Sizes of 0 do not reach them, except k.
const char* launch_simt(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_gemv(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_mma(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_hopper(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_hopper_emulate(const Problem& problem, const Plan& plan, void* workspace, void* stream);

}  // namespace fastdl::gemm
