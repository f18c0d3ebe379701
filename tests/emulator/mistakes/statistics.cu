// Mean and variance per channel as batch norm takes them, in three shapes: a block per channel, blocks that
// share a channel (the last one combines), and a cooperative grid.
#include "harness.h"

namespace fastdl::mistakes {

using Part = Moments<float>;

// x (N, C, S). One block per channel.
template <int kSize>
__global__ void __launch_bounds__(256)
    channel_kernel(const float* x, float* mean, float* variance, int N, int C, int S) {
  const int c = int(blockIdx.x), per_row = S / kSize, total = N * per_row;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  Part part = Part::none();
  for (int i = int(threadIdx.x); mistake(4) ? i <= total : i < total; i += int(blockDim.x)) {
    const int n = i / per_row, j = (i - n * per_row) * kSize;
    const auto v = load_vector<kSize>(x + (int64_t(n) * C + c) * S + j);
    for (int k = 0; k < kSize; ++k) part.add(v[k]);
  }
  if (mistake(2) && int(threadIdx.x) >= total) return;  // before a barrier
  part = warp_reduce(part, MergeMoments{});
  FASTDL_SHARED(parts, Part[32]);
  if (lane == 0) parts[warp] = part;
  if (mistake(3)) {
    if (warp == 0) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (!mistake(1)) {
    __syncthreads();
  }
  if (warp == 0) {
    part = mistake(5) || lane < int(blockDim.x / 32) ? parts[lane] : Part::none();
    part = warp_reduce(part, MergeMoments{});
    if (lane == 0) mean[c] = part.mean, variance[c] = part.m2 / part.count;
  }
}

// x (M, C). Blocks of 32 channels by 8 rows; gridDim.y blocks share the rows, the last to finish combines.
__global__ void __launch_bounds__(256) shared_channel_kernel(const float* x, Part* parts, unsigned* finished,
                                                             float* mean, float* variance, int M, int C) {
  const int c = int(blockIdx.x * 32 + threadIdx.x);
  FASTDL_SHARED(s, Part[8][33]);
  FASTDL_SHARED(last, bool);
  Part part = Part::none();
  for (int r = int(blockIdx.y * blockDim.y + threadIdx.y); c < C && r < M; r += int(gridDim.y * blockDim.y)) {
    part.add(x[int64_t(r) * C + c]);
  }
  s[threadIdx.y][threadIdx.x] = part;
  __syncthreads();
  for (unsigned offset = 4; offset; offset /= 2) {
    if (threadIdx.y < offset) {
      s[threadIdx.y][threadIdx.x] =
          MergeMoments{}(s[threadIdx.y][threadIdx.x], s[threadIdx.y + offset][threadIdx.x]);
    }
    if (!mistake(6)) __syncthreads();
  }
  if (threadIdx.y == 0 && c < C) parts[int64_t(blockIdx.y) * C + c] = s[0][threadIdx.x];
  if (!mistake(7)) __threadfence();
  if (!mistake(8)) __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    last = atomicInc(&finished[blockIdx.x], gridDim.y - 1) == gridDim.y - 1;
    if (!mistake(14)) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.y == 0 && c < C) {
    Part all = Part::none();
    for (unsigned i = 0; i < gridDim.y; ++i) all = MergeMoments{}(all, parts[int64_t(i) * C + c]);
    mean[c] = all.mean;
    variance[c] = all.m2 / all.count;
  }
}

// Two rounds over the whole grid.
__global__ void grid_sum_kernel(const float* x, float* parts, float* out, int n) {
  float sum = 0;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x))
    sum += x[i];
  sum = block_reduce(sum, Sum{}, 0.0f);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
  if (!mistake(9)) grid_sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    float all = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) all += parts[i];
    *out = all;
  }
}

// The element (n, c, s) lies at n * stride_n + c * stride_c + s * stride_s.
static void check(Buffer<float>& x, const Buffer<float>& mean, const Buffer<float>& variance, int N, int C,
                  int S, size_t stride_n, size_t stride_c, size_t stride_s) {
  for (int c = 0; c < C; ++c) {
    double sum = 0, squares = 0;
    for (int n = 0; n < N; ++n) {
      for (int s = 0; s < S; ++s) {
        const double v = x[size_t(n) * stride_n + size_t(c) * stride_c + size_t(s) * stride_s];
        sum += v, squares += v * v;
      }
    }
    const double count = double(N) * S, m = sum / count;
    expect_close(mean.data[c], m, 1e-4, "mean");
    expect_close(variance.data[c], squares / count - m * m, 1e-3, "variance");
  }
}

template <int kSize>
static void check_channel(int N, int C, int S) {
  Buffer<float> x(N * C * S), mean(C), variance(C);
  x.fill([](size_t i) { return 3 + value(i); });
  accepted(launch(channel_kernel<kSize>, {unsigned(C), 256}, x.data, mean.data, variance.data, N, C, S));
  check(x, mean, variance, N, C, S, size_t(C) * size_t(S), size_t(S), 1);
}
FASTDL_CASE(channel) {
  check_channel<4>(4, 3, 36);
  check_channel<1>(2, 5, 7);
  check_channel<4>(8, 2, 256);
}
FASTDL_CASE(shared_channel) {
  for (const int C : {33, 8}) {
    const int M = 200, blocks = 4, groups = (C + 31) / 32;
    Buffer<float> x(M * C), mean(C), variance(C);
    Buffer<Part> parts(blocks * C);
    Buffer<unsigned> finished(groups);
    x.fill([](size_t i) { return 3 + value(i); });
    finished.fill([](size_t) { return 0; });
    accepted(launch(shared_channel_kernel, {dim3(unsigned(groups), blocks), dim3(32, 8)}, x.data, parts.data,
                    finished.data, mean.data, variance.data, M, C));
    check(x, mean, variance, M, C, 1, size_t(C), 1, 0);
  }
}
FASTDL_CASE(grid_sum) {
  Buffer<float> x(5000), parts(6), out(1);
  x.fill(value);
  LaunchConfig config{6, 128};
  config.cooperative = !mistake(15);
  accepted(launch(grid_sum_kernel, config, x.data, parts.data, out.data, 5000));
  float sum = 0;
  for (size_t i = 0; i < 5000; ++i) sum += x[i];
  expect_close(out[0], sum, 0, "sum");
}

}  // namespace fastdl::mistakes
