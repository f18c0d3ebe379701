// Products of 16 bits, and of float32 rounded to tf32 by TMA, on Hopper's tensor cores: a producer warp
// fetches steps of k by TMA into a ring of stages, two warpgroups multiply them where they lie. Blocks stay
// and take tile after tile: the next one's steps arrive while this one's sums leave.
#pragma once
#include <type_traits>
#include "gemm/wgmma_exit.cuh"
#include "gemm/wgmma_ring.cuh"
#include "gemm/wgmma_tokens.cuh"

namespace fastdl::gemm {

template <class scalar, int tile_m, int tile_n, WgmmaTurns turns, bool a_deep, bool b_deep>
struct WgmmaShape : WgmmaTile<scalar, tile_m, tile_n, turns> {
  using Tile = WgmmaTile<scalar, tile_m, tile_n, turns>;
  using A = WgmmaOperand<tile_m, a_deep>;
  using B = WgmmaOperand<tile_n, b_deep>;
  using Exit = std::conditional_t<turns == kTokens, WgmmaTokenExit<Tile>, WgmmaExit<Tile>>;
  static constexpr int kThreads = Tile::kConsumers + 128, kDepth = kWgmmaBytes / int(sizeof(scalar));
  static_assert(sizeof(scalar) == 2 || (a_deep && b_deep));

