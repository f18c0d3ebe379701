// mbarriers, bulk copies, clusters and asynchronous copies on their own.
#include "harness.h"

namespace fastdl::mistakes {

// Rows of a 3-d tensor come in by TMA and a plain bulk copy, and go out by a bulk store.
__global__ void bulk_kernel(const __grid_constant__ ptx::TensorMap map, const float* bias, float* out) {
  FASTDL_DYNAMIC_SHARED(bytes);
  FASTDL_SHARED(mbarrier, uint64_t);
  float* box = reinterpret_cast<float*>(bytes);  // (2, 4, 8)
  float* bias_tile = box + 64;
  const uint32_t to = ptx::shared_address(bytes), full = ptx::shared_address(&mbarrier);
  if (threadIdx.x == 0) {
    if (!mistake(80)) ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (mistake(81)) mbarrier = 0;
    ptx::mbarrier_arrive_expect(full, 64 * 4 + 8 * 4);
    if (mistake(82)) ptx::mbarrier_arrive(full);
    ptx::tma_load(to, &map, full, 8, mistake(83) ? 1 : 2, mistake(83) ? 2 : 1);
    ptx::bulk_load(to + 256, bias + (mistake(84) ? 1 : 0), mistake(85) ? 20 : 32, full);
  }
  ptx::mbarrier_wait(full, mistake(86) ? 1 : 0);
  const float sum = box[threadIdx.x] + bias_tile[threadIdx.x % 8];
  if (!mistake(87)) __syncthreads();
  box[threadIdx.x ^ 1] = sum;
  if (!mistake(88)) ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::bulk_store(out, to, 256);
    ptx::bulk_commit();
    if (mistake(90)) box[3] = 7;  // the copy may still read
    if (!mistake(89)) ptx::bulk_wait<0>();
  }
}
FASTDL_CASE(bulk) {
  Buffer<float> x(3 * 6 * 20), bias(16), out(64);
  x.fill(value);
  bias.fill([](size_t i) { return 10.0 * double(i); });
  const uint64_t size[] = {18, 6, 3}, stride[] = {80, 480};
  const uint32_t box[] = {8, 4, 2};
  ptx::TensorMap map;
  accepted(ptx::make_tensor_map(&map, x.data, 3, size, stride, box, ptx::Swizzle::kNone));
  accepted(launch(bulk_kernel, {1, 64, 512}, map, bias.data, out.data));
  for (int i = 0; i < 64; ++i) {
    const int source = i ^ 1, column = 8 + source % 8, row = 2 + source / 8 % 4, plane = 1 + source / 32;
    expect_close(out[size_t(i)], x[size_t(plane * 120 + row * 20 + column)] + 10 * (source % 8), 0, "out");
  }
}

// Each block of a cluster adds its neighbour's values, read in the neighbour's shared memory.
__global__ void neighbour_kernel(const float* x, float* y) {
  FASTDL_SHARED(s, float[64]);
  const unsigned rank = ptx::cluster_rank(), size = ptx::cluster_size(), t = threadIdx.x;
  const unsigned i = blockIdx.x * blockDim.x + t;
  s[t] = x[i];
  if (!mistake(91)) ptx::cluster_sync();
  const float other = ptx::map_shared(s, (rank + 1) % size + (mistake(92) ? size : 0))[t];
  y[i] = x[i] + other;
  if (mistake(93)) return;  // the neighbour may still be reading
  ptx::cluster_arrive();
  if (mistake(94)) ptx::cluster_arrive();
  if (!mistake(95)) ptx::cluster_wait();
  s[t] = 0;
}
FASTDL_CASE(neighbour) {
  Buffer<float> x(256), y(256);
  x.fill(value);
  LaunchConfig config{4, 64};
  config.cluster = 4;
  accepted(launch(neighbour_kernel, config, x.data, y.data));
  for (size_t i = 0; i < 256; ++i) expect_close(y[i], x[i] + x[(i + 64) % 256], 0, "y");
}

