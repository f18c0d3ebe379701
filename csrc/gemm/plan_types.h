// What a plan is made of; plan.h makes one.
#pragma once
#include "gemm/problem.h"

namespace fastdl::gemm {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The device as the plan sees it; DeviceProperties of simt.h without the compiler.
struct Machine {
  int multiprocessors, capability;
  int shared_bytes;  // of a block, with opt-in
  bool wgmma;        // Hopper, and code for it in this library
};

enum Family : uint8_t {
  kSimt,   // anything
  kMma,    // sm_80: cp.async, ldmatrix, mma.sync
  kWgmma,  // sm_90a: TMA, wgmma
  kGemv,   // at most 4 rows or columns
  kEmulatedMma,
  kEmulatedWgmma,  // float32 out of bfloat16 terms, by either instruction
};

struct Plan {
  Family family;
  int tile_m, tile_n, tile_k;  // of a block; tile_m rows make one partial of column sums and moments
  int splits;                  // of k; their sums are added in order
  int64_t workspace_bytes;     // device memory for the launch, aligned to 256 bytes, contents undefined

  int64_t row_blocks(int64_t m) const { return ceil_div(m, tile_m); }
};

}  // namespace fastdl::gemm
