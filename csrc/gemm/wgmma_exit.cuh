// From the accumulators of a warpgroup to the output: each warp passes its 16 rows through a piece of shared
// memory of its own, 8 rows x 64 columns at a time, and waits for no other.
#pragma once
#include <type_traits>
#include "gemm/split.cuh"
#include "gemm/wgmma_near.cuh"
#include "gemm/wgmma_shape.h"
#include "ptx.cuh"

namespace fastdl::gemm {

// tile_m x tile_n as the instruction sees them: of kTokens the tile of the transposed product, whose operand
// A is b.
template <class scalar, int tile_m, int tile_n, WgmmaTurns turns>
struct WgmmaTile {
  using scalar_t = scalar;
  static constexpr WgmmaTurns kTurns = turns;
  static constexpr int kTileM = tile_m, kTileN = tile_n, kConsumers = 256;
  static constexpr int kTeam = turns == kAlternate ? 128 : 256;  // threads that share a tile
  static constexpr int kBlocks = tile_m / 64 / (kTeam / 128);    // of 64 rows, of a warpgroup
  static constexpr bool kMayBeNear = true;                       // whether a cluster's blocks may share its k
  // Sums of a's rows, while registers last; an exit of 4 bytes an element takes more of them.
  static constexpr bool kSumsRows =
      kBlocks == 1 && (turns == kHalves || (turns == kAlternate && sizeof(scalar) == 2));
};

// Whether sums leave through TMA: alpha and bias alone, to rows that a tensor map describes.
FASTDL_HOST_DEVICE bool leaves_plain(const Problem& p, int splits) {
  return splits == 1 && p.epilogue.aligned && !p.epilogue.is_full();
}

template <class Shape>
class WgmmaExit {
  using scalar_t = typename Shape::scalar_t;
  static constexpr int kN = Shape::kTileN, kBlocks = Shape::kBlocks, kWarps = Shape::kConsumers / 32;
  static constexpr int kTeams = Shape::kConsumers / Shape::kTeam;
  static constexpr int kColumns = 64, kLines = 8, kVector = 8;  // of a piece; of what a lane takes at once
  static constexpr int kAcross = kN / kColumns, kPieces = kBlocks * kAcross * 2;
  // Of 8 columns the halves lie kOdd words apart: writes of fragments and reads of 16 bytes find 32 banks.
  static constexpr int kPitch = 72, kOdd = 36;
  static constexpr int kSlabs =
      Shape::kTileM / 16;  // a warp's 16 rows; partials of columns are added of them
  static constexpr int kPieceBytes = kLines * kPitch * 4, kPartialBytes = kSlabs * kN * 8;
  // Of a warp, instead of all that: two boxes of 16 rows x 64 columns, which TMA stores in turns.
  static constexpr int kBoxBytes = 16 * kColumns * 2;
  static constexpr int kFullBytes = kWarps * kPieceBytes + kTeams * kPartialBytes,
                       kPlainBytes = sizeof(scalar_t) == 2 ? kWarps * 2 * kBoxBytes : 0;

 public:
  static constexpr int kBytes = kFullBytes > kPlainBytes ? kFullBytes : kPlainBytes;
  using Near = NearTile<scalar_t, Shape::kTileM, kN, 8>;

  // shared: kBytes, at a multiple of 1024; ring: the stages, which a near tile may overwrite; map: of the
  // output, where sums leave plain.
  FASTDL_DEVICE WgmmaExit(const Problem& problem, const TileGrid& tiles, void* memory, unsigned char* shared,
                          unsigned char* ring = nullptr, const ptx::TensorMap* map = nullptr)
      : p(problem),
        grid(tiles),
        output_map(map),
        workspace(memory),
        lane(int(threadIdx.x) % 32),
        team(int(threadIdx.x) / Shape::kTeam),
        first_row(int(threadIdx.x) % Shape::kTeam / 128 * 64 * kBlocks + int(threadIdx.x) / 32 % 4 * 16),
        box(ptx::shared_address(shared) + threadIdx.x / 32 * (2 * kBoxBytes)),
        piece(reinterpret_cast<float*>(shared + int(threadIdx.x) / 32 * kPieceBytes)),
        partial(reinterpret_cast<Pair*>(shared + kWarps * kPieceBytes + team * kPartialBytes)),
        near(ring),
        has_partials(problem.epilogue.column_sums || problem.epilogue.mean) {}

  FASTDL_DEVICE void store_tile(const TileWork& work, const float (&d)[kBlocks][kN / 2]) {
    if (is_near()) {
      leave_sums(d);
      ptx::cluster_sync();
      if (p.a_sums && work.column == 0) near.store_row_sums(p, grid, work, Shape::kTeam);
    }
    const bool plain = leaves_plain(p, grid.splits) && (sizeof(scalar_t) == 2 || p.n % 2 == 0);
    if (!plain) return store_full(work, d);
    if constexpr (sizeof(scalar_t) == 2) {
      store_plain(work, d);
    } else {
      store_pairs(work, d);
    }
  }

