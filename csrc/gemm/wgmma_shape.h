// What TMA can fetch, and how the wgmma kernels cut tiles. Plain C++: the plan asks too.
#pragma once
#include "gemm/problem.h"

namespace fastdl::gemm {

constexpr int kWgmmaDepth = 64;  // of a step: 128 bytes of 16-bit elements, a row of the widest swizzle

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

}  // namespace fastdl::gemm
