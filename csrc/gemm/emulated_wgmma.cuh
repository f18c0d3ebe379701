// float32 products of bfloat16 terms on Hopper's tensor cores: as wgmma.cuh, with three terms of each operand
// in a stage, and sums that move from the tensor cores' registers to others every stage.
#pragma once
#include "gemm/emulated.h"
#include "gemm/emulated_repair.cuh"
#include "gemm/finish.cuh"
#include "gemm/wgmma_ring.cuh"

namespace fastdl::gemm {

template <int tile_n>
struct EmulatedWgmmaShape {
  static constexpr int kTileM = 128, kTileN = tile_n, kStages = tile_n == 192 ? 3 : 4;
  static constexpr int kDepth = 32;  // of a stage: rows of 64 bytes
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kABytes = kTileM * kDepth * 2, kBBytes = tile_n * kDepth * 2;  // of one term
  static constexpr int kStageBytes = kTerms * (kABytes + kBBytes);
  static constexpr int kLines = 32, kPitch = tile_n + 8;  // of sums on their way out
  static constexpr int kSumBytes = kLines * kPitch * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + kSumBytes + 2 * kStages * 8;

  // Of the lines from `line` on, a multiple of 8, and 16 of k.
  FASTDL_DEVICE static uint64_t descriptor(uint32_t tile, int line, int k) {
    return ptx::matrix_descriptor<ptx::Swizzle::k64>(tile + uint32_t(line * kDepth * 2 + k * 2), 0, 512);
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    emulated_wgmma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                          const __grid_constant__ ptx::TensorMap a_map,
                          const __grid_constant__ ptx::TensorMap b_map, int a_batches, int b_batches,
                          void* workspace) {
  constexpr int kStages = Shape::kStages, kN = Shape::kTileN, kHalves = kEmulatedDepth / Shape::kDepth;
  FASTDL_DYNAMIC_SHARED(memory);
  const uint32_t stages = ptx::shared_address(memory);
  const uint32_t full = stages + kStages * Shape::kStageBytes + Shape::kSumBytes, empty = full + kStages * 8;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, Shape::kConsumers / 128);
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  RingPlace<kStages> place;

  if (threadIdx.x >= Shape::kConsumers) {
    ptx::register_decrease<40>();
    if (threadIdx.x > Shape::kConsumers) return;
    for_tiles<kEmulatedDepth>(grid, p.k, [&](const TileWork& work) {
      const int a_plane = a_batches > 1 ? int(work.batch) * kTerms : 0,
                b_plane = b_batches > 1 ? int(work.batch) * kTerms : 0;
      for (int step = 0; step < work.range.steps * kHalves; ++step, place.next()) {
        const uint32_t a = stages + place.stage * Shape::kStageBytes, mbarrier = full + place.stage * 8;
        const int k = int(work.range.begin) + step * Shape::kDepth;
        ptx::mbarrier_wait(empty + place.stage * 8, place.parity ^ 1);
        ptx::mbarrier_arrive_expect(mbarrier, Shape::kStageBytes);
        ptx::tma_load(a, &a_map, mbarrier, k, work.row * Shape::kTileM, a_plane);
        ptx::tma_load(a + kTerms * Shape::kABytes, &b_map, mbarrier, k, work.column * kN, b_plane);
      }
    });
    return;
  }

  ptx::register_increase<232>();
  const int group = int(threadIdx.x) / 128, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  float* const sums = reinterpret_cast<float*>(memory + kStages * Shape::kStageBytes);
  for_tiles<kEmulatedDepth>(grid, p.k, [&](const TileWork& work) {
    float d[kN / 2], sum[kN / 2];
    FASTDL_UNROLL
    for (int i = 0; i < kN / 2; ++i) sum[i] = 0.0f;
#pragma unroll 1
    for (int step = 0; step < work.range.steps * kHalves; ++step, place.next()) {
      const uint32_t a = stages + place.stage * Shape::kStageBytes, b = a + kTerms * Shape::kABytes;
      ptx::mbarrier_wait(full + place.stage * 8, place.parity);
      ptx::keep_registers(d);
      ptx::wgmma_fence();
      FASTDL_UNROLL
      for (int i = 0; i < kTermPairs; ++i) {
        FASTDL_UNROLL
        for (int k = 0; k < Shape::kDepth; k += 16) {
          ptx::wgmma<kN, bfloat16>(d, Shape::descriptor(a + a_term(i) * Shape::kABytes, 64 * group, k),
                                   Shape::descriptor(b + b_term(i) * Shape::kBBytes, 0, k), i > 0 || k > 0);
        }
      }
      ptx::wgmma_commit();
      ptx::keep_registers(d);
      ptx::wgmma_wait<0>();  // the other warpgroup multiplies meanwhile
      ptx::keep_registers(d);
      if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive(empty + place.stage * 8);
      FASTDL_UNROLL
      for (int i = 0; i < kN / 2; ++i) sum[i] += d[i];
    }

    // A warp's 16 rows leave 4 at a time.
    FASTDL_UNROLL
    for (int part = 0; part < 4; ++part) {
      if (lane / 16 == part % 2) {
        float* const line = sums + (4 * warp + lane / 4 % 4) * Shape::kPitch + lane % 4 * 2;
        FASTDL_UNROLL
        for (int j = 0; j < kN / 8; ++j) {
          *reinterpret_cast<Vector<float, 2>*>(line + 8 * j) = {sum[4 * j + part / 2 * 2],
                                                                sum[4 * j + part / 2 * 2 + 1]};
        }
      }
      ptx::barrier_sync(1, Shape::kConsumers);
      const auto row_of = [&](int i) { return i / 4 * 16 + i % 4 + part % 2 * 4 + part / 2 * 8; };
      repair_lines<Shape::kConsumers, Shape::kLines, kN, Shape::kPitch>(p, work, sums, Shape::kTileM, row_of);
      finish_lines<float, Shape::kConsumers, Shape::kLines, kN, Shape::kPitch>(p, grid, work, workspace, sums,
                                                                               Shape::kTileM, false, row_of);
      ptx::barrier_sync(1, Shape::kConsumers);
    }
  });
}

}  // namespace fastdl::gemm
