// What TMA can fetch, and how the wgmma kernels cut tiles. Plain C++: the plan asks too.
#pragma once
#include "gemm/problem.h"

namespace fastdl::gemm {

constexpr int kWgmmaBytes = 128;  // of a step along k: a row of the widest swizzle
constexpr int kWgmmaDepth = 64;   // of 16-bit elements

// Elements of a step: 16 bits, or tf32.
inline int wgmma_depth(Dtype dtype) { return kWgmmaBytes / int(size_of(dtype)); }

// Whether a tensor map describes the operand: rows or columns adjacent, everything else at multiples of 16
// bytes, sizes in 31 bits. A batch may be one matrix (stride 0).
inline bool tma_reads(const Matrix& x, int64_t rows, int64_t columns, int64_t batch, Dtype dtype) {
  constexpr int64_t kMost = INT32_MAX, kStride = int64_t(1) << 40;
  const int64_t outer = x.column == 1 ? x.row : x.column, size = size_of(dtype);
  const auto steps = [&](int64_t stride) {
    return stride > 0 && stride * size % 16 == 0 && stride * size < kStride;
  };
  return (x.column == 1 || x.row == 1) && is_aligned(x.data) && steps(outer) && rows > 0 && rows <= kMost &&
         columns > 0 && columns <= kMost && (batch == 1 || x.batch == 0 || steps(x.batch));
}

// Whether wgmma multiplies the operands where they lie: of tf32 k has to be adjacent.
inline bool wgmma_reads_a(const Problem& p) {
  return tma_reads(p.a, p.m, p.k, p.batch, p.dtype) && (p.dtype != kFloat32 || p.a.column == 1);
}
inline bool wgmma_reads_b(const Problem& p) {
  return tma_reads(p.b, p.k, p.n, p.batch, p.dtype) && (p.dtype != kFloat32 || p.b.row == 1);
}

}  // namespace fastdl::gemm
