// Statistics from the moments of blocks of rows that a product has left: the input is read once, to be
// normalized.
#pragma once
#include "batch_norm/team.cuh"

namespace fastdl::batch_norm {

// Joins the blocks first, first + step, ... of channel c, always in this order.
template <class acc_t>
FASTDL_DEVICE Moments<double> join_given(const ForwardArguments& a, int64_t c, int first, int step) {
  constexpr int kBatch = 4;  // loads under way at once
  const GivenMoments& g = a.given;
  const auto* mean = static_cast<const acc_t*>(g.mean) + c;
  const auto* m2 = static_cast<const acc_t*>(g.m2) + c;
  Moments<double> total = Moments<double>::none();
  for (int64_t from = first; from < g.blocks; from += kBatch * step) {
    Moments<double> part[kBatch];
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      const int64_t block = from + b * step;
      part[b] = Moments<double>::none();
      if (block >= g.blocks) continue;
      const int64_t rows = min(g.rows, a.size.n - block * g.rows);
      part[b] = {double(rows), double(load(mean + block * a.size.c)), double(load(m2 + block * a.size.c))};
    }
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) total = MergeRuns<acc_t>()(total, part[b]);
  }
  return total;
}

// The threads of a block share the blocks of rows of `channels` channels from c0 on. Thread k < channels gets
// the moments of channel c0 + k; `channels` is a power of two and at most the block's threads.
template <class acc_t>
FASTDL_DEVICE Moments<double> given_moments(const ForwardArguments& a, int64_t c0, int channels) {
  FASTDL_SHARED(table, Moments<double>[kThreads]);
  const int thread = int(threadIdx.x), k = thread % channels, parts = int(blockDim.x) / channels;
  table[thread] =
      c0 + k < a.size.c ? join_given<acc_t>(a, c0 + k, thread / channels, parts) : Moments<double>::none();
  __syncthreads();
  Moments<double> total = Moments<double>::none();
  for (int i = 0; i < parts && thread < channels; ++i) {
    total = MergeRuns<acc_t>()(total, table[i * channels + k]);
  }
  return total;
}

constexpr int kMergedChannels = 32;  // of a block of given_merge_kernel: 128 bytes of a row of float

// Ahead of rows_apply_kernel where its blocks would read more moments than rows: merged (C), published.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads)
    given_merge_kernel(const __grid_constant__ ForwardArguments a, double* merged) {
  const int64_t c0 = int64_t(blockIdx.x) * kMergedChannels, c = c0 + threadIdx.x;
  const auto total = given_moments<accumulator_t<scalar_t>>(a, c0, kMergedChannels);
  if (int(threadIdx.x) < kMergedChannels && c < a.size.c) publish(merged + c * Team::kExchange, total);
}

}  // namespace fastdl::batch_norm
