// A tile whose k the blocks of a cluster have shared. Each leaves its sums in its own shared memory, where
// the ring's stages were, and finishes its share of the rows from everybody's: no workspace, one launch.
#pragma once
#include "gemm/epilogue.cuh"
#include "gemm/schedule.h"
#include "ptx.cuh"

namespace fastdl::gemm {

// Sums [kRows][kColumns], behind them those of a's rows [kRows]. Of 8 columns the halves lie kOdd words
// apart, and rows kColumns + kGap: fragments' writes find 32 banks, and so do reads of 16 bytes by lanes
// along a row.
template <class scalar_t, int kRows, int kColumns, int kGap>
class NearTile {
  static constexpr int kVector = 8, kAcross = kColumns / kVector;
  static constexpr int kPitch = kColumns + kGap, kOdd = kColumns / 2 + 4;

  float* sums;

 public:
  static constexpr int kBytes = kRows * (kPitch + 1) * 4;

  FASTDL_DEVICE explicit NearTile(unsigned char* memory) : sums(reinterpret_cast<float*>(memory)) {}

  FASTDL_DEVICE float* at(int row, int column) const {
    return sums + row * kPitch + column / kVector * 4 + column % 4 + column % kVector / 4 * kOdd;
  }
  FASTDL_DEVICE float* row_sum(int row) const { return sums + kRows * kPitch + row; }

  // A block's share is every parts-th row from its rank on: so many vectors of 8 columns, of which the i-th
  // ...
  FASTDL_DEVICE static int vectors(const TileGrid& grid) { return kRows / grid.splits * kAcross; }
  // ... lies in this row and column of the tile.
  FASTDL_DEVICE static int row_of(const TileGrid& grid, const TileWork& work, int i) {
    return i / kAcross * grid.splits + work.split;
  }
  FASTDL_DEVICE static int column_of(int i) { return i % kAcross * kVector; }

  // The cluster's sums of 8 columns, added in the order of k.
  FASTDL_DEVICE Vector<float, kVector> total(const TileGrid& grid, int row, int column) const {
    const uint32_t here = ptx::shared_address(at(row, column));
    Vector<float, kVector> value{};
#pragma unroll 1
    for (unsigned rank = 0; rank < unsigned(grid.splits); rank += 2) {  // an even number
      float part[4][4];                                                 // under way at once
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) {
        ptx::load_cluster(part[i], ptx::map_address(here, rank + unsigned(i / 2)) + i % 2 * kOdd * 4);
      }
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) {
        FASTDL_UNROLL
        for (int j = 0; j < 4; ++j) value[i % 2 * 4 + j] += part[i][j];
      }
    }
    return value;
  }

  // The sums of a's rows of this block's share.
  FASTDL_DEVICE void store_row_sums(const Problem& p, const TileGrid& grid, const TileWork& work,
                                    int threads) const {
    for (int i = int(threadIdx.x); i < kRows / grid.splits; i += threads) {
      const int line = i * grid.splits + work.split;
      const int64_t row = int64_t(work.row) * kRows + line;
      if (row >= p.m) break;
      float sum = 0;
      for (int rank = 0; rank < grid.splits; ++rank) sum += *ptx::map_shared(row_sum(line), unsigned(rank));
      store(static_cast<scalar_t*>(p.a_sums) + row, convert<scalar_t>(sum));
    }
  }
};

}  // namespace fastdl::gemm
