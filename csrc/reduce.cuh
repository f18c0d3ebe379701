// Reductions over a warp, a block and a cluster, always in the same order: equal inputs give equal bits.
#pragma once
#include "ptx.cuh"
#include "simt.h"

namespace fastdl {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr int kWarpSize = 32, kMaxWarps = 32;

struct Sum {
  template <class T>
  FASTDL_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // NaN wins, as in torch
  template <class T>
  FASTDL_DEVICE T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
struct Min {
  template <class T>
  FASTDL_DEVICE T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

// Count, mean and sum of squared deviations of a part of the data.
template <class acc_t>
struct Moments {
  acc_t count, mean, m2;

  FASTDL_DEVICE static Moments none() { return {acc_t(0), acc_t(0), acc_t(0)}; }

  // One more value (Welford 1962).
  FASTDL_DEVICE void add(acc_t x) {
    count += acc_t(1);
    const acc_t delta = x - mean;
    mean += delta / count;
    m2 += delta * (x - mean);
  }
};

// Two parts joined (Chan, Golub, LeVeque 1983); either may be empty.
struct MergeMoments {
  template <class acc_t>
  FASTDL_DEVICE Moments<acc_t> operator()(const Moments<acc_t>& a, const Moments<acc_t>& b) const {
    const acc_t count = a.count + b.count;
    if (count == acc_t(0)) return a;
    const acc_t delta = b.mean - a.mean, weight = b.count / count;
    return {count, a.mean + delta * weight, a.m2 + b.m2 + delta * delta * a.count * weight};
  }
};

// Shuffles for values of several words.
template <class T>
FASTDL_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kFullWarp, value, lane_mask);
}
template <class acc_t>
FASTDL_DEVICE Moments<acc_t> shuffle_xor(const Moments<acc_t>& value, int lane_mask) {
  return {shuffle_xor(value.count, lane_mask), shuffle_xor(value.mean, lane_mask),
          shuffle_xor(value.m2, lane_mask)};
}

// All lanes get the result over groups of kWidth neighbouring lanes. Both partners of a step compute f(lower
// lane's value, higher lane's value), so that every lane ends with the same bits although f may round
// asymmetrically.
template <int kWidth = kWarpSize, class T, class F>
FASTDL_DEVICE T warp_reduce(T value, F f) {
  const int lane = int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarpSize);
  FASTDL_UNROLL
  for (int offset = 1; offset < kWidth; offset *= 2) {
    const T other = shuffle_xor(value, offset);
    value = lane & offset ? f(other, value) : f(value, other);
  }
  return value;
}

// All threads of the block get the result; blockDim a multiple of 32, linear thread index over x, y, z.
// `empty` is f's neutral element. Contains two barriers: every thread of the block must call it.
template <class T, class F>
FASTDL_DEVICE T block_reduce(T value, F f, T empty) {
  FASTDL_SHARED(partial, T[kMaxWarps]);
  const int thread = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int warps = int(blockDim.x * blockDim.y * blockDim.z) / kWarpSize;
  const int lane = thread % kWarpSize;
  value = warp_reduce(value, f);
  __syncthreads();  // an earlier call may still be reading
  if (lane == 0) partial[thread / kWarpSize] = value;
  __syncthreads();
  return warp_reduce(lane < warps ? partial[lane] : empty, f);
}

// All threads of all blocks of the cluster get the result.
template <class T, class F>
FASTDL_DEVICE T cluster_reduce(T value, F f, T empty) {
  FASTDL_SHARED(block_result, T);
  value = block_reduce(value, f, empty);
  const unsigned size = ptx::cluster_size();
  if (size == 1) return value;
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) block_result = value;
  ptx::cluster_sync();
  T result = empty;
  for (unsigned rank = 0; rank < size; ++rank) result = f(result, *ptx::map_shared(&block_result, rank));
  ptx::cluster_sync();  // nobody leaves or writes again while others read
  return result;
}

}  // namespace fastdl
