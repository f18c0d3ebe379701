// Which block makes which tile of the output from which part of k. Plain C++, so that a test can walk it.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// One block for each (batch, split, tile); a launch has blocks() of them, clusters where cluster > 1. Near:
// the blocks of a tile's parts of k follow each other, and are a cluster.
struct TileGrid {
  int64_t batch;
  int32_t splits, rows, columns;  // tiles of one matrix; a cluster's tiles, of adjacent rows, count as one
  int32_t group;  // rows of tiles that advance together, so that a wave of blocks shares operands in L2
  int32_t cluster = 1;
  bool near = false;

  FASTDL_HOST_DEVICE int64_t blocks() const { return batch * splits * rows * columns; }
};

inline TileGrid tile_grid(const Problem& p, const Plan& plan) {
  const int64_t high = int64_t(plan.tile_m) * plan.cluster;
  return {p.batch,
          plan.splits,
          int32_t((p.m + high - 1) / high),
          int32_t((p.n + plan.tile_n - 1) / plan.tile_n),
          8 / plan.cluster,
          plan.cluster,
          plan.near};
}

// Half-open, of whole steps of `depth` except at the end of k.
struct KRange {
  int64_t begin, end;
  int32_t steps;
};

struct TileWork {
  int32_t batch, split, row, column;
  KRange range;
};

// Blocks are below 2^31, as those of a launch: 32-bit divisions take a fifth of the time.
FASTDL_HOST_DEVICE TileWork tile_work(const TileGrid& grid, int64_t block, int64_t k, int depth) {
  TileWork w;
  const uint32_t near = grid.near ? uint32_t(grid.splits) : 1, far = grid.near ? 1 : uint32_t(grid.splits);
  const uint32_t place = near == 1 ? uint32_t(block) : uint32_t(block) / near;
  const uint32_t tiles = uint32_t(grid.rows) * uint32_t(grid.columns), matrix = place / tiles;
  uint32_t tile = place - matrix * tiles;
  const uint32_t batch = far == 1 ? matrix : matrix / far;
  w.batch = int32_t(batch);
  w.split = int32_t(grid.near ? uint32_t(block) - place * near : matrix - batch * far);
  const uint32_t per_group = uint32_t(grid.group) * uint32_t(grid.columns), group = tile / per_group;
  const uint32_t first = group * uint32_t(grid.group), left = uint32_t(grid.rows) - first;
  const uint32_t high = left < uint32_t(grid.group) ? left : uint32_t(grid.group);
  tile -= group * per_group;
  w.column = int32_t(tile / high);
  w.row = int32_t(first + tile - uint32_t(w.column) * high);
  const int64_t steps = (k + depth - 1) / depth;
  if (grid.splits == 1) {
    w.range = {0, k, int32_t(steps)};
  } else {
    const int64_t from = steps * w.split / grid.splits, to = steps * (w.split + 1) / grid.splits;
    w.range = {from * depth, to * depth < k ? to * depth : k, int32_t(to - from)};
  }
  return w;
}

}  // namespace fastdl::gemm
