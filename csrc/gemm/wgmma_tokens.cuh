// The exit of a transposed product: a few rows of a (tokens) are the instruction's columns, so that its 64
// rows are full of b's columns and a step reads each of them once.
#pragma once
#include "gemm/wgmma_exit.cuh"

namespace fastdl::gemm {

// As WgmmaExit; a warp's 16 columns of the output lie in its accumulators as rows.
template <class Shape>
class WgmmaTokenExit {
  using scalar_t = typename Shape::scalar_t;
  static constexpr int kTokens = Shape::kTileN, kVector = 8;
  static constexpr int kPitch = 20;  // floats of a token: 16, apart by so much that writes find 32 banks
  static constexpr int kPieceBytes = kTokens * kPitch * 4;

 public:
  static constexpr int kBytes = Shape::kConsumers / 32 * kPieceBytes;
  using Near = NearTile<scalar_t, kTokens, Shape::kTileM, 4>;

  FASTDL_DEVICE WgmmaTokenExit(const Problem& problem, const TileGrid& tiles, const ptx::TensorMap*,
                               void* memory, unsigned char* shared, unsigned char* ring)
      : p(problem),
        grid(tiles),
        workspace(memory),
        piece(reinterpret_cast<float*>(shared + int(threadIdx.x) / 32 * kPieceBytes)),
        near(ring) {}

  FASTDL_DEVICE void store_tile(const TileWork& work, const float (&d)[1][kTokens / 2]) const {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    if (grid.near) {
      leave_sums(d, 16 * warp + lane / 4, lane % 4 * 2);
      ptx::cluster_sync();
    } else {
      write_piece(d, lane);
    }
    const int vectors = grid.near ? Near::vectors(grid) : kTokens * 2, step = grid.near ? Shape::kTeam : 32;
#pragma unroll 1
    for (int i = grid.near ? int(threadIdx.x) : lane; i < vectors; i += step) {
      const int token = grid.near ? Near::row_of(grid, work, i) : i / 2;
      const int c = grid.near ? Near::column_of(i) : warp * 16 + i % 2 * kVector;
      const int64_t row = int64_t(work.row) * kTokens + token;
      const int64_t column = int64_t(work.column) * Shape::kTileM + c;
      if (row >= p.m || column >= p.n) continue;
      const auto sums =
          grid.near ? near.total(grid, token, c) : read_piece(piece + token * kPitch + i % 2 * kVector);
      store_vector_at(work, row, column, sums);
    }
    __syncwarp();
  }

  FASTDL_DEVICE void store_row_sums(const TileWork&, const float (&)[1][4]) const {}
  FASTDL_DEVICE void wait_for_stores() const {}

 private:
  const Problem& p;
  const TileGrid& grid;
  void* workspace;
  float* piece;  // [kTokens][kPitch]
  Near near;

  FASTDL_DEVICE void leave_sums(const float (&d)[1][kTokens / 2], int column, int token) const {
    ptx::barrier_sync(1, Shape::kTeam);  // nobody multiplies out of the stages any more
    FASTDL_UNROLL
    for (int i = 0; i < kTokens / 2; ++i) {
      *near.at(token + i / 4 * 8 + i % 2, column + i / 2 % 2 * 8) = d[0][i];
    }
  }

  FASTDL_DEVICE void write_piece(const float (&d)[1][kTokens / 2], int lane) const {
    FASTDL_UNROLL
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, column = lane / 4 + i / 2 % 2 * 8;
      piece[token * kPitch + column] = d[0][i];
    }
    __syncwarp();
  }

  FASTDL_DEVICE static Vector<float, kVector> read_piece(const float* from) {
    Vector<float, kVector> value;
    FASTDL_UNROLL
    for (int j = 0; j < kVector; j += 4) {
      const auto part = *reinterpret_cast<const Vector<float, 4>*>(from + j);
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) value[j + i] = part[i];
    }
    return value;
  }

  FASTDL_DEVICE void store_vector_at(const TileWork& work, int64_t row, int64_t column,
                                     Vector<float, kVector> value) const {
    const Columns at{work.batch, row, column, p.n - column < kVector ? int(p.n - column) : kVector};
    if (grid.splits > 1 && !grid.near) return store_partial(workspace, p, grid, work, at, value);
    finish<true, scalar_t>(p, at, load_seed(p.epilogue), value);
  }
};

}  // namespace fastdl::gemm
