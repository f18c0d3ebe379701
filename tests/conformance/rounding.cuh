// Whether tensor cores cut the sums that they accumulate: 1 + 1.5 * 2^-24 is 1 if so, and 1 + 2^-23 to
// nearest. The CPU answers as one that cuts; a GPU that differs says so here, and csrc/gemm/emulated.h has to
// be thought over.
#pragma once
#include "harness.h"

#if !defined(__CUDACC__)
extern "C" void fastdl_emulator_truncation(int on);
#endif

namespace fastdl::conformance {

constexpr uint32_t kLeft = 0x39C0, kRight = 0x3980;  // bfloat16: 1.5 * 2^-12, 2^-12

// Element k = 0 of every row and column, all others zero, on accumulators of 1 and -1.
__global__ void mma_rounding_kernel(float* out) {
  const int lane = int(threadIdx.x);
  const uint32_t first = lane % 4 == 0;
  const uint32_t a[4] = {first * kLeft, first * kLeft, 0, 0}, b[2] = {first * kRight, 0};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = i % 2 ? -1.0f : 1.0f;
  ptx::mma_m16n8k16<bfloat16>(d, a, b);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = d[i];
}

__global__ void __launch_bounds__(128) wgmma_rounding_kernel(float* out) {
  FASTDL_DYNAMIC_SHARED(bytes);  // b (8 x 16), k adjacent, as two matrices of 8 x 8
  uint16_t* const b = reinterpret_cast<uint16_t*>(bytes);
  b[threadIdx.x] = threadIdx.x < 64 && threadIdx.x % 8 == 0 ? uint16_t(kRight) : uint16_t(0);
  ptx::fence_proxy_async();
  __syncthreads();
  const uint32_t first = threadIdx.x % 4 == 0;
  const uint32_t a[4] = {first * kLeft, first * kLeft, 0, 0};
  float d[4];
  FASTDL_UNROLL
  for (int i = 0; i < 4; ++i) d[i] = i % 2 ? -1.0f : 1.0f;
  ptx::keep_registers(d);
  ptx::wgmma_fence();
  ptx::wgmma<8, bfloat16>(d, a,
                          ptx::matrix_descriptor<ptx::Swizzle::kNone>(ptx::shared_address(bytes), 128, 128));
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::keep_registers(d);
  FASTDL_UNROLL
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + unsigned(i)] = d[i];
}

void rounding(int capability) {
#if !defined(__CUDACC__)
  fastdl_emulator_truncation(1);
#endif
  Array<float> warp(32 * 4), group(128 * 4);
  accepted(launch(mma_rounding_kernel, {1, 32}, warp.device));
  warp.print("mma bfloat16 sums are cut");
  if (capability == 90) {
    accepted(launch(wgmma_rounding_kernel, {1, 128, 1024}, group.device));
    group.print("wgmma bfloat16 sums are cut");
    require(group.host[0] == warp.host[0] && group.host[1] == warp.host[1], "wgmma rounds as mma does");
  }
#if !defined(__CUDACC__)
  fastdl_emulator_truncation(0);
#endif
}

}  // namespace fastdl::conformance