  // Shared memory: stages, what the exit needs, ones for sums of a's rows, mbarriers.
  static constexpr int kStageBytes = A::kBytes + B::kBytes, kOnesBytes = 256, kMost = 227 * 1024;
  static constexpr int kFit = (kMost - Exit::kBytes - kOnesBytes) / (kStageBytes + 16);
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kOnes = kStages * kStageBytes + Exit::kBytes, kFull = kOnes + kOnesBytes,
                       kEmpty = kFull + kStages * 8, kSharedBytes = kEmpty + kStages * 8;
  static_assert(Exit::Near::kBytes <= kStages * kStageBytes);
};

// Who alternates multiplies in turns: a wait for a phase tells it from the one before, not from the one
// before that, so a warpgroup may not wait for its tile before the other has seen all of its own.
template <class Shape>
FASTDL_DEVICE void pass_turn(bool to_first) {
  if (Shape::kTurns != kAlternate) return;
  to_first ? ptx::barrier_arrive(3, 256) : ptx::barrier_arrive(4, 256);
}
template <class Shape>
FASTDL_DEVICE void take_turn(bool first) {
  if (Shape::kTurns != kAlternate) return;
  first ? ptx::barrier_sync(3, 256) : ptx::barrier_sync(4, 256);
}

// The producer's thread.
template <class Shape>
FASTDL_DEVICE void fetch_tiles(const Problem& p, const TileGrid& grid, const ptx::TensorMap* a_map,
                               const ptx::TensorMap* b_map, uint32_t memory) {
  RingPlace<Shape::kStages> place;
  const bool pair = grid.cluster > 1;
  for_tiles<Shape::kDepth>(grid, p.k, [&](const TileWork& work) {
    constexpr bool kSwapped = Shape::kTurns == kTokens;
    const int batch = int(work.batch);  // an operand that a batch shares has one
    const int a_batch = (kSwapped ? p.b : p.a).batch ? batch : 0,
              b_batch = (kSwapped ? p.a : p.b).batch ? batch : 0;
    const int a_line = (kSwapped ? work.column : work.row) * Shape::kTileM;
    const int b_line = (Shape::kTurns == kTokens ? work.row : work.column) * Shape::kTileN;
    for (int step = 0; step < work.range.steps; ++step, place.next()) {
      const uint32_t a = memory + place.stage * Shape::kStageBytes, b = a + Shape::A::kBytes;
      const uint32_t full = memory + Shape::kFull + place.stage * 8;
      const uint32_t empty = memory + Shape::kEmpty + place.stage * 8;
      const int k = int(work.range.begin) + step * Shape::kDepth;
      if (pair) {
        ptx::mbarrier_wait_cluster(empty, place.parity ^ 1);
      } else {
        ptx::mbarrier_wait(empty, place.parity ^ 1);
      }
      ptx::mbarrier_arrive_expect(full, Shape::kStageBytes);
      Shape::A::fetch(a, a_map, full, a_line, k, a_batch);
      if (pair) {
        Shape::B::fetch_half(b, b_map, full, b_line, k, b_batch, int(ptx::cluster_rank()));
      } else {
        Shape::B::fetch(b, b_map, full, b_line, k, b_batch);
      }
    }
  });
}

// A warpgroup's rows of one tile: d = a b, and where kSums row_sums = a times eight columns of ones.
template <bool kSums, class Shape>
FASTDL_DEVICE void multiply_tile(float (&d)[Shape::kBlocks][Shape::kTileN / 2],
                                 float (&row_sums)[Shape::kBlocks][4], int steps,
                                 RingPlace<Shape::kStages>& place, uint32_t memory, int first_row,
                                 int cluster) {
  using A = typename Shape::A;
  using B = typename Shape::B;
  using scalar_t = typename Shape::scalar_t;
  constexpr int kN = Shape::kTileN, kBlocks = Shape::kBlocks;
  const uint64_t ones = ptx::matrix_descriptor<ptx::Swizzle::kNone>(memory + Shape::kOnes, 128, 256);
  const int thread = int(threadIdx.x) % 128;
  const auto keep = [&] {
    FASTDL_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      ptx::keep_registers(d[i]);
      if constexpr (kSums) ptx::keep_registers(row_sums[i]);
    }
  };
  const auto release = [&](uint32_t stage) {
    const uint32_t empty = memory + Shape::kEmpty + stage * 8;
    if (thread > 0) return;
    if (cluster == 1) return ptx::mbarrier_arrive(empty);
    FASTDL_UNROLL
    for (unsigned rank = 0; rank < 2; ++rank) ptx::mbarrier_free_remote(ptx::map_address(empty, rank));
  };
  uint32_t before = 0;  // the stage whose products may still be under way
#pragma unroll 1
  for (int step = 0; step < steps; ++step, place.next()) {
    const uint32_t a = memory + place.stage * Shape::kStageBytes, b = a + A::kBytes;
    ptx::mbarrier_wait(memory + Shape::kFull + place.stage * 8, place.parity);
    keep();
    ptx::wgmma_fence();
    FASTDL_UNROLL
    for (int part = 0; part < kWgmmaBytes / 32; ++part) {
      const bool adds = part > 0 || step > 0;
      FASTDL_UNROLL
      for (int i = 0; i < kBlocks; ++i) {
        const uint64_t left = A::descriptor(a, first_row + 64 * i, part);
        ptx::wgmma<kN, scalar_t, A::kMajor, B::kMajor>(d[i], left, B::descriptor(b, 0, part), adds);
        if constexpr (kSums) {
          ptx::wgmma<8, scalar_t, A::kMajor, ptx::Major::kK>(row_sums[i], left, ones, adds);
        }
      }
    }
    ptx::wgmma_commit();
    keep();
    ptx::wgmma_wait<1>();
    if (step > 0) release(before);
    before = place.stage;
  }
  ptx::wgmma_wait<0>();
  keep();
  if (steps > 0) release(before);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    wgmma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                 const __grid_constant__ ptx::TensorMap a_map, const __grid_constant__ ptx::TensorMap b_map,
                 const __grid_constant__ ptx::TensorMap output_map, void* workspace) {
  constexpr int kTeams = Shape::kConsumers / Shape::kTeam, kArrivals = Shape::kTeam / 128;
  FASTDL_DYNAMIC_SHARED(bytes);
  const uint32_t memory = ptx::shared_address(bytes);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < Shape::kStages; ++i) {
      ptx::mbarrier_init(memory + Shape::kFull + i * 8, 1);
      ptx::mbarrier_init(memory + Shape::kEmpty + i * 8, unsigned(kArrivals * grid.cluster));
    }
    ptx::mbarrier_init_fence();
  }
  ptx::grid_dependency_launch();
  if (p.a_sums && threadIdx.x < Shape::kOnesBytes / 4) {
    using scalar_t = typename Shape::scalar_t;
    constexpr unsigned kEach = 4 / sizeof(scalar_t);
    for (unsigned i = 0; i < kEach; ++i) {
      reinterpret_cast<scalar_t*>(bytes + Shape::kOnes)[threadIdx.x * kEach + i] = convert<scalar_t>(1.0f);
    }
    ptx::fence_proxy_async();
  }
  if (grid.cluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
  ptx::grid_dependency_wait();  // nothing in global memory was touched so far

  if (threadIdx.x >= Shape::kConsumers) {
    ptx::register_decrease<40>();
    if (threadIdx.x == Shape::kConsumers) fetch_tiles<Shape>(p, grid, &a_map, &b_map, memory);
    __syncwarp();
    if (grid.near) ptx::cluster_sync();  // with those who leave their sums
  } else {
    ptx::register_increase<232>();
    const int group = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);  // of a warp: uniform registers hold it
    const int first_row = kTeams == 1 ? 64 * Shape::kBlocks * group : 0;
    typename Shape::Exit exit(p, grid, workspace, bytes + Shape::kStages * Shape::kStageBytes, bytes,
                              &output_map);
    RingPlace<Shape::kStages> place;
    if (group == 1) pass_turn<Shape>(true);
    const auto skip = [&](int steps) { place.skip(steps); };
    for_tiles_in_turns<kTeams, Shape::kDepth>(
        grid, p.k, kTeams == 1 ? 0 : group, skip, [&](const TileWork& work) {
          float d[Shape::kBlocks][Shape::kTileN / 2], row_sums[Shape::kBlocks][4];
          take_turn<Shape>(group == 0);
          if (Shape::kSumsRows && p.a_sums && work.column == 0) {
            multiply_tile<true, Shape>(d, row_sums, work.range.steps, place, memory, first_row, grid.cluster);
            pass_turn<Shape>(group == 1);
            exit.store_row_sums(work, row_sums);
          } else {
            multiply_tile<false, Shape>(d, row_sums, work.range.steps, place, memory, first_row,
                                        grid.cluster);
            pass_turn<Shape>(group == 1);
          }
          exit.store_tile(work, d);
        });
    exit.wait_for_stores();
    if (kTeams > 1 && grid.near && group > 0) ptx::cluster_sync();  // has no tile
  }
  // Others still arrive at this block's mbarriers, or read its sums.
  if (grid.cluster > 1 || grid.near) ptx::cluster_sync();
}

}  // namespace fastdl::gemm
