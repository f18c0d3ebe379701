// Which block makes which tile of the output from which part of k. Plain C++, so that a test can walk it.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// One block for each (batch, split, tile); a launch has blocks() of them.
struct TileGrid {
  int64_t batch;
  int32_t splits, rows, columns;  // tiles of one matrix
  int32_t group;  // rows of tiles that advance together, so that a wave of blocks shares operands in L2

  FASTDL_HOST_DEVICE int64_t blocks() const { return batch * splits * rows * columns; }
};

inline TileGrid tile_grid(const Problem& p, const Plan& plan) {
  return {p.batch, plan.splits, int32_t((p.m + plan.tile_m - 1) / plan.tile_m),
          int32_t((p.n + plan.tile_n - 1) / plan.tile_n), 8};
}

// Half-open, of whole steps of `depth` except at the end of k.
struct KRange {
  int64_t begin, end;
  int32_t steps;
};

struct TileWork {
  int64_t batch;
  int32_t split, row, column;
  KRange range;
};

FASTDL_HOST_DEVICE TileWork tile_work(const TileGrid& grid, int64_t block, int64_t k, int depth) {
  TileWork w;
  const int32_t tiles = grid.rows * grid.columns;
  const int64_t matrix = block / tiles;
  int32_t tile = int32_t(block - matrix * tiles);
  w.batch = matrix / grid.splits;
  w.split = int32_t(matrix - w.batch * grid.splits);
  const int32_t per_group = grid.group * grid.columns, first = tile / per_group * grid.group;
  const int32_t high = grid.rows - first < grid.group ? grid.rows - first : grid.group;
  tile %= per_group;
  w.column = tile / high, w.row = first + tile - w.column * high;
  const int64_t steps = (k + depth - 1) / depth;
  const int64_t from = steps * w.split / grid.splits, to = steps * (w.split + 1) / grid.splits;
  w.range = {from * depth, to * depth < k ? to * depth : k, int32_t(to - from)};
  return w;
}

}  // namespace fastdl::gemm
