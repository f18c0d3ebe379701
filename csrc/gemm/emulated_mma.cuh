// float32 products of bfloat16 terms by mma.sync: three stages of three terms of each operand, sums that move
// to other registers every 16 of k.
#pragma once
#include "gemm/emulated.h"
#include "gemm/emulated_repair.cuh"
#include "gemm/finish.cuh"
#include "gemm/fragments.cuh"

namespace fastdl::gemm {

struct EmulatedMmaShape {
  static constexpr int kTileM = 128, kTileN = 128, kThreads = 256, kDepth = 32, kStages = 3;
  static constexpr int kWarpM = 64, kWarpN = 32, kWarpsN = kTileN / kWarpN;  // of a warp's part
  static constexpr int kPitch = kTileN + 8;                                  // of sums in shared memory
  using A = MmaOperand<bfloat16, kTileM, kDepth, kThreads, true>;
  using B = MmaOperand<bfloat16, kTileN, kDepth, kThreads, true>;
  static constexpr int kStageBytes = kTerms * (A::kBytes + B::kBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes >= kTileM * kPitch * 4);
};

// An operand's three terms on their way to a stage; a chunk is 16 bytes of k of one line of one term.
template <class Operand, int kLines>
struct TermsLoader {
  const bfloat16* planes;  // of the tile's first line
  int64_t plane, depth;
  int lines;  // that exist

  FASTDL_DEVICE TermsLoader(const bfloat16* terms, const TermPlanes& p, int64_t batch, int64_t first)
      : plane(p.plane()), depth(p.depth) {
    planes = terms + (p.batches > 1 ? batch * kTerms * plane : 0) + first * depth;
    lines = p.lines - first < kLines ? int(p.lines - first) : kLines;
  }
  FASTDL_DEVICE void load(int64_t k, unsigned char* stage) const {
    constexpr int kAcross = EmulatedMmaShape::kDepth / 8, kAtOnce = EmulatedMmaShape::kThreads / kAcross;
    const int chunk = int(threadIdx.x) % kAcross;
    FASTDL_UNROLL
    for (int row = int(threadIdx.x) / kAcross; row < kTerms * kLines; row += kAtOnce) {
      const int term = row / kLines, line = row % kLines, valid = line < lines ? 16 : 0;
      const bfloat16* from = planes + term * plane + (valid ? line : 0) * depth + k + chunk * 8;
      ptx::copy_async<16>(ptx::shared_address(stage + term * Operand::kBytes + Operand::offset(line, chunk)),
                          from, valid);
    }
  }
};

__global__ void __launch_bounds__(EmulatedMmaShape::kThreads, 1)
    emulated_mma_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                        const __grid_constant__ EmulatedWorkspace at, unsigned char* workspace) {
  using Shape = EmulatedMmaShape;
  using A = Shape::A;
  using B = Shape::B;
  constexpr int kRows = Shape::kWarpM / 16, kColumns = Shape::kWarpN / 8;
  static_assert(2 * kColumns == RowFragment::kCount);
  constexpr int kStages = Shape::kStages, kHalves = kEmulatedDepth / Shape::kDepth;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(work, TileWork);
  if (threadIdx.x == 0) work = tile_work(grid, blockIdx.x, p.k, kEmulatedDepth);
  __syncthreads();
  const TermsLoader<A, Shape::kTileM> a(reinterpret_cast<const bfloat16*>(workspace + at.a_offset), at.a,
                                        work.batch, int64_t(work.row) * Shape::kTileM);
  const TermsLoader<B, Shape::kTileN> b(reinterpret_cast<const bfloat16*>(workspace + at.b_offset), at.b,
                                        work.batch, int64_t(work.column) * Shape::kTileN);
  const int steps = work.range.steps * kHalves;
  const auto load_step = [&](int step) {
    if (step < steps) {
      unsigned char* stage = memory + step % kStages * Shape::kStageBytes;
      const int64_t k = work.range.begin + int64_t(step) * Shape::kDepth;
      a.load(k, stage);
      b.load(k, stage + kTerms * A::kBytes);
    }
    ptx::copy_async_commit();
  };

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp / Shape::kWarpsN * Shape::kWarpM, column = warp % Shape::kWarpsN * Shape::kWarpN;
  float sum[kRows][kColumns][4];
  FASTDL_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTDL_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      FASTDL_UNROLL
      for (int x = 0; x < 4; ++x) sum[i][j][x] = 0;
    }
  }

  for (int step = 0; step < kStages - 1; ++step) load_step(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();  // this step's terms are here, and nobody reads the stage that is filled next
    load_step(step + kStages - 1);
    const unsigned char* stage = memory + step % kStages * Shape::kStageBytes;
#pragma unroll 1  // more would spill
    for (int k = 0; k < Shape::kDepth; k += 16) {
      uint32_t right[kTerms][kColumns][2];
      FASTDL_UNROLL
      for (int t = 0; t < kTerms; ++t) {
        FASTDL_UNROLL
        for (int j = 0; j < kColumns; j += 2) {
          B::read_right(right[t][j], right[t][j + 1], stage + kTerms * A::kBytes + t * B::kBytes,
                        column + 8 * j, k);
        }
      }
      FASTDL_UNROLL
      for (int i = 0; i < kRows; ++i) {
        uint32_t left[kTerms][4];
        FASTDL_UNROLL
        for (int t = 0; t < kTerms; ++t) A::read_left(left[t], stage + t * A::kBytes, row + 16 * i, k);
        FASTDL_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          float d[4] = {0, 0, 0, 0};
          FASTDL_UNROLL
          for (int pair = 0; pair < kTermPairs; ++pair)
            ptx::mma_m16n8k16<bfloat16>(d, left[a_term(pair)], right[b_term(pair)][j]);
          FASTDL_UNROLL
          for (int x = 0; x < 4; ++x) sum[i][j][x] += d[x];
        }
      }
    }
  }
  ptx::copy_async_wait<0>();
  __syncthreads();

  float* const tile = reinterpret_cast<float*>(memory);
  const int64_t row0 = int64_t(work.row) * Shape::kTileM, column0 = int64_t(work.column) * Shape::kTileN;
  FASTDL_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTDL_UNROLL
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      const int r = row + 16 * i + 8 * half_tile + lane / 4, first = column + lane % 4 * 2;
      float value[RowFragment::kCount];
      FASTDL_UNROLL
      for (int c = 0; c < RowFragment::kCount; ++c) value[c] = sum[i][c / 2][2 * half_tile + c % 2];
      repair(p, work, {row0 + r, column0 + first}, value);
      FASTDL_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        *reinterpret_cast<Vector<float, 2>*>(tile + r * Shape::kPitch + first + 8 * j) = {value[2 * j],
                                                                                          value[2 * j + 1]};
      }
    }
  }
  __syncthreads();
  const bool partials = p.epilogue.column_sums || p.epilogue.mean;
  const auto row_of = [](int line) { return line; };
  finish_lines<float, Shape::kThreads, Shape::kTileM, Shape::kTileN, Shape::kPitch>(
      p, grid, work, workspace, tile, Shape::kTileM, partials, row_of);
  if (partials) {
    write_column_partials<Shape::kTileN, Shape::kThreads>(p, tile, Shape::kPitch, work, Shape::kTileM,
                                                          row_of);
  }
}

}  // namespace fastdl::gemm
