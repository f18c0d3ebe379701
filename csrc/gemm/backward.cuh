// The gradient at a Linear's preactivation, with its column sums, in one pass; and sums of partial results.
#pragma once
#include "gemm/api.h"
#include "gemm/epilogue.cuh"
#include "reduce.cuh"

namespace fastdl::gemm {

constexpr int kBackwardThreads = 256, kBackwardColumns = 8;

// A block takes `lanes` threads' columns (8 each) of `rows_per_block` rows, 256 / lanes rows at a time.
// partial: (row blocks, n) or null.
template <class scalar_t>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    activation_backward_kernel(const __grid_constant__ ActivationBackward p, int lanes,
                               int64_t rows_per_block, int64_t column_blocks,
                               accumulator_t<scalar_t>* partial) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kCount = kBackwardColumns;
  FASTDL_SHARED(sums, acc_t[kCount][kBackwardThreads]);  // slot by slot
  const int lane = int(threadIdx.x) % lanes, slot = int(threadIdx.x) / lanes,
            slots = kBackwardThreads / lanes;
  const int64_t row_block = blockIdx.x / column_blocks;
  const int64_t column0 = (blockIdx.x - row_block * column_blocks) * lanes * kCount,
                column = column0 + lane * kCount;
  const int64_t first = row_block * rows_per_block;
  const int64_t last = first + rows_per_block < p.rows ? first + rows_per_block : p.rows;
  const int inside = column >= p.n ? 0 : p.n - column < kCount ? int(p.n - column) : kCount;
  const uint64_t seed = p.seed ? uint64_t(load(p.seed)) : 0;
  const acc_t scale = acc_t(p.keep_scale);
  Vector<acc_t, kCount> sum;
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) sum[j] = acc_t(0);
  for (int64_t row = first + slot; inside > 0 && row < last; row += slots) {
    const int64_t index = row * p.n + column;
    auto value = load_columns<scalar_t, kCount>(
        static_cast<const scalar_t*>(p.grad_output) + row * p.grad_row + column, inside, p.aligned);
    if (p.seed) {
      const uint32_t keep = keep_bits<kCount>(p.keep, seed, uint64_t(index));
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) value[j] = keep >> j & 1 ? value[j] * scale : acc_t(0);
    }
    if (p.saved) {
      const auto saved =
          load_columns<scalar_t, kCount>(static_cast<const scalar_t*>(p.saved) + index, inside, p.aligned);
      activate_backward(value, saved, p.activation);
    }
    store_columns<scalar_t, kCount>(static_cast<scalar_t*>(p.grad_input) + index, value, inside, p.aligned);
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) sum[j] += convert<acc_t>(convert<scalar_t>(value[j]));
  }
  if (!partial) return;
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) sums[j][threadIdx.x] = sum[j];
  for (int half = slots / 2; half > 0; half /= 2) {  // in pairs: few roundings
    __syncthreads();
    if (slot >= half) continue;
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) sums[j][threadIdx.x] += sums[j][int(threadIdx.x) + half * lanes];
  }
  if (slot > 0) return;
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) {
    if (j < inside) store(partial + row_block * p.n + column + j, sums[j][lane]);
  }
}

// partial (count, n) -> sum over the first dimension (n), in a fixed order. 32 columns a block.
template <class scalar_t>
__global__ void __launch_bounds__(1024)
    sum_partials_kernel(const accumulator_t<scalar_t>* partial, scalar_t* sum, int64_t count, int64_t n) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(sums, acc_t[32][33]);
  const int x = int(threadIdx.x) % 32, y = int(threadIdx.x) / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + x;
  acc_t mine = acc_t(0);
  if (column < n) {
    for (int64_t i = y; i < count; i += 32) mine += load(partial + i * n + column);
  }
  sums[y][x] = mine;
  __syncthreads();
  const acc_t total = warp_reduce(sums[x][y], Sum{});
  if (x == 0 && int64_t(blockIdx.x) * 32 + y < n)
    store(sum + int64_t(blockIdx.x) * 32 + y, convert<scalar_t>(total));
}

}  // namespace fastdl::gemm
