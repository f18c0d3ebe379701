// Partial sums and moments of a tile's columns, from its stored values in shared memory.
#pragma once
#include "gemm/schedule.h"
#include "vector.cuh"

namespace fastdl::gemm {

// tile [tile_rows][pitch], whose line i holds the work's row row_of(i) -> column_sums, mean and m2 of the
// block of rows. The deviations are taken from the block's own mean, so that a mean far from zero costs no
// digits. All kThreads threads call it; starts with a barrier.
template <int kColumns, int kThreads, class acc_t, class RowOf>
FASTDL_DEVICE void write_column_partials(const Problem& p, const acc_t* tile, int pitch, const TileWork& work,
                                         int tile_rows, RowOf row_of) {
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
  const int64_t left = p.m - int64_t(work.row) * tile_rows, c = int64_t(work.column) * kColumns + column;
  const int rows = left < tile_rows ? int(left) : tile_rows;
  const bool writes = part == 0 && c < p.n;
  const int64_t at = work.row * p.n + c;
  __syncthreads();
  acc_t sum = acc_t(0);
  for (int i = part; i < tile_rows; i += kParts)
    sum += row_of(i) < rows ? tile[i * pitch + column] : acc_t(0);
  sum = total(sum);
  if (writes && e.column_sums) store(static_cast<acc_t*>(e.column_sums) + at, sum);
  if (!e.mean) return;
  const acc_t mean = sum / acc_t(rows);
  acc_t m2 = acc_t(0);
  for (int i = part; i < tile_rows; i += kParts) {
    const acc_t deviation = row_of(i) < rows ? tile[i * pitch + column] - mean : acc_t(0);
    m2 = fma(deviation, deviation, m2);
  }
  m2 = total(m2);
  if (writes) {
    store(static_cast<acc_t*>(e.mean) + at, mean);
    store(static_cast<acc_t*>(e.m2) + at, m2);
  }
}

}  // namespace fastdl::gemm
