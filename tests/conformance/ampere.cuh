// ldmatrix, mma.sync, cp.async: from sm_80 on (ldmatrix from sm_75).
#pragma once
#include "harness.h"

namespace fastdl::conformance {

template <int kCount, bool kTranspose>
__global__ void ldmatrix_kernel(const half* in, uint32_t* out) {
  FASTDL_SHARED(tile, half[32 * 8]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tile[i] = in[i];
  __syncwarp();
  uint32_t r[kCount];
  ptx::ldmatrix<kCount, kTranspose>(r, ptx::shared_address(&tile[lane * 7 % 32 * 8]));
  for (int i = 0; i < kCount; ++i) out[i * 32 + lane] = r[i];
}

template <class scalar_t>
__global__ void mma_kernel(const uint32_t* in, float* out) {
  const int lane = int(threadIdx.x);
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = in[lane * 6 + i], d[i] = float(lane - i);
  for (int i = 0; i < 2; ++i) b[i] = in[lane * 6 + 4 + i];
  if constexpr (std::is_same_v<scalar_t, float>) {
    ptx::mma_m16n8k8_tf32(d, a, b);
  } else {
    ptx::mma_m16n8k16<scalar_t>(d, a, b);
  }
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = d[i];
}

__global__ void tf32_kernel(uint32_t* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = ptx::round_to_tf32(__uint_as_float(0x3F800000u + i * 0x0401u));
}

__global__ void reduce_sync_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  out[lane] = __reduce_add_sync(kFullWarp, lane * lane);
  out[32 + lane] = __reduce_max_sync(kFullWarp, lane ^ 21);
  out[64 + lane] = __reduce_min_sync(kFullWarp, lane ^ 21);
  out[96 + lane] = __reduce_or_sync(kFullWarp, lane & 5);
  out[128 + lane] = __reduce_and_sync(kFullWarp, lane | 8);
}

template <int kBytes>
__global__ void copy_async_kernel(const unsigned char* in, unsigned char* out) {
  FASTDL_SHARED(tile, unsigned char[16 * 32]);
  const int lane = int(threadIdx.x);
  ptx::copy_async<kBytes>(ptx::shared_address(&tile[lane * kBytes]), in + lane * kBytes, lane % (kBytes + 1));
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncwarp();
  for (int i = lane; i < 32 * kBytes; i += 32) out[i] = tile[i];
}

template <int kCount, bool kTranspose>
void check_ldmatrix() {
  Array<half> in(256);
  Array<uint32_t> out(kCount * 32);
  accepted(launch(ldmatrix_kernel<kCount, kTranspose>, {1, 32}, in.device, out.device));
  out.print("ldmatrix x" + std::to_string(kCount) + (kTranspose ? " transposed" : ""));
}

template <class scalar_t>
void check_mma(const std::string& name) {
  Array<scalar_t> in(32 * 24 / sizeof(scalar_t));
  Array<float> out(128);
  accepted(launch(mma_kernel<scalar_t>, {1, 32}, reinterpret_cast<const uint32_t*>(in.device), out.device));
  out.print("mma " + name);
}

template <int kBytes>
void check_copy_async() {
  Array<unsigned char> in(32 * kBytes), out(32 * kBytes);
  in.fill([](size_t i) { return i * 37 % 256; });
  accepted(launch(copy_async_kernel<kBytes>, {1, 32}, in.device, out.device));
  out.print("cp.async of " + std::to_string(kBytes));
}

void ampere() {
  check_ldmatrix<1, false>();
  check_ldmatrix<2, false>();
  check_ldmatrix<4, false>();
  check_ldmatrix<1, true>();
  check_ldmatrix<2, true>();
  check_ldmatrix<4, true>();
  check_mma<half>("m16n8k16 half");
  check_mma<bfloat16>("m16n8k16 bfloat16");
  check_mma<float>("m16n8k8 tf32");
  Array<uint32_t> tf32(4096);
  accepted(launch(tf32_kernel, {16, 256}, tf32.device));
  tf32.print("rounding to tf32");
  Array<unsigned> reduced(5 * 32);
  accepted(launch(reduce_sync_kernel, {1, 32}, reduced.device));
  reduced.print("reduce.sync");
  check_copy_async<4>();
  check_copy_async<8>();
  check_copy_async<16>();
}

}  // namespace fastdl::conformance
