// What is done about sums of bfloat16 terms that are not finite.
#pragma once
#include "gemm/schedule.h"
#include "vector.cuh"

namespace fastdl::gemm {

// Sums near the end of the range may have passed it on the way, where tensor cores need not do as float32
// does.
FASTDL_DEVICE bool is_kept(float sum) { return sum < 0x1p127f && sum > -0x1p127f; }

// What a thread's fragments hold of a row in four blocks of 8 columns: at `column` + offset(c), c < 8.
struct RowFragment {
  static constexpr int kCount = 8;
  int64_t row, column;
  FASTDL_DEVICE static int offset(int c) { return c / 2 * 8 + c % 2; }
};

// Infinity times the zero rest of a number is NaN, so sums of terms that are not finite say little: those are
// taken again from the operands, as float32.
FASTDL_DEVICE void repair(const Problem& p, const TileWork& work, const RowFragment& at,
                          float (&value)[RowFragment::kCount]) {
  constexpr int kCount = RowFragment::kCount;
  bool good = true;
  FASTDL_UNROLL
  for (int c = 0; c < kCount; ++c) good = good && is_kept(value[c]);
  if (good || at.row >= p.m || at.column >= p.n) return;
  const float* a = static_cast<const float*>(p.a.data) + work.batch * p.a.batch + at.row * p.a.row +
                   work.range.begin * p.a.column;
  const float* b = static_cast<const float*>(p.b.data) + work.batch * p.b.batch + at.column * p.b.column +
                   work.range.begin * p.b.row;
  const int64_t inside = p.n - at.column;
  float sum[kCount];
  FASTDL_UNROLL
  for (int c = 0; c < kCount; ++c)
    sum[c] = RowFragment::offset(c) < inside ? 0.0f : __uint_as_float(0x7FC00000u);
  bool open = true;  // until all are NaN, which they stay
#pragma unroll 1
  for (int64_t k = work.range.begin; open && k < work.range.end; ++k, a += p.a.column, b += p.b.row) {
    const float left = load(a);
    open = false;
    FASTDL_UNROLL
    for (int c = 0; c < kCount; ++c) {
      const int x = RowFragment::offset(c);
      if (x < inside) sum[c] = fma(left, load(b + x * p.b.column), sum[c]);
      open = open || sum[c] == sum[c];
    }
  }
  FASTDL_UNROLL
  for (int c = 0; c < kCount; ++c) {
    if (!is_kept(value[c])) value[c] = sum[c];
  }
}

}  // namespace fastdl::gemm