// Each block of a cluster adds what all of them have, 16 bytes at a time, in the order of their ranks.
__global__ void gather_kernel(const float* x, float* y) {
  FASTDL_SHARED(s, float[4 * 32]);
  const int t = int(threadIdx.x);
  for (int j = 0; j < 4; ++j) s[4 * t + j] = x[(blockIdx.x * blockDim.x + threadIdx.x) * 4 + unsigned(j)];
  if (!mistake(96)) ptx::cluster_sync();
  float sum[4] = {0, 0, 0, 0}, part[4];
  for (unsigned rank = 0; rank < ptx::cluster_size(); ++rank) {
    const uint32_t own = ptx::shared_address(&s[4 * t + (mistake(97) ? 1 : 0)]);
    ptx::load_cluster(part, mistake(98) ? own : ptx::map_address(own, rank));
    for (int j = 0; j < 4; ++j) sum[j] += part[j];
  }
  for (int j = 0; j < 4; ++j) y[(blockIdx.x * blockDim.x + threadIdx.x) * 4 + unsigned(j)] = sum[j];
  if (!mistake(99)) ptx::cluster_sync();
}
FASTDL_CASE(gather) {
  Buffer<float> x(512), y(512);
  x.fill(value);
  LaunchConfig config{4, 32};
  config.cluster = 4;
  accepted(launch(gather_kernel, config, x.data, y.data));
  for (size_t i = 0; i < 512; ++i) {
    const size_t j = i % 128;
    expect_close(y[i], x[j] + x[j + 128] + x[j + 256] + x[j + 384], 0, "y");
  }
}

// Two halves of a block hand data over by named barriers: one half only arrives, the other waits.
__global__ void hand_over_kernel(const float* x, float* y) {
  FASTDL_SHARED(s, float[64]);
  const unsigned t = threadIdx.x % 64;
  if (threadIdx.x < 64) {
    s[t] = x[t];
    if (!mistake(100)) ptx::barrier_arrive(1, mistake(101) ? 64 : 128);
  } else {
    if (!mistake(102)) ptx::barrier_sync(mistake(103) ? 2 : 1, 128);
    y[t] = s[63 - t];
  }
}
FASTDL_CASE(hand_over) {
  Buffer<float> x(64), y(64);
  x.fill(value);
  accepted(launch(hand_over_kernel, {1, 128}, x.data, y.data));
  for (size_t i = 0; i < 64; ++i) expect_close(y[i], x[63 - i], 0, "y");
}

// cp.async of single words, each thread its own; then another thread's.
__global__ void copy_kernel(const float* x, float* y) {
  FASTDL_SHARED(s, float[128]);
  const int t = int(threadIdx.x);
  ptx::copy_async<4>(ptx::shared_address(&s[t]), x + t);
  if (mistake(104)) {
    ptx::copy_async<16>(ptx::shared_address(&s[t]), x + t);  // not aligned to 16 bytes
  }
  ptx::copy_async_commit();
  if (!mistake(105)) ptx::copy_async_wait<0>();
  if (!mistake(106)) __syncthreads();
  y[t] = s[127 - t];
}
FASTDL_CASE(copy) {
  Buffer<float> x(128), y(128);
  x.fill(value);
  accepted(launch(copy_kernel, {1, 128}, x.data, y.data));
  for (size_t i = 0; i < 128; ++i) expect_close(y[i], x[127 - i], 0, "y");
}

// One lane of a converged warp does the work.
__global__ void elected_kernel(unsigned* count) {
  if (mistake(108) && threadIdx.x % 32 < 4) {
    if (ptx::elect_one()) atomicAdd(count, 1u);
  } else {
    if (ptx::elect_one()) atomicAdd(count, 1u);
  }
}
FASTDL_CASE(elected) {
  Buffer<unsigned> count(1);
  count[0] = 0;
  accepted(launch(elected_kernel, {1, 96}, count.data));
  expect(count[0] == 3, "count");
}

}  // namespace fastdl::mistakes