  // Before the kernel ends.
  FASTDL_DEVICE void wait_for_stores() const {
    if (lane == 0) ptx::bulk_wait<0>();
  }

  // The first column of a times ones.
  FASTDL_DEVICE void store_row_sums(const TileWork& work, const float (&sums)[kBlocks][4]) {
    if (is_near()) team_barrier();  // as in leave_sums
    FASTDL_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      FASTDL_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int line = first_row + 64 * i + 8 * half + lane / 4;
        const int64_t row = int64_t(work.row) * Shape::kTileM + line;
        if (is_near()) {
          if (lane % 4 == 0) *near.row_sum(line) = sums[i][2 * half];
        } else if (lane % 4 == 0 && row < p.m) {
          store_row_sum<scalar_t>(workspace, p, grid, work, row,
                                  work.range.steps > 0 ? sums[i][2 * half] : 0.0f);
        }
      }
    }
  }

 private:
  using Pair = Vector<float, 2>;
  using Ahead = OperandsAhead<scalar_t, kVector>;
  const Problem& p;
  const TileGrid& grid;
  const ptx::TensorMap* output_map;
  void* workspace;
  int lane, team, first_row;        // of the warp, in the tile
  uint32_t box, other = kBoxBytes;  // the box to be filled next, and how far behind it the other is
  float* piece;
  Pair* partial;  // [kSlabs][kN] of sum and m2
  Near near;
  bool has_partials;

  FASTDL_DEVICE bool is_near() const { return Shape::kMayBeNear && grid.near; }

  FASTDL_DEVICE void team_barrier() const {
    if (kTeams == 1 || team == 0) {
      ptx::barrier_sync(1, Shape::kTeam);
    } else {
      ptx::barrier_sync(2, Shape::kTeam);
    }
  }

  // For the cluster to add up.
  FASTDL_DEVICE void leave_sums(const float (&d)[kBlocks][kN / 2]) const {
    team_barrier();  // nobody multiplies out of the stages any more
    FASTDL_UNROLL
    for (int i = 0; i < 2 * kBlocks; ++i) {
      float* const line = near.at(first_row + i / 2 * 64 + i % 2 * 8 + lane / 4, lane % 4 * 2);
      FASTDL_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        const int at = 4 * j + i % 2 * 2;
        *reinterpret_cast<Pair*>(line + 4 * j) = {d[i / 2][at], d[i / 2][at + 1]};
      }
    }
  }

  FASTDL_DEVICE void store_full(const TileWork& work, const float (&d)[kBlocks][kN / 2]) const {
    if (has_partials) team_barrier();  // the last tile's partials were read
    Ahead next{};
    load_ahead(work, 0, next);
    const int vectors = is_near() ? (Near::vectors(grid) + Shape::kTeam - 1) / Shape::kTeam : 2 * kPieces;
#pragma unroll 1
    for (int x = 0; x < vectors; ++x) {
      if (x % 2 == 0 && !is_near()) {
        __syncwarp();  // the last piece was read
        write_piece(d, x / 2);
        __syncwarp();
      }
      const Ahead now = next;
      if (x + 1 < vectors) load_ahead(work, x + 1, next);
      finish_vector(work, x, now);
      if (has_partials && x % 2 == 1) {
        __syncwarp();
        add_columns(work, x / 2);
      }
    }
    if (has_partials) store_partials(work);
  }

  // Piece i: block i / 2 / kAcross of 64 rows, columns i / 2 % kAcross, half i % 2 of the 16 rows.
  FASTDL_DEVICE static int column_of(int i) { return i / 2 % kAcross * kColumns; }
  FASTDL_DEVICE int row_of(int i) const { return first_row + i / 2 / kAcross * 64 + i % 2 * kLines; }

  // Registers have no index at run time: a branch for each piece.
  FASTDL_DEVICE void write_piece(const float (&d)[kBlocks][kN / 2], int i) const {
    float* const line = piece + lane / 4 * kPitch + lane % 2 * 2 + lane % 4 / 2 * kOdd;
    FASTDL_UNROLL
    for (int x = 0; x < kPieces; ++x) {
      if (x != i) continue;
      FASTDL_UNROLL
      for (int j = 0; j < kColumns / 8; ++j) {
        const int at = 4 * (column_of(x) / 8 + j) + x % 2 * 2;
        *reinterpret_cast<Pair*>(line + 4 * j) = {d[x / 2 / kAcross][at], d[x / 2 / kAcross][at + 1]};
      }
    }
  }

  // Of piece x / 2 this lane finishes 8 columns of lines lane / 8, then of 4 + lane / 8. Of a near tile the
  // team's threads take a vector of the share each.
  FASTDL_DEVICE Columns columns_of(const TileWork& work, int x) const {
    const int mine = lane, i = x * Shape::kTeam + int(threadIdx.x) % Shape::kTeam;
    if (is_near() && i >= Near::vectors(grid)) return {};
    const int line = is_near() ? Near::row_of(grid, work, i) : row_of(x / 2) + mine / 8 + x % 2 * 4;
    const int c = is_near() ? Near::column_of(i) : column_of(x / 2) + mine % 8 * kVector;
    const uint32_t row = uint32_t(work.row * Shape::kTileM + line), column = uint32_t(work.column * kN + c);
    const uint32_t m = uint32_t(p.m), n = uint32_t(p.n);
    const uint32_t inside = row >= m || column >= n ? 0 : n - column < kVector ? n - column : kVector;
    return {work.batch, row, column, int(inside)};
  }

  FASTDL_DEVICE void load_ahead(const TileWork& work, int x, Ahead& operands) const {
    const Columns at = columns_of(work, x);
    if ((grid.splits == 1 || is_near()) && at.inside > 0) operands.load(p, at);
  }

  FASTDL_DEVICE void finish_vector(const TileWork& work, int x, const Ahead& operands) const {
    const Columns at = columns_of(work, x);
    if (at.inside <= 0) return;
    float* const from = piece + (lane / 8 + x % 2 * 4) * kPitch + lane % 8 * 4;
    Vector<float, 4>* const even = reinterpret_cast<Vector<float, 4>*>(from);
    Vector<float, 4>* const odd = reinterpret_cast<Vector<float, 4>*>(from + kOdd);
    Vector<float, kVector> value;
    if (is_near()) {
      value = near.total(grid, int(at.row) - work.row * Shape::kTileM, int(at.column) - work.column * kN);
    } else {
      const Vector<float, 4> low = *even, high = *odd;
      FASTDL_UNROLL
      for (int j = 0; j < 4; ++j) value[j] = low[j], value[j + 4] = high[j];
    }
    if (grid.splits > 1 && !is_near()) return store_partial(workspace, p, grid, work, at, value);
    finish<true, scalar_t>(p, at, load_seed(p.epilogue), value, operands);
    if (!has_partials) return;
    *even = {value[0], value[1], value[2], value[3]};
    *odd = {value[4], value[5], value[6], value[7]};
  }

  // Alpha and bias alone, of 4 bytes an element: what four lanes hold of a row is a whole sector of memory.
  FASTDL_DEVICE void store_pairs(const TileWork& work, const float (&d)[kBlocks][kN / 2]) const {
    const int row0 = work.row * Shape::kTileM + first_row + lane / 4,
              column0 = work.column * kN + lane % 4 * 2;
    const float alpha = float(p.epilogue.alpha);
    const float* const biases = static_cast<const float*>(p.epilogue.bias);
    const int64_t pitch = p.output_row / 2, first = work.batch * (p.output_batch / 2) + row0 * pitch;
    Pair* const to = static_cast<Pair*>(p.output) + first + column0 / 2;
    FASTDL_UNROLL
    for (int j = 0; j < kN / 8; ++j) {
      if (column0 + 8 * j >= int(p.n)) return;
      Pair bias = {0, 0};
      if (biases) bias = load_vector<2>(biases + column0 + 8 * j);
      FASTDL_UNROLL
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const int row = i / 2 * 64 + i % 2 * 8;
        const float* const from = d[i / 2] + 4 * j + i % 2 * 2;
        if (row0 + row >= int(p.m)) continue;
        store(to + row * pitch + 4 * j, {from[0] * alpha + bias[0], from[1] * alpha + bias[1]});
      }
    }
  }

  // The same of 2 bytes: 16 rows x 64 columns of the output at a time, in rows of 128 bytes
  // whose 16-byte chunks are permuted by a 128-byte swizzle. TMA cuts what lies past the edges.
  FASTDL_DEVICE void store_plain(const TileWork& work, const float (&d)[kBlocks][kN / 2]) {
    FASTDL_UNROLL
    for (int i = 0; i < kPieces; i += 2) {
      const uint32_t biases = load_biases(work.column * kN + column_of(i) + 2 * lane);
      const uint32_t to = box + uint32_t(lane % 16 * 128);
      if (lane == 0) ptx::bulk_wait_read<1>();  // of the two the one before last: this box
      __syncwarp();
      FASTDL_UNROLL
      for (int j = 0; j < kColumns / 16; ++j) {
        uint32_t words[4];
        FASTDL_UNROLL
        for (int side = 0; side < 2; ++side) {
          const float* const from = d[i / 2 / kAcross] + 4 * (column_of(i) / 8 + 2 * j + side);
          const Pair bias =
              unpack(p.epilogue.bias ? __shfl_sync(~0u, biases, 8 * j + 4 * side + lane % 4) : 0);
          words[2 * side] = pack(from[0], from[1], bias);
          words[2 * side + 1] = pack(from[2], from[3], bias);
        }
        ptx::stmatrix<4>(to + uint32_t(((2 * j + lane / 16) ^ (lane % 8)) << 4), words);
      }
      ptx::fence_proxy_async();
      __syncwarp();
      if (lane == 0) {
        ptx::tma_store(output_map, box, work.column * kN + column_of(i), work.row * Shape::kTileM + row_of(i),
                       work.batch);
        ptx::bulk_commit();
      }
      box += other, other = -other;
    }
  }

  // The bias of this lane's two columns of 64, for the others to ask for.
  FASTDL_DEVICE uint32_t load_biases(int column) const {
    if (!p.epilogue.bias) return 0;
    const scalar_t* const from = static_cast<const scalar_t*>(p.epilogue.bias) + column;
    const scalar_t zero = convert<scalar_t>(0.0f);
    if (column + 1 < int(p.n)) return word_of(load_vector<2>(from));
    return word_of(Vector<scalar_t, 2>{column < int(p.n) ? load(from) : zero, zero});
  }
  FASTDL_DEVICE static uint32_t word_of(const Vector<scalar_t, 2>& both) {
    uint32_t word;
    memcpy(&word, &both, sizeof word);
    return word;
  }
  FASTDL_DEVICE static Pair unpack(uint32_t word) {
    Vector<scalar_t, 2> both;
    memcpy(&both, &word, sizeof word);
    return convert_vector<float>(both);
  }
  FASTDL_DEVICE uint32_t pack(float x, float y, const Pair& bias) const {
    const float alpha = float(p.epilogue.alpha);
    return word_of({convert<scalar_t>(x * alpha + bias[0]), convert<scalar_t>(y * alpha + bias[1])});
  }

  // Sum and squared deviations of a piece's stored values: a lane takes two columns, of 8 rows from shared
  // memory, and joins a slab's two pieces (Chan et al. 1983).
  FASTDL_DEVICE void add_columns(const TileWork& work, int i) const {
    const int64_t left = p.m - (int64_t(work.row) * Shape::kTileM + row_of(i));
    const int rows = left < 0 ? 0 : left < kLines ? int(left) : kLines;
    FASTDL_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float* const from = piece + lane + c * kOdd;
      float sum = 0, m2 = 0;
      for (int r = 0; r < rows; ++r) sum += from[r * kPitch];
      const float mean = rows > 0 ? sum / float(rows) : 0.0f;
      for (int r = 0; r < rows; ++r) {
        const float deviation = from[r * kPitch] - mean;
        m2 = fma(deviation, deviation, m2);
      }
      Pair* const slab = partial + row_of(i) / 16 * kN + column_of(i) + lane / 4 * 8 + lane % 4 + 4 * c;
      if (i % 2 == 0) {
        *slab = {sum, m2};  // of 8 rows, or of all there are: then the other piece adds nothing
      } else if (rows > 0) {
        const float apart = mean - (*slab)[0] * (1.0f / kLines),
                    weight = float(rows * kLines) / float(rows + kLines);
        *slab = {(*slab)[0] + sum, (*slab)[1] + m2 + apart * apart * weight};
      }
    }
  }

  // Joins the slabs, in order: the mean is the tile's own, so that one far from zero costs no digits.
  FASTDL_DEVICE void store_partials(const TileWork& work) const {
    team_barrier();
    const Epilogue& e = p.epilogue;
    const int64_t left = p.m - int64_t(work.row) * Shape::kTileM;
    const int rows = left < Shape::kTileM ? int(left) : Shape::kTileM;
    for (int c = int(threadIdx.x) % Shape::kTeam; c < kN; c += Shape::kTeam) {
      const int64_t column = int64_t(work.column) * kN + c;
      if (rows <= 0 || column >= p.n) break;
      float sum = 0, m2 = 0;
      for (int s = 0; s < kSlabs; ++s) sum += partial[s * kN + c][0];
      const float mean = sum / float(rows);
      for (int s = 0; s * 16 < rows; ++s) {
        const float count = float(rows - s * 16 < 16 ? rows - s * 16 : 16);
        const Pair slab = partial[s * kN + c];
        const float apart = slab[0] / count - mean;
        m2 += slab[1] + count * apart * apart;
      }
      const int64_t at = work.row * p.n + column;
      if (e.column_sums) store(static_cast<float*>(e.column_sums) + at, sum);
      if (!e.mean) continue;
      store(static_cast<float*>(e.mean) + at, mean);
      store(static_cast<float*>(e.m2) + at, m2);
    }
  }
};

}  // namespace fastdl::gemm
