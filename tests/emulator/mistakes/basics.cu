// Warps, shared memory, atomics, spinning.
#include "harness.h"

namespace fastdl::mistakes {

// Neighbours exchange through shared memory within a warp.
__global__ void warp_exchange_kernel(const float* x, float* y) {
  FASTDL_SHARED(s, float[256]);
  const int t = int(threadIdx.x);
  s[t] = x[t];
  if (!mistake(60)) __syncwarp();
  y[t] = s[t ^ 1];
}
FASTDL_CASE(warp_exchange) {
  Buffer<float> x(256), y(256);
  x.fill(value);
  accepted(launch(warp_exchange_kernel, {1, 256}, x.data, y.data));
  for (size_t i = 0; i < 256; ++i) expect_close(y[i], x[i ^ 1], 0, "y");
}

__global__ void histogram_kernel(const int* key, int* count, int n) {
  FASTDL_SHARED(s, int[16]);
  if (threadIdx.x < 16) s[threadIdx.x] = 0;
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    if (mistake(64)) {
      s[key[i]]++;
    } else {
      atomicAdd(&s[key[i]], 1);
    }
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&count[threadIdx.x], s[threadIdx.x]);
}
FASTDL_CASE(histogram) {
  Buffer<int> key(1000), count(16);
  key.fill([](size_t i) { return i * 7 % 16; });
  count.fill([](size_t) { return 0; });
  accepted(launch(histogram_kernel, {1, 128}, key.data, count.data, 1000));
  int expected[16] = {};
  for (size_t i = 0; i < 1000; ++i) ++expected[key[i]];
  for (size_t i = 0; i < 16; ++i) expect(count[i] == expected[i], "count");
}

// Mean and variance of a vector per block, by vector loads and a block reduction.
template <class scalar_t>
__global__ void moments_kernel(const scalar_t* x, float* mean, float* variance, int n) {
  constexpr int kSize = kVectorSize<scalar_t>;
  const Split split = split_range<kSize>(x, n);
  Moments<float> m = Moments<float>::none();
  for (int64_t i = threadIdx.x; i < split.head; i += blockDim.x) m.add(convert<float>(load(x + i)));
  for (int64_t i = threadIdx.x; i < split.vectors; i += blockDim.x) {
    const auto v = load_vector<kSize, Cache::kStreaming>(x + split.head + i * kSize);
    for (int j = 0; j < kSize; ++j) m.add(convert<float>(v[j]));
  }
  for (int64_t i = split.tail + threadIdx.x; i < n; i += blockDim.x) m.add(convert<float>(load(x + i)));
  m = block_reduce(m, MergeMoments{}, Moments<float>::none());
  if (threadIdx.x == 0) store(mean, m.mean), store(variance, m.m2 / m.count);
}
template <class scalar_t>
void check_moments(size_t n, size_t shift) {
  Buffer<scalar_t> x(n + shift);
  Buffer<float> mean(1), variance(1);
  x.fill(value);
  double sum = 0, squares = 0;
  for (size_t i = shift; i < n + shift; ++i) sum += float(x[i]), squares += double(float(x[i])) * float(x[i]);
  accepted(launch(moments_kernel<scalar_t>, {1, 128}, x.data + shift, mean.data, variance.data, int(n)));
  expect_close(mean[0], sum / double(n), 1e-5, "mean");
  expect_close(variance[0], squares / double(n) - sum / double(n) * (sum / double(n)), 1e-4, "variance");
}
FASTDL_CASE(moments) {
  for (const size_t n : {1, 7, 1000, 4099}) {
    for (const size_t shift : {0, 1, 3}) {
      check_moments<float>(n, shift);
      check_moments<half>(n, shift);
      check_moments<bfloat16>(n, shift);
      check_moments<double>(n, shift);
    }
  }
}

__global__ void cluster_sum_kernel(const float* x, float* y) {
  const float sum = cluster_reduce(x[blockIdx.x * blockDim.x + threadIdx.x], Sum{}, 0.0f);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
FASTDL_CASE(cluster_sum) {
  Buffer<float> x(1024), y(8);
  x.fill(value);
  accepted(launch(cluster_sum_kernel, {.grid = 8, .block = 128, .cluster = 4}, x.data, y.data));
  for (size_t b = 0; b < 8; ++b) {
    float sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += x[b / 4 * 512 + i];
    expect_close(y[b], sum, 0, "sum");
  }
}

}  // namespace fastdl::mistakes
