// 16-bit products, and float32 rounded to tf32, on tensor cores of sm_80 and later: cp.async keeps several
// steps of k on their way, ldmatrix feeds mma.sync. Operands lie either way round and at any alignment;
// nothing is copied first.
#pragma once
#include "gemm/finish.cuh"
#include "gemm/fragments.cuh"
#include "ptx.cuh"

namespace fastdl::gemm {

// warps_m x warps_n warps make a tile of tile_m x tile_n; a_deep, b_deep: k is the operand's dimension of
// stride 1.
template <class scalar, int tile_m, int tile_n, int warps_m, int warps_n, bool a_deep, bool b_deep>
struct MmaShape {
  using scalar_t = scalar;
  static constexpr int kTileM = tile_m, kTileN = tile_n, kDepth = 64 / int(sizeof(scalar)), kStages = 4;
  static constexpr int kWarpsN = warps_n, kThreads = 32 * warps_m * warps_n;
  static constexpr int kWarpM = tile_m / warps_m, kWarpN = tile_n / warps_n;  // of a warp's part
  static constexpr int kPitch = tile_n + 8;                                   // of sums in shared memory
  // Blocks of a multiprocessor that registers are shared by: two of 256 threads spill with float's fragments.
  static constexpr int kResident = sizeof(scalar) == 4 && tile_m == 128 ? 1 : 512 / kThreads;
  using A = MmaOperand<scalar, tile_m, kDepth, kThreads, a_deep>;
  using B = MmaOperand<scalar, tile_n, kDepth, kThreads, b_deep>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > tile_m * kPitch * 4 ? kStages * kStageBytes : tile_m * kPitch * 4;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    mma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid, void* workspace) {
  using scalar_t = typename Shape::scalar_t;
  using Math = MmaMath<scalar_t>;
  constexpr int kRows = Shape::kWarpM / 16, kColumns = Shape::kWarpN / 8, kStages = Shape::kStages;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(work, TileWork);
  if (threadIdx.x == 0) work = tile_work(grid, blockIdx.x, p.k, Shape::kDepth);
  __syncthreads();
  const int steps = work.range.steps;
  typename Shape::A a(p.a, work.batch, int64_t(work.row) * Shape::kTileM, p.m, work.range);
  typename Shape::B b(p.b.transposed(), work.batch, int64_t(work.column) * Shape::kTileN, p.n, work.range);
  const auto load_step = [&](int step) {
    if (step < steps) {
      unsigned char* stage = memory + step % kStages * Shape::kStageBytes;
      a.load_next(p.a, stage);
      b.load_next(p.b.transposed(), stage + Shape::A::kBytes);
    }
    ptx::copy_async_commit();
  };

  const int warp = int(threadIdx.x) / 32;
  const int row = warp / Shape::kWarpsN * Shape::kWarpM, column = warp % Shape::kWarpsN * Shape::kWarpN;
  // Of the warps that hold the same rows of a, each adds up 16.
  static_assert(kRows == Shape::kWarpsN);
  const bool sums_rows = p.a_sums && work.column == 0;
  const int summed = warp % Shape::kWarpsN;
  float sum[kRows][kColumns][4], row_sum[4] = {0, 0, 0, 0};
  FASTDL_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTDL_UNROLL
    for (int x = 0; x < 4; ++x) {
      FASTDL_UNROLL
      for (int j = 0; j < kColumns; ++j) sum[i][j][x] = 0;
    }
  }

  for (int step = 0; step < kStages - 1; ++step) load_step(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();  // this step's tiles are here, and nobody reads the stage that is filled next
    load_step(step + kStages - 1);
    const unsigned char* stage = memory + step % kStages * Shape::kStageBytes;
    FASTDL_UNROLL
    for (int k = 0; k < Shape::kDepth; k += Math::kK) {
      uint32_t right[kColumns][2];
      FASTDL_UNROLL
      for (int j = 0; j < kColumns; j += 2) {
        Shape::B::read_right(right[j], right[j + 1], stage + Shape::A::kBytes, column + 8 * j, k);
      }
      FASTDL_UNROLL
      for (int i = 0; i < kRows; ++i) {
        uint32_t left[4];
        Shape::A::read_left(left, stage, row + 16 * i, k);
        FASTDL_UNROLL
        for (int j = 0; j < kColumns; ++j) Math::multiply(sum[i][j], left, right[j]);
        constexpr uint32_t kOnes[2] = {Math::kOne, Math::kOne};
        if (sums_rows && i == summed) Math::multiply(row_sum, left, kOnes);
      }
    }
  }
  ptx::copy_async_wait<0>();
  __syncthreads();

  const int lane = int(threadIdx.x) % 32;
  float* const tile = reinterpret_cast<float*>(memory);
  FASTDL_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTDL_UNROLL
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      const int r = row + 16 * i + 8 * half_tile + lane / 4;
      FASTDL_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        *reinterpret_cast<Vector<float, 2>*>(tile + r * Shape::kPitch + column + 8 * j + lane % 4 * 2) = {
            sum[i][j][2 * half_tile], sum[i][j][2 * half_tile + 1]};
      }
      const int64_t global_row = int64_t(work.row) * Shape::kTileM + r;
      if (sums_rows && i == summed && lane % 4 == 0 && global_row < p.m) {
        store_row_sum<scalar_t>(workspace, p, grid, work, global_row, row_sum[2 * half_tile]);
      }
    }
  }
  __syncthreads();
  const bool partials = p.epilogue.column_sums || p.epilogue.mean;
  const auto row_of = [](int line) { return line; };
  finish_lines<scalar_t, Shape::kThreads, Shape::kTileM, Shape::kTileN, Shape::kPitch>(
      p, grid, work, workspace, tile, Shape::kTileM, partials, row_of);
  if (partials) {
    write_column_partials<Shape::kTileN, Shape::kThreads>(p, tile, Shape::kPitch, work, Shape::kTileM,
                                                          row_of);
  }
}

}  // namespace fastdl::gemm
