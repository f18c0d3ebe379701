// What is done about sums of bfloat16 terms that are not finite.
#pragma once
#include "gemm/schedule.h"
#include "vector.cuh"

namespace fastdl::gemm {

// Sums near the end of the range may have passed it on the way, where tensor cores need not do as float32
// does.
FASTDL_DEVICE bool is_kept(float sum) { return sum < 0x1p127f && sum > -0x1p127f; }

// Infinity times the zero rest of a number is NaN, so sums of terms that are not finite say little. Those of
// tile [kLines][kPitch] are taken again from the operands, as float32; 8 columns a thread, the same ones as
// in finish_lines.
template <int kThreads, int kLines, int kColumns, int kPitch, class RowOf>
FASTDL_DEVICE void repair_lines(const Problem& p, const TileWork& work, float* tile, int tile_rows,
                                RowOf row_of) {
  constexpr int kCount = 8, kAcross = kColumns / kCount;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kLines * kAcross; i += kThreads) {
    const int line = i / kAcross, c = i % kAcross * kCount;
    const int64_t row = int64_t(work.row) * tile_rows + row_of(line),
                  column = int64_t(work.column) * kColumns + c;
    float* const at = tile + line * kPitch + c;
    bool good = true;
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) good = good && is_kept(at[j]);
    if (good || row >= p.m || column >= p.n) continue;
    const float* a = static_cast<const float*>(p.a.data) + work.batch * p.a.batch + row * p.a.row +
                     work.range.begin * p.a.column;
    const float* b = static_cast<const float*>(p.b.data) + work.batch * p.b.batch + column * p.b.column +
                     work.range.begin * p.b.row;
    float sum[kCount];
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) sum[j] = column + j < p.n ? 0.0f : __uint_as_float(0x7FC00000u);
    bool open = true;  // until all are NaN, which they stay
#pragma unroll 1
    for (int64_t k = work.range.begin; open && k < work.range.end; ++k, a += p.a.column, b += p.b.row) {
      const float left = load(a);
      open = false;
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) {
        if (column + j < p.n) sum[j] = fma(left, load(b + j * p.b.column), sum[j]);
        open = open || sum[j] == sum[j];
      }
    }
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) {
      if (!is_kept(at[j])) at[j] = sum[j];
    }
  }
}

}  // namespace fastdl::gemm
