// The workspace of a product whose k is split: parts of the sums, and parts of the sums of a's rows.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// (batch, splits, m, n), then (splits, m), of the accumulator's type.
inline int64_t split_workspace_bytes(const Problem& p, int splits) {
  if (splits == 1) return 0;
  return accumulator_size(p.dtype) * splits * (p.batch * p.m * p.n + (p.a_sums ? p.m : 0));
}

// Up to where something else may follow.
inline int64_t aligned_split_bytes(const Problem& p, int splits) {
  return (split_workspace_bytes(p, splits) + 255) / 256 * 256;
}

}  // namespace fastdl::gemm
