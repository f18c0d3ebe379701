// float32 products of bfloat16 terms, after their pass; each in its own api_emulated*.cu.
#pragma once
#include "gemm/api.h"
#include "gemm/emulated.h"

namespace fastdl::gemm {

const char* launch_emulated_wgmma(const Problem& problem, const Plan& plan, const EmulatedWorkspace& at,
                                  unsigned char* workspace, void* stream);
const char* launch_emulated_mma(const Problem& problem, const Plan& plan, const EmulatedWorkspace& at,
                                unsigned char* workspace, void* stream);

}  // namespace fastdl::gemm
