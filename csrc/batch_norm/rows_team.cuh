// Channels last: how the threads and blocks that share a slice of channels agree on its sums, always in the
// same order.
#pragma once
#include "batch_norm/team.cuh"

namespace fastdl::batch_norm {

constexpr int kWarps = kThreads / kWarpSize;

// A slice's totals, one thread a channel.
template <class T, int kSize>
class SliceTotals {
 public:
  static constexpr int kMaxSlice = 8 * kSize;
  using Table = T[kWarps][kMaxSlice];

  FASTDL_DEVICE SliceTotals(Team& team, Table& table)
      : team_(team), plan_(team.plan), table_(table), thread_(int(threadIdx.x)) {}

  // Reduces over the threads that hold the same vector of channels, values[j] being that of its element j,
  // then over the team's blocks. done(k, total) is called by one thread for channel k of the slice;
  // afterwards the block is synchronized. Where the plan streams, only the team's last block gets that far;
  // it alone calls done, with the totals of all.
  template <class F, class Done>
  FASTDL_DEVICE void reduce(T (&values)[kSize], F merge, Done done) {
    const int lanes = int(plan_.vectors), lane = thread_ % kWarpSize;
    T* const row = &table_[thread_ / kWarpSize][lane < lanes ? lane * kSize : 0];
    const int turn = place(lane * kSize) % kSize;
    for_each<kSize>([&](int j) {
      T value = values[j];
      for (int offset = lanes; offset < kWarpSize; offset *= 2) {
        const T other = shuffle_values(value, offset);
        value = lane & offset ? merge(other, value) : merge(value, other);
      }
      if (lane < lanes) row[j ^ turn] = value;
    });
    __syncthreads();
    const bool finishes = thread_ < plan_.pack;
    T total = over_rows(int(blockDim.x) / kWarpSize, merge);
    if (plan_.regime == Regime::kCluster) {
      __syncthreads();
      if (finishes) table_[0][thread_] = total;
      ptx::cluster_sync();
      if (finishes) {
        total = T::none();
        for (int i = 0; i < plan_.team; ++i) {
          total = merge(total, *ptx::map_shared(&table_[0][thread_], unsigned(i)));
        }
      }
      ptx::cluster_arrive();  // leave() waits until nobody reads here any more
    } else if (plan_.regime == Regime::kGroup) {
      FASTDL_SHARED(last, bool);
      double* const round = team_.exchange();
      if (finishes) publish(round + (team_.rank * plan_.pack + thread_) * Team::kExchange, total);
      __syncthreads();
      if (thread_ == 0) last = team_.arrive();
      __syncthreads();
      if (last) {  // it alone reads what all have left, and leaves the sum where the first block's was
        total = over_blocks(round, merge);
        if (finishes) publish(round + thread_ * Team::kExchange, total);
        __syncthreads();
        if (thread_ == 0) team_.answer();
      } else {
        if (thread_ == 0) team_.wait();
        __syncthreads();
        if (finishes) total = published<T>(round + thread_ * Team::kExchange);
      }
      ++team_.rounds;
    }
    if (finishes) done(thread_, total);
    __syncthreads();
  }

 private:
  // Where a row of the table has channel k. Lanes that write elements of their vectors, kSize channels apart,
  // and threads that read neighbours find different banks.
  FASTDL_DEVICE static int place(int k) {
    const unsigned lane = unsigned(k) / kSize;
    return k ^ int((lane ^ lane / kSize ^ lane / kSize / kSize) % kSize);
  }

  // Of this thread's channel, over rows of the table.
  template <class F>
  FASTDL_DEVICE T over_rows(int rows, F merge) const {
    T total = T::none();
    for (int row = 0; row < rows && thread_ < plan_.pack; ++row)
      total = merge(total, table_[row][place(thread_)]);
    return total;
  }

  // Over what the team's blocks have left. All threads call it: they share the blocks, several loads under
  // way at once, and meet in the table.
  template <class F>
  FASTDL_DEVICE T over_blocks(const double* round, F merge) {
    constexpr int kBatch = 8;
    const int rows = min(kWarps, int(blockDim.x) / plan_.pack), row = thread_ / plan_.pack;
    const int k = thread_ % plan_.pack;
    T total = T::none();
    for (int first = row; row < rows && first < plan_.team; first += kBatch * rows) {
      T batch[kBatch];
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int block = first + b * rows;
        batch[b] =
            block < plan_.team ? published<T>(round + (block * plan_.pack + k) * Team::kExchange) : T::none();
      }
      FASTDL_UNROLL
      for (int width = 1; width < kBatch; width *= 2) {
        FASTDL_UNROLL
        for (int b = 0; b < kBatch; b += 2 * width) batch[b] = merge(batch[b], batch[b + width]);
      }
      total = merge(total, batch[0]);
    }
    if (row < rows) table_[row][place(k)] = total;
    __syncthreads();
    return over_rows(rows, merge);
  }

  Team& team_;
  const Plan& plan_;
  Table& table_;
  int thread_;
};

// Behind a launch that streams, a block a channel: what its team's blocks have left in Team::exchange, to
// where a second round would begin.
template <class Arguments, class T, class Merge>
__global__ void __launch_bounds__(kThreads)
    rows_merge_kernel(const __grid_constant__ Arguments, const __grid_constant__ Plan plan, void* workspace) {
  FASTDL_SHARED(partial, T[kWarps]);
  const int64_t slice = blockIdx.x / unsigned(plan.pack);
  const int k = int(blockIdx.x % unsigned(plan.pack)), lane = int(threadIdx.x) % kWarpSize;
  const double* const from = Team::exchange(plan, workspace, slice, 0) + k * Team::kExchange;
  T total = T::none();
  for (int i = int(threadIdx.x); i < plan.team; i += kThreads) {
    total = Merge()(total, published<T>(from + int64_t(i) * plan.pack * Team::kExchange));
  }
  total = lanes_reduce(total, kWarpSize, Merge());
  if (lane == 0) partial[threadIdx.x / kWarpSize] = total;
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  total = lanes_reduce(lane < kWarps ? partial[lane] : T::none(), kWarpSize, Merge());
  if (lane == 0) publish(Team::exchange(plan, workspace, slice, 1) + k * Team::kExchange, total);
}

}  // namespace fastdl::batch_norm
