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

// How the two warpgroups of a wgmma kernel share tiles.
enum WgmmaTurns : uint8_t {
  kHalves,     // half of every tile's rows each
  kAlternate,  // a tile each in turns: one's sums leave while the other multiplies
  kTokens,     // as kHalves, of the transposed product: a's few rows are the instruction's columns
};

// A plan's choices, by which a measurement names it.
struct Cut {
  int family, tile_m, tile_n, splits, turns, cluster, near;
  bool operator==(const Cut&) const = default;
};

struct Plan {
  Family family;
  int tile_m, tile_n, tile_k;  // of a block; tile_m rows make one partial of column sums and moments
  int splits;                  // of k; their sums are added in order
  int64_t workspace_bytes;     // device memory for the launch, aligned to 256 bytes, contents undefined
  WgmmaTurns turns = kHalves;
  int cluster = 1;                            // blocks that share tiles of b
  double cycles = 0;                          // of a multiprocessor, estimated
  bool repacks_a = false, repacks_b = false;  // by a pass of its own, to where TMA can read the operand
  bool near = false;  // the parts of k are a cluster's, added in its shared memory, not in the workspace

  Cut cut() const { return {family, tile_m, tile_n, splits, turns, cluster, near}; }
  int parts_in_memory() const { return near ? 1 : splits; }
  int64_t row_blocks(int64_t m) const { return ceil_div(m, tile_m); }
};

}  // namespace fastdl::gemm
