// The pass that writes operands as bfloat16 terms.
#pragma once
#include "gemm/emulated.h"
#include "gemm/schedule.h"
#include "vector.cuh"

namespace fastdl::gemm {

constexpr int kTermsThreads = 256, kTermsTile = 64;  // lines, and k, of a block

struct Terms {
  bfloat16 term[kTerms];
};

// What is not finite stays in the first term. Rounding up to infinity does not happen: the largest are cut.
FASTDL_DEVICE Terms terms_of(float x) {
  constexpr uint32_t kExponent = 0x7F800000u;
  float high = convert<float>(convert<bfloat16>(x));
  if ((__float_as_uint(high) & kExponent) == kExponent)
    high = __uint_as_float(__float_as_uint(x) & 0xFFFF0000u);
  const bool finite = (__float_as_uint(x) & kExponent) != kExponent;
  const float rest = finite ? x - high : 0.0f, middle = convert<float>(convert<bfloat16>(rest));
  return {
      {convert<bfloat16>(finite ? high : x), convert<bfloat16>(middle), convert<bfloat16>(rest - middle)}};
}

// An operand to be written as terms: a line a row.
struct TermsOperand {
  Matrix from;
  TermPlanes planes;
  int64_t k;
  bfloat16* to;
  float* row_sums;  // (depth / kRowSumDepth, lines) of one matrix; null: absent

  FASTDL_HOST_DEVICE int64_t blocks() const {
    return planes.batches * ((planes.lines + kTermsTile - 1) / kTermsTile) * (planes.depth / kTermsTile);
  }
};

// Blocks of a first, then of b. Reads along whichever dimension is adjacent, writes along k.
__global__ void __launch_bounds__(kTermsThreads, 3)
    terms_kernel(const __grid_constant__ TermsOperand a, const __grid_constant__ TermsOperand b) {
  FASTDL_SHARED(tile, float[kTermsTile][kTermsTile + 1]);
  const bool second = int64_t(blockIdx.x) >= a.blocks();
  const TermsOperand& x = second ? b : a;
  const int64_t block = second ? blockIdx.x - a.blocks() : blockIdx.x;
  const int64_t across = x.planes.depth / kTermsTile, rows = block / across;
  const int64_t down = (x.planes.lines + kTermsTile - 1) / kTermsTile, batch = rows / down;
  const int64_t line0 = (rows - batch * down) * kTermsTile, k0 = (block - rows * across) * kTermsTile;
  const int lines = x.planes.lines - line0 < kTermsTile ? int(x.planes.lines - line0) : kTermsTile;
  const int depth = x.k - k0 < kTermsTile ? int(x.k - k0) : kTermsTile;
  const float* from =
      static_cast<const float*>(x.from.data) + batch * x.from.batch + line0 * x.from.row + k0 * x.from.column;
  const bool wide = x.from.row == 1 && x.from.column != 1;
  const int inner = int(threadIdx.x) % kTermsTile, outer = int(threadIdx.x) / kTermsTile;
  FASTDL_UNROLL
  for (int i = 0; i < kTermsTile; i += kTermsThreads / kTermsTile) {
    const int line = wide ? inner : outer + i, k = wide ? outer + i : inner;
    const bool inside = line < lines && k < depth;
    tile[line][k] = inside ? load(from + line * x.from.row + k * x.from.column) : 0.0f;
  }
  __syncthreads();
  constexpr int kEach = kVectorSize<bfloat16>, kAcross = kTermsTile / kEach;
  if (x.row_sums && inner < lines) {  // lanes take lines, in different banks
    static_assert(kTermsThreads / kTermsTile * kRowSumDepth == kTermsTile);
    float sum = 0;
    FASTDL_UNROLL
    for (int i = 0; i < kRowSumDepth; ++i) sum += tile[inner][outer * kRowSumDepth + i];
    store(x.row_sums + (k0 / kRowSumDepth + outer) * x.planes.lines + line0 + inner, sum);
  }
  FASTDL_UNROLL
  for (int i = int(threadIdx.x); i < kTermsTile * kAcross; i += kTermsThreads) {
    const int line = i / kAcross, k = i % kAcross * kEach;
    Vector<bfloat16, kEach> value[kTerms];
    FASTDL_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const Terms terms = terms_of(tile[line][k + j]);
      FASTDL_UNROLL
      for (int t = 0; t < kTerms; ++t) value[t][j] = terms.term[t];
    }
    if (line >= lines) continue;
    bfloat16* const to = x.to + batch * kTerms * x.planes.plane() + (line0 + line) * x.planes.depth + k0 + k;
    FASTDL_UNROLL
    for (int t = 0; t < kTerms; ++t) store_vector(to + t * x.planes.plane(), value[t]);
  }
}

}  // namespace fastdl::gemm
