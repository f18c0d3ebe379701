// How the threads and blocks that share a channel agree on its sums, always in the same order.
#pragma once
#include "batch_norm/apply.cuh"
#include "batch_norm/plan.h"

namespace fastdl::batch_norm {

struct AddSums {
  FASTDL_DEVICE Sums operator()(const Sums& a, const Sums& b) const { return {a.g + b.g, a.dot + b.dot}; }
};
FASTDL_DEVICE Sums shuffle_values(const Sums& v, int lanes) {
  return {shuffle_xor(v.g, lanes), shuffle_xor(v.dot, lanes)};
}
FASTDL_DEVICE Moments<double> shuffle_values(const Moments<double>& v, int lanes) {
  return shuffle_xor(v, lanes);
}

// Over groups of `width` neighbouring lanes, in a fixed order; every lane gets its group's.
template <class T, class F>
FASTDL_DEVICE T lanes_reduce(T value, int width, F merge) {
  const int lane = int(threadIdx.x) % kWarpSize;
  for (int offset = 1; offset < width; offset *= 2) {
    const T other = shuffle_values(value, offset);
    value = lane & offset ? merge(other, value) : merge(value, other);
  }
  return value;
}

// Values in device memory that blocks write for each other.
template <class T>
FASTDL_DEVICE void publish(double* slot, const T& value) {
  FASTDL_UNROLL
  for (int i = 0; i < int(sizeof(T) / sizeof(double)); ++i) {
    store(slot + i, reinterpret_cast<const double*>(&value)[i]);
  }
}
template <class T>
FASTDL_DEVICE T published(const double* slot) {
  T value;
  FASTDL_UNROLL
  for (int i = 0; i < int(sizeof(T) / sizeof(double)); ++i) {
    reinterpret_cast<double*>(&value)[i] = __ldcg(slot + i);
  }
  return value;
}

// The block's place in its team, and the team's among those in flight. A team's blocks are neighbours.
struct Team {
  static constexpr int kExchange = 3;  // doubles of a value that blocks exchange

  const Plan& plan;
  void* workspace;  // kGroup: an arrival counter a team, then two rounds' values a team
  int64_t index;
  int rank;
  unsigned rounds = 0;

  FASTDL_DEVICE Team(const Plan& plan, void* workspace)
      : plan(plan),
        workspace(workspace),
        index(blockIdx.x / unsigned(plan.team)),
        rank(int(blockIdx.x % unsigned(plan.team))) {}

  FASTDL_HOST_DEVICE static int64_t arrival_bytes(const Plan& plan) {
    return (plan.teams * int64_t(sizeof(unsigned)) + 15) / 16 * 16;
  }
  // Where a team's blocks leave values for each other, block by block, in round 0 and 1 in turns.
  FASTDL_DEVICE static double* exchange(const Plan& plan, void* workspace, int64_t index, unsigned round) {
    return reinterpret_cast<double*>(static_cast<char*>(workspace) + arrival_bytes(plan)) +
           (2 * index + round % 2) * plan.team * plan.totals() * kExchange;
  }
  FASTDL_DEVICE double* exchange() const { return exchange(plan, workspace, index, rounds); }
  static int64_t workspace_bytes(const Plan& plan) {
    return arrival_bytes(plan) + plan.blocks() * 2 * plan.totals() * kExchange * int64_t(sizeof(double));
  }

  // Reports that this block's values are in exchange(). Returns whether it was the team's last,
  // which has to answer. One thread.
  FASTDL_DEVICE bool arrive() {
    __threadfence();
    const bool last = atomicAdd(arrivals(), 1u) + 1 == rounds * (plan.team + 1u) + unsigned(plan.team);
    __threadfence();
    return last;
  }
  FASTDL_DEVICE void answer() {
    __threadfence();
    atomicAdd(arrivals(), 1u);
  }
  // Waits for the whole team and the answer; then sees what was written before them. The same thread.
  FASTDL_DEVICE void wait() {
    const unsigned all = (rounds + 1) * (plan.team + 1u);
    spin_until([&] { return load_atomic(arrivals()) >= all; });
    __threadfence();
  }

  // The channel of the pack that reduce() gives this thread to finish; beyond all of them for most threads.
  FASTDL_DEVICE int finishes() const {
    const int each = int(blockDim.x) / kWarpSize / plan.pack, thread = int(threadIdx.x);
    return thread % each == 0 && thread < each * plan.pack ? thread / each : kMaxPack;
  }

  // Reduces over the threads that hold a channel: of the block, whose warps share the pack's channels evenly,
  // and of the other blocks of the team. done(j, total) is called by one thread for channel j of the pack;
  // afterwards the block is synchronized.
  template <class T, class F, class Done>
  FASTDL_DEVICE void reduce(T value, F merge, Done done) {
    FASTDL_SHARED(partial, T[kThreads / kWarpSize]);
    FASTDL_SHARED(block_total, T);
    const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
    const int warps = int(blockDim.x) / kWarpSize;
    const auto over_warps = [&](int width) {
      value = lanes_reduce(value, kWarpSize, merge);
      if (lane == 0) partial[warp] = value;
      __syncthreads();
      if (warp == 0) value = lanes_reduce(lane < warps ? partial[lane] : T::none(), width, merge);
    };
    over_warps(warps / plan.pack);
    if (plan.regime == Regime::kCluster) {
      if (threadIdx.x == 0) block_total = value;
      ptx::cluster_sync();
      if (warp == 0) value = lane < plan.team ? *ptx::map_shared(&block_total, unsigned(lane)) : T::none();
      if (warp == 0) value = lanes_reduce(value, kWarpSize, merge);
      ptx::cluster_arrive();  // leave() waits until nobody reads here any more
    } else if (plan.regime == Regime::kGroup) {
      double* const round = exchange();
      if (threadIdx.x == 0) {
        publish(round + rank * kExchange, value);
        if (arrive()) answer();
        wait();
      }
      ++rounds;
      __syncthreads();
      value = T::none();
      for (int i = int(threadIdx.x); i < plan.team; i += int(blockDim.x)) {
        value = merge(value, published<T>(round + i * kExchange));
      }
      over_warps(warps);
    }
    if (finishes() < plan.pack) done(finishes(), value);
    __syncthreads();
  }

  // Before the block ends.
  FASTDL_DEVICE void leave() const {
    if (plan.regime == Regime::kCluster) ptx::cluster_wait();
  }

 private:
  FASTDL_DEVICE unsigned* arrivals() const { return static_cast<unsigned*>(workspace) + index; }
};

}  // namespace fastdl::batch_norm
