// Any product: fused multiply-adds on ordinary cores, for every stride, alignment and dtype. The only family
// that multiplies float32 as float32, and float64 at all.
#pragma once
#include "gemm/finish.cuh"

namespace fastdl::gemm {

// 256 threads make a square tile of kTile = 64 kSub: 8 warps as 4 x 2, 32 lanes as 4 x 8, each thread kSub x
// kSub squares of 4 x 4 sums (of doubles two columns here, two there): a warp reads whole lines of shared
// memory.
template <class scalar, int sub>
struct SimtShape {
  using scalar_t = scalar;
  using acc_t = accumulator_t<scalar>;
  static constexpr int kSub = sub, kThreads = 256, kTile = 64 * kSub;
  static constexpr int kPer = sizeof(scalar_t) == 8 ? 2 : 4;  // elements of each operand that a thread loads
  static constexpr int kDepth = kPer * kThreads / kTile;      // of k, a step
  static constexpr int kPitch = kTile + 16 / int(sizeof(acc_t));

  static constexpr int kLines = 64;  // of the tile that leave together

  // Two stages of both operands, then lines of the tile; all of it where columns are summed.
  static constexpr int shared_bytes(bool partials) {
    const int lines = partials ? kTile : kLines;
    return int(sizeof(acc_t)) * kPitch * (lines > 4 * kDepth ? lines : 4 * kDepth);
  }
};

// One operand on its way to shared memory [kDepth][kPitch]: `line` counts a's rows or b's columns. A thread
// takes kPer neighbours along whichever dimension has stride 1, with one load where they are aligned.
template <class Shape>
struct SimtLoader {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  static constexpr int kPer = Shape::kPer;

  const scalar_t* from;
  int line, depth;  // in the tile
  int lines, tail;  // how many of this thread's elements exist in a tile, and in the last one
  bool along_depth, vectors;
  Vector<scalar_t, kPer> value;

  FASTDL_DEVICE SimtLoader(const Matrix& operand, int64_t batch, int64_t first_line, int64_t all_lines,
                           const KRange& range) {
    along_depth = operand.column == 1 || operand.row != 1;
    constexpr int kAcross = Shape::kDepth / kPer, kLines = Shape::kTile / kPer;
    const int thread = int(threadIdx.x);
    line = along_depth ? thread / kAcross : thread % kLines * kPer;
    depth = along_depth ? thread % kAcross * kPer : thread / kLines;
    const int64_t exist = all_lines - first_line - line;
    lines = exist <= 0 ? 0 : exist < kPer && !along_depth ? int(exist) : kPer;
    const int deep = int(range.end - range.begin - (range.steps - 1) * Shape::kDepth) - depth;
    tail = deep <= 0 ? 0 : along_depth && deep < lines ? deep : lines;
    from = static_cast<const scalar_t*>(operand.data) + batch * operand.batch +
           (first_line + line) * operand.row + (range.begin + depth) * operand.column;
    const int64_t inner = along_depth ? operand.column : operand.row, step = Shape::kDepth * operand.column;
    vectors =
        inner == 1 && step % kPer == 0 && reinterpret_cast<uintptr_t>(from) % (kPer * sizeof(scalar_t)) == 0;
  }

  // The next tile, zero outside. Strides come from the operand again: registers are dear.
  FASTDL_DEVICE void load_next(const Matrix& operand, bool last) {
    const int count = last ? tail : lines;
    if (vectors && count == kPer) {
      value = load_vector<kPer>(from);
    } else {
      const int64_t inner = along_depth ? operand.column : operand.row;
      FASTDL_UNROLL
      for (int i = 0; i < kPer; ++i) value[i] = i < count ? load(from + i * inner) : convert<scalar_t>(0.f);
    }
    from += Shape::kDepth * operand.column;
  }

