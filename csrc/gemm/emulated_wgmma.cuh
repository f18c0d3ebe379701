// float32 products of bfloat16 terms on Hopper's tensor cores: as wgmma.cuh, with three terms of each operand
// in a stage, and sums that move from the tensor cores' registers to others every stage. They leave as there.
#pragma once
#include "gemm/emulated.h"
#include "gemm/emulated_repair.cuh"
#include "gemm/wgmma_exit.cuh"
#include "gemm/wgmma_ring.cuh"

namespace fastdl::gemm {

template <int tile_n>
struct EmulatedWgmmaTile : WgmmaTile<float, 128, tile_n, kHalves> {
  static constexpr bool kMayBeNear = false;
};

template <int tile_n>
struct EmulatedWgmmaShape : EmulatedWgmmaTile<tile_n> {
  using Tile = EmulatedWgmmaTile<tile_n>;
  using Exit = WgmmaExit<Tile>;
  static constexpr int kStages = tile_n == 192 ? 3 : 4, kThreads = Tile::kConsumers + 128;
  static constexpr int kDepth = 32;  // of a stage: rows of 64 bytes
  static constexpr int kABytes = Tile::kTileM * kDepth * 2, kBBytes = tile_n * kDepth * 2;  // of one term
  static constexpr int kStageBytes = kTerms * (kABytes + kBBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + Exit::kBytes + 2 * kStages * 8;

  // Of the lines from `line` on, a multiple of 8, and 16 of k.
  FASTDL_DEVICE static uint64_t descriptor(uint32_t tile, int line, int k) {
    return ptx::matrix_descriptor<ptx::Swizzle::k64>(tile + uint32_t(line * kDepth * 2 + k * 2), 0, 512);
  }
};

// A thread's sums of one tile: rows `row` and 8 below of it, two of every 8 columns from `column` on.
template <class Shape>
FASTDL_DEVICE void repair_tile(const Problem& p, const TileWork& work, int row, int column,
                               float (&sum)[Shape::kTileN / 2]) {
  FASTDL_UNROLL
  for (int x = 0; x < Shape::kTileN / 16; ++x) {
    float* const at = sum + x / 2 * 16 + x % 2 * 2;  // four blocks of 4 sums, this row's two of each
    float value[RowFragment::kCount];
    FASTDL_UNROLL
    for (int c = 0; c < RowFragment::kCount; ++c) value[c] = at[c / 2 * 4 + c % 2];
    repair(p, work,
           {int64_t(work.row) * Shape::kTileM + row + x % 2 * 8,
            int64_t(work.column) * Shape::kTileN + column + x / 2 * 32},
           value);
    FASTDL_UNROLL
    for (int c = 0; c < RowFragment::kCount; ++c) at[c / 2 * 4 + c % 2] = value[c];
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    emulated_wgmma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                          const __grid_constant__ ptx::TensorMap a_map,
                          const __grid_constant__ ptx::TensorMap b_map, int a_batches, int b_batches,
                          void* workspace) {
  constexpr int kStages = Shape::kStages, kN = Shape::kTileN, kHalves = kEmulatedDepth / Shape::kDepth;
  FASTDL_DYNAMIC_SHARED(memory);
  const uint32_t stages = ptx::shared_address(memory);
  const uint32_t full = stages + kStages * Shape::kStageBytes + Shape::Exit::kBytes,
                 empty = full + kStages * 8;
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
  typename Shape::Exit exit(p, grid, workspace, memory + kStages * Shape::kStageBytes);
  for_tiles<kEmulatedDepth>(grid, p.k, [&](const TileWork& work) {
    float d[kN / 2], sum[1][kN / 2];
    FASTDL_UNROLL
    for (int i = 0; i < kN / 2; ++i) sum[0][i] = 0.0f;
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
      for (int i = 0; i < kN / 2; ++i) sum[0][i] += d[i];
    }
    repair_tile<Shape>(p, work, 64 * group + 16 * (warp % 4) + lane / 4, lane % 4 * 2, sum[0]);
    exit.store_tile(work, sum);
  });
}

}  // namespace fastdl::gemm
