// What every GPU has: shuffles, votes, atomics, conversions, vector accesses, reductions.
#pragma once
#include "harness.h"

namespace fastdl::conformance {

__global__ void shuffle_kernel(int* out) {
  const int lane = int(threadIdx.x);
  int row = 0;
  for (int width = 32; width >= 2; width /= 2) {
    for (int i = 0; i < width; ++i) {
      out[row++ * 32 + lane] = __shfl_sync(kFullWarp, lane * 3, i + (width < 32 ? 3 : 0), width);
      out[row++ * 32 + lane] = __shfl_up_sync(kFullWarp, lane * 3, unsigned(i), width);
      out[row++ * 32 + lane] = __shfl_down_sync(kFullWarp, lane * 3, unsigned(i), width);
      out[row++ * 32 + lane] = __shfl_xor_sync(kFullWarp, lane * 3, i, width);
    }
  }
}

__global__ void wide_shuffle_kernel(double* out) {
  const double value = 1.0 / (threadIdx.x + 1);
  out[threadIdx.x] = __shfl_xor_sync(kFullWarp, value, 5);
  const unsigned half_mask = threadIdx.x < 16 ? 0xFFFFu : 0xFFFF0000u;
  out[32 + threadIdx.x] = __shfl_down_sync(half_mask, value, 3, 16);
}

__global__ void vote_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned row = 0;
  const auto put = [&](unsigned value) { out[row++ * 32 + lane] = value; };
  put(__ballot_sync(kFullWarp, lane % 3 == 0));
  put(unsigned(__any_sync(kFullWarp, lane == 9)));
  put(unsigned(__any_sync(kFullWarp, lane > 40)));
  put(unsigned(__all_sync(kFullWarp, lane < 31)));
  put(unsigned(__all_sync(kFullWarp, lane < 32)));
  put(__match_any_sync(kFullWarp, lane / 5));
  if (lane < 20) put(__ballot_sync(0xFFFFFu, lane & 1));
}

__global__ void block_vote_kernel(int* out) {
  const int t = int(threadIdx.x);
  out[t] = __syncthreads_count(t % 3 == 0);
  out[96 + t] = __syncthreads_and(t < 95) * 2 + __syncthreads_and(t < 96);
  out[192 + t] = __syncthreads_or(t == 50) * 2 + __syncthreads_or(t == 100);
}

__global__ void atomic_kernel(unsigned* out, float* sum) {
  const unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&out[0], t);
  atomicSub(&out[1], t);
  atomicMax(&out[2], t * 7 % 101);
  atomicMin(&out[3], t * 7 % 101);
  atomicOr(&out[4], 1u << t % 32);
  atomicAnd(&out[5], ~(1u << t % 7));
  atomicXor(&out[6], t);
  atomicInc(&out[7], 4);
  for (unsigned old = atomicAdd(&out[8], 0u), seen; (seen = atomicCAS(&out[8], old, old + t)) != old;)
    old = seen;
  atomicAdd(sum, 1.0f);
}

__global__ void bits_kernel(unsigned* out) {
  const unsigned x = threadIdx.x * 0x9E3779B9u, y = ~x * 3;
  unsigned row = 0;
  const auto put = [&](unsigned value) { out[row++ * 32 + threadIdx.x] = value; };
  put(unsigned(__popc(x)));
  put(unsigned(__clz(int(x))));
  put(unsigned(__ffs(int(x))));
  put(__umulhi(x, y));
  put(__byte_perm(x, y, x & 0x7777));
  put(__funnelshift_r(x, y, x & 63));
  put(__float_as_uint(__saturatef(float(int(x)) * 1e-9f)));
  put(unsigned(__float2int_rn(float(int(x >> 20)) + 0.5f)));
}