  FASTDL_DEVICE void put(acc_t* tile) const {
    const Vector<acc_t, kPer> wide = convert_vector<acc_t>(value);
    acc_t* to = tile + depth * Shape::kPitch + line;
    if (along_depth) {
      FASTDL_UNROLL
      for (int i = 0; i < kPer; ++i) to[i * Shape::kPitch] = wide[i];
    } else {
      *reinterpret_cast<Vector<acc_t, kPer>*>(to) = wide;
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, sizeof(typename Shape::scalar_t) == 8 ? 1 : 2)
    simt_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid, void* workspace) {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  using Vector4 = Vector<acc_t, 4>;
  using Part = Vector<acc_t, 16 / sizeof(acc_t)>;
  constexpr int kTile = Shape::kTile, kPitch = Shape::kPitch, kDepth = Shape::kDepth, kSub = Shape::kSub;
  constexpr int kEach = 16 / sizeof(acc_t),
                kAcross = 8 * kEach;  // columns of a thread, and of 8, side by side
  FASTDL_DYNAMIC_SHARED(memory);
  using Stage = acc_t[kDepth][kPitch];
  Stage* const a_tile = reinterpret_cast<Stage*>(memory);
  Stage* const b_tile = a_tile + 2;

  FASTDL_SHARED(work, TileWork);  // not in registers, which are dear
  if (threadIdx.x == 0) work = tile_work(grid, blockIdx.x, p.k, kDepth);
  __syncthreads();
  const int steps = work.range.steps;
  SimtLoader<Shape> a(p.a, work.batch, int64_t(work.row) * kTile, p.m, work.range);
  const Matrix b_transposed = p.b.transposed();
  SimtLoader<Shape> b(b_transposed, work.batch, int64_t(work.column) * kTile, p.n, work.range);
  const bool sums_rows = p.a_sums && work.column == 0;
  // In shared memory, each element its thread's own: sums would cost registers in every block.
  FASTDL_SHARED(row_sum, acc_t[Shape::kPer][Shape::kThreads]);
  FASTDL_UNROLL
  for (int i = 0; i < Shape::kPer; ++i) row_sum[i][threadIdx.x] = acc_t(0);

  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int row = warp / 2 * (16 * kSub) + lane / 8 * 4, column = warp % 2 * (32 * kSub) + lane % 8 * kEach;
  const auto column_of = [&](int j) { return column + j / kEach * kAcross + j % kEach; };  // of sum[][j]
  acc_t sum[kSub * 4][kSub * 4];
  FASTDL_UNROLL
  for (int i = 0; i < kSub * 4; ++i) {
    FASTDL_UNROLL
    for (int j = 0; j < kSub * 4; ++j) sum[i][j] = acc_t(0);
  }

  int stage = 0;
  for (int tile = 0; tile <= steps; ++tile) {  // loads tile, multiplies the one before
    const bool more = tile < steps;
    if (more) {
      a.load_next(p.a, tile + 1 == steps);
      b.load_next(b_transposed, tile + 1 == steps);
    }
    if (tile > 0) {
#pragma unroll 2  // more would spill
      for (int k = 0; k < kDepth; ++k) {
        Vector4 left[kSub];
        Part right[kSub * 4 / kEach];
        FASTDL_UNROLL
        for (int i = 0; i < kSub; ++i) {
          left[i] = *reinterpret_cast<const Vector4*>(&a_tile[stage ^ 1][k][row + 16 * i]);
        }
        FASTDL_UNROLL
        for (int j = 0; j < kSub * 4; j += kEach) {
          right[j / kEach] = *reinterpret_cast<const Part*>(&b_tile[stage ^ 1][k][column_of(j)]);
        }
        FASTDL_UNROLL
        for (int i = 0; i < kSub * 4; ++i) {
          FASTDL_UNROLL
          for (int j = 0; j < kSub * 4; ++j) {
            sum[i][j] = fma(left[i / 4][i % 4], right[j / kEach][j % kEach], sum[i][j]);
          }
        }
      }
    }
    if (more) {
      a.put(&a_tile[stage][0][0]);
      b.put(&b_tile[stage][0][0]);
      if (sums_rows) {
        FASTDL_UNROLL
        for (int i = 0; i < Shape::kPer; ++i) row_sum[i][threadIdx.x] += convert<acc_t>(a.value[i]);
      }
    }
    __syncthreads();
    stage ^= 1;
  }

  if (sums_rows) {
    // Every slot of a stage belongs to one thread: its share of the sum goes there.
    FASTDL_UNROLL
    for (int i = 0; i < Shape::kPer; ++i) {
      a_tile[0][a.depth + (a.along_depth ? i : 0)][a.line + (a.along_depth ? 0 : i)] =
          row_sum[i][threadIdx.x];
    }
    __syncthreads();
    const int64_t r = int64_t(work.row) * kTile + threadIdx.x;
    if (int(threadIdx.x) < kTile && r < p.m) {
      acc_t total = acc_t(0);
#pragma unroll 2  // more would spill
      for (int k = 0; k < kDepth; ++k) total += a_tile[0][k][threadIdx.x];
      store_row_sum<scalar_t>(workspace, p, grid, work, r, total);
    }
  }

  // 64 lines at a time, 16 of each row of warps: bands of the tile, or all of it where columns are summed.
  const bool partials = p.epilogue.column_sums || p.epilogue.mean;
  acc_t* const tile = reinterpret_cast<acc_t*>(memory);
#pragma unroll 1
  for (int band = 0; band < kSub; ++band) {
    acc_t* const lines = tile + (partials ? band * Shape::kLines * kPitch : 0);
    __syncthreads();  // the last reads of the memory
    FASTDL_UNROLL
    for (int i = 0; i < kSub * 4; ++i) {
      if (i / 4 != band) continue;
      FASTDL_UNROLL
      for (int j = 0; j < kSub * 4; ++j) {
        lines[(warp / 2 * 16 + lane / 8 * 4 + i % 4) * kPitch + column_of(j)] = sum[i][j];
      }
    }
    __syncthreads();
    finish_lines<scalar_t, Shape::kThreads, Shape::kLines, kTile, kPitch>(
        p, grid, work, workspace, lines, kTile, partials,
        [band](int line) { return line / 16 * (16 * kSub) + band * 16 + line % 16; });
  }
  if (!partials) return;
  write_column_partials<kTile, Shape::kThreads>(p, tile, kPitch, work, kTile, [](int line) {
    const int band = line / Shape::kLines, in_band = line % Shape::kLines;
    return in_band / 16 * (16 * kSub) + band * 16 + in_band % 16;
  });
}

}  // namespace fastdl::gemm
