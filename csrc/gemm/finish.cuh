// From a tile of sums in shared memory to the output: what all tiled families do last.
#pragma once
#include "gemm/columns.cuh"
#include "gemm/split.cuh"

namespace fastdl::gemm {

constexpr int kFinishColumns = 8;  // that a thread takes at once

// Lines [0, kLines) of tile [kLines][kPitch] hold rows row_of(line) of the work's tile of kColumns columns.
// They leave as output or as a part of a split; `keeps`: the stored values replace the sums. The caller has
// put a barrier before, and puts one before the tile is overwritten.
template <class scalar_t, int kThreads, int kLines, int kColumns, int kPitch, class RowOf>
FASTDL_DEVICE void finish_lines(const Problem& p, const TileGrid& grid, const TileWork& work, void* workspace,
                                accumulator_t<scalar_t>* tile, int tile_rows, bool keeps, RowOf row_of) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kCount = kFinishColumns, kAcross = kColumns / kCount;
  static_assert(kPitch * sizeof(acc_t) % 16 == 0);
  const int64_t row0 = int64_t(work.row) * tile_rows, column0 = int64_t(work.column) * kColumns;
  const uint64_t seed = load_seed(p.epilogue);
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kLines * kAcross; i += kThreads) {
    const int line = i / kAcross, c = i % kAcross * kCount;
    const int64_t row = row0 + row_of(line), column = column0 + c;
    if (row >= p.m || column >= p.n) continue;
    using Part = Vector<acc_t, 16 / sizeof(acc_t)>;
    constexpr int kEach = 16 / sizeof(acc_t);
    Part* from = reinterpret_cast<Part*>(tile + line * kPitch + c);
    Vector<acc_t, kCount> value;
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) value[j] = from[j / kEach][j % kEach];
    const Columns at{work.batch, row, column, p.n - column < kCount ? int(p.n - column) : kCount};
    if (grid.splits > 1) {
      store_partial(workspace, p, grid, work, at, value);
      continue;
    }
    finish<true, scalar_t>(p, at, seed, value);
    if (keeps) {
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) from[j / kEach][j % kEach] = value[j];
    }
  }
}

}  // namespace fastdl::gemm
