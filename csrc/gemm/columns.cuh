// Partial sums and moments of a tile's columns, from its stored values in shared memory.
#pragma once
#include "gemm/problem.h"
#include "vector.cuh"

namespace fastdl::gemm {

// tile [rows][pitch] -> column_sums, mean and m2 at [tile_row][column0 + c]. The deviations are taken from
// the tile's own mean, so that a mean far from zero costs no digits. All kThreads threads call it; starts
// with a barrier.
template <int kColumns, int kThreads, class acc_t>
FASTDL_DEVICE void write_column_partials(const Problem& p, const acc_t* tile, int pitch, int64_t tile_row,
                                         int rows, int64_t column0) {
  constexpr int kParts = kThreads / kColumns;
  static_assert(kParts * kColumns == kThreads);
  FASTDL_SHARED(partial, acc_t[kParts][kColumns]);
  const int column = int(threadIdx.x) % kColumns, part = int(threadIdx.x) / kColumns;
  const auto total = [&](acc_t mine) {
    __syncthreads();
    partial[part][column] = mine;
    __syncthreads();
    acc_t sum = acc_t(0);
    FASTDL_UNROLL
    for (int i = 0; i < kParts; ++i) sum += partial[i][column];
    return sum;
  };
  const Epilogue& e = p.epilogue;
  const bool writes = part == 0 && column0 + column < p.n;
  const int64_t at = tile_row * p.n + column0 + column;
  __syncthreads();
  acc_t sum = acc_t(0);
  for (int r = part; r < rows; r += kParts) sum += tile[r * pitch + column];
  sum = total(sum);
  if (writes && e.column_sums) store(static_cast<acc_t*>(e.column_sums) + at, sum);
  if (!e.mean) return;
  const acc_t mean = sum / acc_t(rows);
  acc_t m2 = acc_t(0);
  for (int r = part; r < rows; r += kParts) {
    const acc_t deviation = tile[r * pitch + column] - mean;
    m2 = fma(deviation, deviation, m2);
  }
  m2 = total(m2);
  if (writes) {
    store(static_cast<acc_t*>(e.mean) + at, mean);
    store(static_cast<acc_t*>(e.m2) + at, m2);
  }
}

}  // namespace fastdl::gemm
