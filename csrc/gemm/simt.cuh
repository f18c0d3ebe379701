// Any product: fused multiply-adds on ordinary cores, for every stride, alignment and dtype. The only family
// that multiplies float32 as float32, and float64 at all.
#pragma once
#include "gemm/columns.cuh"
#include "gemm/split.cuh"

namespace fastdl::gemm {

// 256 threads make a square tile of kTile = 64 kSub: 8 warps as 4 x 2, 32 lanes as 4 x 8, each thread kSub x
// kSub squares of 4 x 4 sums, so that a warp reads whole lines of shared memory.
template <class scalar, int sub>
struct SimtShape {
  using scalar_t = scalar;
  using acc_t = accumulator_t<scalar>;
  static constexpr int kSub = sub, kThreads = 256, kTile = 64 * kSub;
  static constexpr int kPer = sizeof(scalar_t) == 8 ? 2 : 4;  // elements of each operand that a thread loads
  static constexpr int kDepth = kPer * kThreads / kTile;      // of k, a step
  static constexpr int kPitch = kTile + 16 / int(sizeof(acc_t));

  // Two stages of both operands; the whole tile where columns are summed.
  static constexpr int shared_bytes(bool partials) {
    return int(sizeof(acc_t)) * kPitch * (partials && kTile > 4 * kDepth ? kTile : 4 * kDepth);
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
  int64_t inner, step;
  int64_t depth, depth_end;
  int line, depth_in_tile, lines;  // lines: how many of this thread's exist, at most kPer
  bool along_depth, vectors;
  Vector<scalar_t, kPer> value;

  FASTDL_DEVICE SimtLoader(const Matrix& operand, int64_t batch, int64_t first_line, int64_t all_lines,
                           const KRange& range) {
    along_depth = operand.column == 1 || operand.row != 1;
    constexpr int kAcross = Shape::kDepth / kPer, kLines = Shape::kTile / kPer;
    const int thread = int(threadIdx.x);
    line = along_depth ? thread / kAcross : thread % kLines * kPer;
    depth_in_tile = along_depth ? thread % kAcross * kPer : thread / kLines;
    depth = range.begin + depth_in_tile, depth_end = range.end;
    const int64_t left = all_lines - first_line - line;
    lines = left <= 0 ? 0 : left < kPer ? int(left) : kPer;
    if (along_depth && lines > 0) lines = kPer;
    from = static_cast<const scalar_t*>(operand.data) + batch * operand.batch +
           (first_line + line) * operand.row + depth * operand.column;
    inner = along_depth ? operand.column : operand.row;
    step = Shape::kDepth * operand.column;
    const int64_t outer = (along_depth ? operand.row : operand.column) | step;
    vectors =
        inner == 1 && outer % kPer == 0 && reinterpret_cast<uintptr_t>(from) % (kPer * sizeof(scalar_t)) == 0;
  }

  // The next tile, zero outside.
  FASTDL_DEVICE void load_next() {
    const int64_t deep = depth_end - depth;
    int count = deep <= 0 ? 0 : lines;
    if (along_depth && deep < count) count = int(deep);
    if (vectors && count == kPer) {
      value = load_vector<kPer>(from);
    } else {
      FASTDL_UNROLL
      for (int i = 0; i < kPer; ++i) value[i] = i < count ? load(from + i * inner) : convert<scalar_t>(0.f);
    }
    from += step, depth += Shape::kDepth;
  }

  FASTDL_DEVICE void put(acc_t* tile) const {
    const Vector<acc_t, kPer> wide = convert_vector<acc_t>(value);
    acc_t* to = tile + depth_in_tile * Shape::kPitch + line;
    if (along_depth) {
      FASTDL_UNROLL
      for (int i = 0; i < kPer; ++i) to[i * Shape::kPitch] = wide[i];
    } else {
      *reinterpret_cast<Vector<acc_t, kPer>*>(to) = wide;
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kSub == 2 ? 2 : 3)
    simt_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid, void* workspace) {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  using Vector4 = Vector<acc_t, 4>;
  constexpr int kTile = Shape::kTile, kPitch = Shape::kPitch, kDepth = Shape::kDepth, kSub = Shape::kSub;
  FASTDL_DYNAMIC_SHARED(memory);
  using Stage = acc_t[kDepth][kPitch];
  Stage* const a_tile = reinterpret_cast<Stage*>(memory);
  Stage* const b_tile = a_tile + 2;

  const TileWork work = tile_work(grid, blockIdx.x, p.k, kDepth);
  const int64_t row0 = int64_t(work.row) * kTile, column0 = int64_t(work.column) * kTile;
  SimtLoader<Shape> a(p.a, work.batch, row0, p.m, work.range);
  SimtLoader<Shape> b(p.b.transposed(), work.batch, column0, p.n, work.range);
  const bool sums_rows = p.a_sums && work.column == 0;
  Vector<acc_t, Shape::kPer> row_sum;
  FASTDL_UNROLL
  for (int i = 0; i < Shape::kPer; ++i) row_sum[i] = acc_t(0);

  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int row = warp / 2 * (16 * kSub) + lane / 8 * 4, column = warp % 2 * (32 * kSub) + lane % 8 * 4;
  acc_t sum[kSub * 4][kSub * 4];
  FASTDL_UNROLL
  for (int i = 0; i < kSub * 4; ++i) {
    FASTDL_UNROLL
    for (int j = 0; j < kSub * 4; ++j) sum[i][j] = acc_t(0);
  }

  int stage = 0;
  for (int64_t tile = 0; tile <= work.range.steps; ++tile) {  // loads tile, multiplies the one before
    const bool more = tile < work.range.steps;
    if (more) {
      a.load_next();
      b.load_next();
    }
    if (tile > 0) {
      FASTDL_UNROLL
      for (int k = 0; k < kDepth; ++k) {
        Vector4 left[kSub], right[kSub];
        FASTDL_UNROLL
        for (int i = 0; i < kSub; ++i) {
          left[i] = *reinterpret_cast<const Vector4*>(&a_tile[stage ^ 1][k][row + 16 * i]);
          right[i] = *reinterpret_cast<const Vector4*>(&b_tile[stage ^ 1][k][column + 32 * i]);
        }
        FASTDL_UNROLL
        for (int i = 0; i < kSub * 4; ++i) {
          FASTDL_UNROLL
          for (int j = 0; j < kSub * 4; ++j) {
            sum[i][j] = fma(left[i / 4][i % 4], right[j / 4][j % 4], sum[i][j]);
          }
        }
      }
    }
    if (more) {
      a.put(&a_tile[stage][0][0]);
      b.put(&b_tile[stage][0][0]);
      if (sums_rows) {
        FASTDL_UNROLL
        for (int i = 0; i < Shape::kPer; ++i) row_sum[i] += convert<acc_t>(a.value[i]);
      }
    }
    __syncthreads();
    stage ^= 1;
  }

  if (sums_rows) {
    // Every slot of a stage belongs to one thread: its share of the sum goes there.
    FASTDL_UNROLL
    for (int i = 0; i < Shape::kPer; ++i) {
      a_tile[0][a.depth_in_tile + (a.along_depth ? i : 0)][a.line + (a.along_depth ? 0 : i)] = row_sum[i];
    }
    __syncthreads();
    if (int(threadIdx.x) < kTile && row0 + int(threadIdx.x) < p.m) {
      acc_t total = acc_t(0);
      FASTDL_UNROLL
      for (int k = 0; k < kDepth; ++k) total += a_tile[0][k][threadIdx.x];
      store_row_sum<scalar_t>(workspace, p, grid, work, row0 + int(threadIdx.x), total);
    }
  }

  const uint64_t seed = load_seed(p.epilogue);
  FASTDL_UNROLL
  for (int i = 0; i < kSub * 4; ++i) {
    const int64_t r = row0 + row + i / 4 * 16 + i % 4;
    FASTDL_UNROLL
    for (int j = 0; j < kSub; ++j) {
      const int64_t c = column0 + column + 32 * j;
      if (r >= p.m || c >= p.n) continue;
      Vector4 value;
      FASTDL_UNROLL
      for (int x = 0; x < 4; ++x) value[x] = sum[i][4 * j + x];
      const Columns at{work.batch, r, c, p.n - c < 4 ? int(p.n - c) : 4};
      if (grid.splits > 1) {
        store_partial(workspace, p, grid, work, at, value);
      } else {
        finish<true, scalar_t>(p, at, seed, value);
        FASTDL_UNROLL
        for (int x = 0; x < 4; ++x) sum[i][4 * j + x] = value[x];
      }
    }
  }
  if (!p.epilogue.column_sums && !p.epilogue.mean) return;

  __syncthreads();  // sums of a's rows are still read
  acc_t* const tile = reinterpret_cast<acc_t*>(memory);
  FASTDL_UNROLL
  for (int i = 0; i < kSub * 4; ++i) {
    FASTDL_UNROLL
    for (int j = 0; j < kSub * 4; ++j) {
      tile[(row + i / 4 * 16 + i % 4) * kPitch + column + j / 4 * 32 + j % 4] = sum[i][j];
    }
  }
  const int64_t left = p.m - row0;
  write_column_partials<kTile, Shape::kThreads>(p, tile, kPitch, work.row, left < kTile ? int(left) : kTile,
                                                column0);
}

}  // namespace fastdl::gemm
