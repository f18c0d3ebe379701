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
  Split split = split_range<kSize>(x, n);
  if (mistake(71)) split = {0, n / kSize, n - n % kSize};  // ignores the address
  Moments<float> m = Moments<float>::none();
  for (int64_t i = threadIdx.x; i < split.head; i += blockDim.x) m.add(convert<float>(load(x + i)));
  for (int64_t i = threadIdx.x; i < split.vectors; i += blockDim.x) {
    const auto v = load_vector<kSize, Cache::kStreaming>(x + split.head + i * kSize);
    for (int j = 0; j < kSize; ++j) m.add(convert<float>(v[j]));
  }
  for (int64_t i = split.tail + threadIdx.x; i < (mistake(78) ? 0 : n); i += blockDim.x)
    m.add(convert<float>(load(x + i)));
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

// A shuffle whose result only some lanes use.
__global__ void partial_shuffle_kernel(const float* x, float* y, int n) {
  const int t = int(threadIdx.x);
  const bool takes = t % 32 < n;
  float result = x[t];
  if (mistake(61)) {
    if (takes) result = __shfl_down_sync(kFullWarp, x[t], 1);  // the other lanes never come
  } else {
    const float next = __shfl_down_sync(kFullWarp, x[t], 1);
    if (takes) result = next;
  }
  y[t] = result;
}
FASTDL_CASE(partial_shuffle) {
  Buffer<float> x(64), y(64);
  x.fill([](size_t i) { return i; });
  accepted(launch(partial_shuffle_kernel, {1, 64}, x.data, y.data, 16));
  for (size_t i = 0; i < 64; ++i) expect_close(y[i], i % 32 < 16 ? i + 1 : i, 0, "y");
}

// Two arrays side by side: writing past the first must not go unnoticed.
__global__ void shift_kernel(const float* x, float* y) {
  FASTDL_SHARED(a, float[32]);
  FASTDL_SHARED(b, float[32]);
  const int t = int(threadIdx.x);
  b[t] = 0;
  if (mistake(62)) {
    a[t + 1] = x[t];
    if (t == 0) a[0] = 0;
  } else {
    a[t] = t ? x[t - 1] : 0;
  }
  __syncthreads();
  y[t] = a[t] + b[t];
}
FASTDL_CASE(shift) {
  Buffer<float> x(32), y(32);
  x.fill(value);
  accepted(launch(shift_kernel, {1, 32}, x.data, y.data));
  for (size_t i = 0; i < 32; ++i) expect_close(y[i], i ? x[i - 1] : 0, 0, "y");
}

__global__ void reverse_kernel(const float* x, float* y) {
  FASTDL_DYNAMIC_SHARED(bytes);
  float* s = reinterpret_cast<float*>(bytes);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
FASTDL_CASE(reverse) {
  Buffer<float> x(1056), y(1056);
  x.fill(value);
  const unsigned threads = mistake(69) ? 1056 : 128;
  const size_t shared = threads * sizeof(float) - (mistake(63) ? sizeof(float) : 0);
  accepted(launch(reverse_kernel, {1, threads, shared}, x.data, y.data));
  for (size_t i = 0; i < threads; ++i) expect_close(y[i], x[threads - 1 - i], 0, "y");
}

__global__ void accumulate_kernel(const float* x, float* y, int n) {
  float sum[4];
  for (int i = 0; i < (mistake(65) ? 3 : 4); ++i) sum[i] = 0;
  for (int i = 0; i < n; ++i) sum[i % 4] += x[i];
  y[threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3];
}
FASTDL_CASE(accumulate) {
  Buffer<float> x(64), y(32);
  x.fill([](size_t) { return 1; });
  accepted(launch(accumulate_kernel, {1, 32}, x.data, y.data, 64));
  for (size_t i = 0; i < 32; ++i) expect_close(y[i], 64, 0, "y");
}

// Block i continues what block i - 1 left in global memory. Blocks start in any order: a ticket gives the
// number.
__global__ void chain_kernel(unsigned* flag, unsigned* out) {
  if (threadIdx.x) return;
  const unsigned b = mistake(67) ? blockIdx.x : atomicAdd(&flag[gridDim.x], 1u);
  if (b) spin_until([&] { return atomicAdd(&flag[b - 1], 0u) != 0; });
  if (!mistake(72)) __threadfence();
  out[b] = b ? out[b - 1] + 1 : 1;
  if (!mistake(73)) __threadfence();
  atomicExch(&flag[b], 1u);
}
FASTDL_CASE(chain) {
  Buffer<unsigned> flag(9), out(8);
  flag.fill([](size_t) { return 0; });
  accepted(launch(chain_kernel, {8, 32}, flag.data, out.data));
  for (size_t i = 0; i < 8; ++i) expect(out[i] == i + 1, "out");
}

__global__ void one_cell_per_block_kernel(float* y) {
  if (threadIdx.x == 0) y[mistake(68) ? 0 : blockIdx.x] = float(blockIdx.x);
}
FASTDL_CASE(one_cell_per_block) {
  Buffer<float> y(4);
  accepted(launch(one_cell_per_block_kernel, {4, 32}, y.data));
  for (size_t i = 0; i < 4; ++i) expect_close(y[i], double(i), 0, "y");
}

// Arithmetic that UndefinedBehaviorSanitizer watches: a 32-bit index, a shift.
__global__ void index_kernel(const int* x, int64_t* y, int rows, int width) {
  const int64_t wide = int64_t(rows) * width;
  y[0] = mistake(74) ? rows * width : wide;
  y[1] = mistake(75) ? 1 << (x[0] + 31) : int64_t(1) << (x[0] + 31);
}
FASTDL_CASE(index) {
  Buffer<int> x(1);
  Buffer<int64_t> y(2);
  x[0] = 1;
  accepted(launch(index_kernel, {1, 1}, x.data, y.data, 1 << 17, 1 << 16));
  expect(y[0] == int64_t(1) << 33, "64-bit index");
  expect(y[1] == int64_t(1) << 32, "shift");
}

// Lanes that have exited take no part in a warp reduction.
__global__ void tail_sum_kernel(const float* x, float* y, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (mistake(76) && i >= n) return;
  const float sum = warp_reduce(i < n ? x[i] : 0.0f, Sum{});
  if (threadIdx.x % 32 == 0) atomicAdd(y, sum);
}
FASTDL_CASE(tail_sum) {
  Buffer<float> x(50), y(1);
  x.fill([](size_t i) { return i; });
  y[0] = 0;
  accepted(launch(tail_sum_kernel, {1, 64}, x.data, y.data, 50));
  expect_close(y[0], 49 * 25, 0, "sum");
}

// An atomic on bytes that only look like a float.
__global__ void byte_counter_kernel(unsigned char* bytes) {
  atomicAdd(reinterpret_cast<unsigned*>(bytes + (mistake(77) ? 2 : 4)), 1u);
}
FASTDL_CASE(byte_counter) {
  Buffer<unsigned> counter(2);
  counter.fill([](size_t) { return 0; });
  accepted(launch(byte_counter_kernel, {1, 32}, reinterpret_cast<unsigned char*>(counter.data)));
  expect(counter[1] == 32, "counter");
}

}  // namespace fastdl::mistakes
