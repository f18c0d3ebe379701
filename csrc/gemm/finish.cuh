// From a tile of sums in shared memory to the output: what all tiled families do last.
#pragma once
#include "gemm/columns.cuh"
#include "gemm/split.cuh"

namespace fastdl::gemm {

constexpr int kFinishColumns = 8;  // that a thread takes at once

// Threads whose vectors lie kParts apart would meet in the same banks. So thread i begins with another one of
// its own: of 8 neighbours, whose 16 bytes are served at once, all 32 banks are asked.
template <int kParts>
FASTDL_DEVICE int first_part(int i) {
  return i / (8 / kParts) % kParts;
}

// part[v ^ turn] <-> part[v] for all v, without an index at run time.
template <int kParts, class acc_t, int kEach>
FASTDL_DEVICE void exchange_parts(Vector<acc_t, kEach> (&part)[kParts], int turn) {
  FASTDL_UNROLL
  for (int bit = 1; bit < kParts; bit *= 2) {
    FASTDL_UNROLL
    for (int v = 0; v < kParts; ++v) {
      if (v & bit) continue;
      FASTDL_UNROLL
      for (int j = 0; j < kEach; ++j) {
        const acc_t low = part[v][j], high = part[v | bit][j];
        part[v][j] = turn & bit ? high : low, part[v | bit][j] = turn & bit ? low : high;
      }
    }
  }
}

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
    constexpr int kEach = 16 / sizeof(acc_t), kParts = kCount / kEach;
    using Part = Vector<acc_t, kEach>;
    Part* const from = reinterpret_cast<Part*>(tile + line * kPitch + c);
    const int turn = first_part<kParts>(i);
    Part part[kParts];
    FASTDL_UNROLL
    for (int v = 0; v < kParts; ++v) part[v] = from[v ^ turn];
    exchange_parts(part, turn);
    Vector<acc_t, kCount> value;
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) value[j] = part[j / kEach][j % kEach];
    const Columns at{work.batch, row, column, p.n - column < kCount ? int(p.n - column) : kCount};
    if (grid.splits > 1) {
      store_partial(workspace, p, grid, work, at, value);
      continue;
    }
    finish<true, scalar_t>(p, at, seed, value);
    if (keeps) {
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) part[j / kEach][j % kEach] = value[j];
      exchange_parts(part, turn);
      FASTDL_UNROLL
      for (int v = 0; v < kParts; ++v) from[v ^ turn] = part[v];
    }
  }
}

}  // namespace fastdl::gemm