// Every 16-bit pattern to float and back; floats and doubles around every rounding boundary.
template <class scalar_t>
__global__ void convert_kernel(float* wide, scalar_t* back, scalar_t* rounded, scalar_t* twice) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned short bits = static_cast<unsigned short>(i);
  scalar_t x;
  memcpy(&x, &bits, sizeof x);
  float f = convert<float>(x), g = __uint_as_float(i * 65537u + (i & 1 ? 0x1000u : 0xFFFu));
  if (f != f) f = 0;  // the bits of a NaN are nobody's promise
  if (g != g) g = 0;
  wide[i] = f;
  back[i] = convert<scalar_t>(f);
  rounded[i] = convert<scalar_t>(g);
  const double between = double(f) * (1 + ((i & 1) ? 1 : 3) * 0x1p-11) + (i & 2 ? 0x1p-60 : 0) * double(f);
  twice[i] = convert<scalar_t>(between);
}

template <class scalar_t, int kCount>
__global__ void vector_kernel(const scalar_t* in, scalar_t* out) {
  const int i = int(threadIdx.x) * kCount;
  auto v = load_vector<kCount, Cache::kStreaming>(in + i);
  const auto w = load_vector<kCount, Cache::kReadOnly>(in + i);
  for (int j = 0; j < kCount; ++j)
    v[j] = convert<scalar_t>(convert<float>(v[j]) + convert<float>(w[kCount - 1 - j]));
  store_vector<Cache::kStreaming>(out + i, v);
}

__global__ void reduce_kernel(const float* in, float* out) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = warp_reduce(x, Sum{});
  out[256 + threadIdx.x] = warp_reduce<8>(x, Max{});
  out[512 + threadIdx.x] = block_reduce(x, Min{}, INFINITY);
  out[768 + threadIdx.x] = block_reduce(x, Sum{}, 0.0f);
}

template <class scalar_t>
void conversions(const std::string& name) {
  Array<float> wide(65536);
  Array<scalar_t> back(65536), rounded(65536), twice(65536);
  accepted(
      launch(convert_kernel<scalar_t>, {256, 256}, wide.device, back.device, rounded.device, twice.device));
  wide.print("convert " + name + " to float");
  back.print("convert float to " + name + ", exact");
  rounded.print("convert float to " + name + ", rounded");
  twice.print("convert double to " + name);
}

template <class scalar_t, int kCount>
void vectors(const std::string& name) {
  Array<scalar_t> in(64 * kCount), out(64 * kCount);
  accepted(launch(vector_kernel<scalar_t, kCount>, {1, 64}, in.device, out.device));
  out.print("vector " + name + " x " + std::to_string(kCount));
}

void warps() {
  Array<int> shuffled(4 * 62 * 32);
  accepted(launch(shuffle_kernel, {1, 32}, shuffled.device));
  shuffled.print("shuffle");
  Array<double> wide(64);
  accepted(launch(wide_shuffle_kernel, {1, 32}, wide.device));
  wide.print("shuffle of 64 bits and half warps");
  Array<unsigned> votes(7 * 32), bits(8 * 32), atomics(9);
  accepted(launch(vote_kernel, {1, 32}, votes.clear().device));
  votes.print("vote and match");
  Array<int> block_votes(3 * 96);
  accepted(launch(block_vote_kernel, {1, 96}, block_votes.device));
  block_votes.print("block vote");
  Array<float> sum(1);
  atomics.clear().fill([](size_t i) { return i == 3 || i == 5 ? 4294967040.0f : 0.0f; });
  accepted(launch(atomic_kernel, {3, 96}, atomics.device, sum.clear().device));
  atomics.print("atomics");
  sum.print("atomic add of floats");
  accepted(launch(bits_kernel, {1, 32}, bits.device));
  bits.print("bits");
  conversions<half>("half");
  conversions<bfloat16>("bfloat16");
  vectors<float, 4>("float");
  vectors<double, 2>("double");
  vectors<half, 8>("half");
  vectors<half, 2>("half");
  vectors<bfloat16, 8>("bfloat16");
  vectors<bfloat16, 4>("bfloat16");
  Array<float> in(256), out(1024);
  accepted(launch(reduce_kernel, {1, 256}, in.device, out.device));
  out.print("reductions of a warp and a block");
}

}  // namespace fastdl::conformance
