// 16-bit products on Hopper's tensor cores: a producer warp fetches steps of k by TMA into a ring of stages,
// two warpgroups multiply them where they lie, half of the tile's rows each. Blocks stay and take tile after
// tile: the next one's steps arrive while this one's sums leave.
#pragma once
#include "gemm/finish.cuh"
#include "gemm/wgmma_ring.cuh"

namespace fastdl::gemm {

template <class scalar, int tile_n, bool a_deep, bool b_deep>
struct WgmmaShape {
  using scalar_t = scalar;
  using A = WgmmaOperand<128, a_deep>;
  using B = WgmmaOperand<tile_n, b_deep>;
  static constexpr int kTileM = 128, kTileN = tile_n, kStages = tile_n == 256 ? 3 : 5;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kLines = 64, kPitch = tile_n + 8;  // of sums on their way out
  static constexpr int kStageBytes = A::kBytes + B::kBytes, kSumBytes = kLines * kPitch * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + kSumBytes + 2 * kStages * 8;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    wgmma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                 const __grid_constant__ ptx::TensorMap a_map, const __grid_constant__ ptx::TensorMap b_map,
                 void* workspace) {
  using scalar_t = typename Shape::scalar_t;
  using A = typename Shape::A;
  using B = typename Shape::B;
  constexpr int kStages = Shape::kStages, kN = Shape::kTileN;
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
    for_tiles(grid, p.k, [&](const TileWork& work) {
      const int a_batch = p.a.batch ? int(work.batch) : 0, b_batch = p.b.batch ? int(work.batch) : 0;
      for (int step = 0; step < work.range.steps; ++step, place.next()) {
        const uint32_t a = stages + place.stage * Shape::kStageBytes, mbarrier = full + place.stage * 8;
        const int k = int(work.range.begin) + step * kWgmmaDepth;
        ptx::mbarrier_wait(empty + place.stage * 8, place.parity ^ 1);
        ptx::mbarrier_arrive_expect(mbarrier, Shape::kStageBytes);
        A::fetch(a, &a_map, mbarrier, work.row * Shape::kTileM, k, a_batch);
        B::fetch(a + A::kBytes, &b_map, mbarrier, work.column * kN, k, b_batch);
      }
    });
    return;
  }

  ptx::register_increase<232>();
  const int group = int(threadIdx.x) / 128, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  float* const sums = reinterpret_cast<float*>(memory + kStages * Shape::kStageBytes);
  const auto release = [&](uint32_t stage) {
    if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive(empty + stage * 8);
  };
  for_tiles(grid, p.k, [&](const TileWork& work) {
    float d[kN / 2];
    FASTDL_UNROLL
    for (int i = 0; i < kN / 2; ++i) d[i] = 0.0f;
    uint32_t before = 0;  // the stage whose products may still be under way
#pragma unroll 1
    for (int step = 0; step < work.range.steps; ++step, place.next()) {
      const uint32_t a = stages + place.stage * Shape::kStageBytes;
      ptx::mbarrier_wait(full + place.stage * 8, place.parity);
      ptx::keep_registers(d);
      ptx::wgmma_fence();
      FASTDL_UNROLL
      for (int k = 0; k < kWgmmaDepth; k += 16) {
        ptx::wgmma<kN, scalar_t, A::kMajor, B::kMajor>(d, A::descriptor(a, 64 * group, k),
                                                       B::descriptor(a + A::kBytes, 0, k));
      }
      ptx::wgmma_commit();
      ptx::keep_registers(d);
      ptx::wgmma_wait<1>();
      if (step > 0) release(before);
      before = place.stage;
    }
    ptx::wgmma_wait<0>();
    ptx::keep_registers(d);
    if (work.range.steps > 0) release(before);

    // A warp's 16 rows leave in two halves of 8.
    FASTDL_UNROLL
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      float* const line = sums + (8 * warp + lane / 4) * Shape::kPitch + lane % 4 * 2;
      FASTDL_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        *reinterpret_cast<Vector<float, 2>*>(line + 8 * j) = {d[4 * j + 2 * half_tile],
                                                              d[4 * j + 2 * half_tile + 1]};
      }
      ptx::barrier_sync(1, Shape::kConsumers);
      finish_lines<scalar_t, Shape::kConsumers, Shape::kLines, kN, Shape::kPitch>(
          p, grid, work, workspace, sums, Shape::kTileM, false,
          [&](int i) { return i / 8 * 16 + i % 8 + 8 * half_tile; });
      ptx::barrier_sync(1, Shape::kConsumers);
    }
  });
}

}  // namespace fastdl::gemm
