// Products of a matrix and up to 4 vectors, which memory bounds: the matrix is read once, 16 bytes at a time
// with the next accesses under way, the vectors wait in shared memory. Sums have one order.
#pragma once
#include "gemm/gemv_shape.h"
#include "gemm/split.cuh"
#include "reduce.cuh"

namespace fastdl::gemm {

template <class scalar, int vectors, bool wide, bool whole>
struct GemvShape {
  using scalar_t = scalar;
  using acc_t = accumulator_t<scalar>;
  static constexpr int kVectors = vectors, kThreads = kGemvThreads, kWarps = kThreads / 32;
  static constexpr bool kWide = wide, kWhole = whole;
  static constexpr int kEach = kVectorSize<scalar>;  // elements of an access, or as many single ones
  static constexpr int kResident = vectors == 1 && whole ? 3 : 2;  // blocks of a multiprocessor, by registers
  static constexpr int kSharedBytes = 32 * 1024, kChunk = kSharedBytes / (vectors * int(sizeof(scalar)));
};

// Elements on their way, in whole registers: of 16 bits each would take one where two branches meet.
template <class scalar_t, int kCount>
struct InRegisters {
  using Values = Vector<scalar_t, kCount>;
  uint32_t word[sizeof(Values) < 4 ? 1 : sizeof(Values) / 4];

  FASTDL_DEVICE void set(const Values& values) { memcpy(word, &values, sizeof values); }
  FASTDL_DEVICE Values get() const {
    Values values;
    memcpy(&values, word, sizeof values);
    return values;
  }
};

// This block's share of the lines and of k. Positions count k from `begin - lead`, where accesses are
// aligned; [lead, positions) of them exist.
struct GemvWork {
  int64_t first_line;
  int32_t lines, lead, positions;  // lines: at most 2^30

  template <class scalar_t>
  FASTDL_DEVICE static GemvWork of(const GemvLayout& g, const TileWork& tile, int tile_lines, bool leads) {
    const int64_t first = int64_t(g.lines_are_rows ? tile.row : tile.column) * tile_lines;
    const int64_t left = g.lines - first;
    const auto* data = static_cast<const scalar_t*>(g.matrix.data);
    const int lead = leads ? int(reinterpret_cast<uintptr_t>(data) % 16 / sizeof(scalar_t)) : 0;
    return {first, left < 1 << 30 ? int(left) : 1 << 30, lead, int(tile.range.end - tile.range.begin) + lead};
  }
};

// `count` positions of all vectors from `from` on to shared memory [kVectors][kChunk], zero outside of k.
template <class Shape>
FASTDL_DEVICE void stage_vectors(const GemvLayout& g, const TileWork& tile, const GemvWork& w,
                                 typename Shape::scalar_t* shared, int from, int count) {
  using scalar_t = typename Shape::scalar_t;
  constexpr int kEach = Shape::kEach;
  const scalar_t* const start = static_cast<const scalar_t*>(g.input.data) + tile.batch * g.input.batch +
                                (tile.range.begin - w.lead + from) * g.input.column;
  const int across = count / kEach;
#pragma unroll 2
  for (int i = int(threadIdx.x); i < Shape::kVectors * across; i += Shape::kThreads) {
    const int v = Shape::kVectors == 1 ? 0 : i / across, at = (i - v * across) * kEach;
    const int inside = v < g.vectors ? w.positions - from - at : 0, before = w.lead - from - at;
    const scalar_t* address = start + v * g.input.row + at * g.input.column;
    Vector<scalar_t, kEach> value;
    if (g.input.column == 1 && before <= 0 && inside >= kEach && fastdl::is_aligned<kEach>(address)) {
      value = load_vector<kEach>(address);
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < kEach; ++j) {
        value[j] = j >= before && j < inside ? load(address + j * g.input.column) : convert<scalar_t>(0.f);
      }
    }
    *reinterpret_cast<Vector<scalar_t, kEach>*>(shared + v * Shape::kChunk + at) = value;
  }
}

// Where k is adjacent, or nothing is: a team of threads shares 4 lines, each thread a part of k.
template <class Shape>
struct GemvDeep {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  static constexpr int kEach = Shape::kEach, kLines = kGemvLoads, kVectors = Shape::kVectors;
  using Loads = InRegisters<scalar_t, kEach>[kLines];

  const scalar_t* from;            // this thread's next element of its first line
  int team, member, first, lines;  // first: of the block's lines; lines: how many of the 4 exist
  int position, lead, positions;   // of `from`, and which exist
  acc_t sum[kLines][kVectors];

  FASTDL_DEVICE GemvDeep(const GemvLayout& g, const TileWork& tile, const GemvWork& w, int tile_lines)
      : team(Shape::kThreads * kLines / tile_lines), lead(w.lead), positions(w.positions) {
    member = int(threadIdx.x) % team, first = int(threadIdx.x) / team * kLines;
    lines = w.lines - first < kLines ? w.lines - first : kLines;
    position = member * (Shape::kWhole ? kEach : 1);
    from = static_cast<const scalar_t*>(g.matrix.data) + tile.batch * g.matrix.batch +
           (w.first_line + first) * g.matrix.row + (tile.range.begin - lead + position) * g.matrix.column;
    FASTDL_UNROLL
    for (int r = 0; r < kLines; ++r) {
      FASTDL_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = acc_t(0);
    }
  }
  FASTDL_DEVICE int step() const { return team * kEach; }

  FASTDL_DEVICE void load_next(const GemvLayout& g, Loads& next) {
    const scalar_t* line = from;
    const int64_t apart = Shape::kWhole ? 1 : team * g.matrix.column;
    FASTDL_UNROLL
    for (int r = 0; r < kLines; ++r, line += g.matrix.row) {
      if (Shape::kWhole && r < lines && position >= lead && position + kEach <= positions) {
        next[r].set(load_vector<kEach, Cache::kReadOnly>(line));
        continue;
      }
      Vector<scalar_t, kEach> single;
      FASTDL_UNROLL
      for (int j = 0; j < kEach; ++j) {
        const int at = position + j * (Shape::kWhole ? 1 : team);
        const bool inside = r < lines && at >= lead && at < positions;
        single[j] = inside ? load<Cache::kReadOnly>(line + j * apart) : convert<scalar_t>(0.f);
      }
      next[r].set(single);
    }
    from += step() * g.matrix.column, position += step();
  }

  FASTDL_DEVICE void multiply(const Loads& loaded, const scalar_t* shared) {
    FASTDL_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const scalar_t* from = shared + v * Shape::kChunk + member * (Shape::kWhole ? kEach : 1);
      Vector<scalar_t, kEach> x;
      if constexpr (Shape::kWhole) {
        x = *reinterpret_cast<const Vector<scalar_t, kEach>*>(from);
      } else {
        FASTDL_UNROLL
        for (int j = 0; j < kEach; ++j) x[j] = from[j * team];
      }
      FASTDL_UNROLL
      for (int r = 0; r < kLines; ++r) {
        const Vector<scalar_t, kEach> w = loaded[r].get();
        FASTDL_UNROLL
        for (int j = 0; j < kEach; ++j)
          sum[r][v] = fma(convert<acc_t>(w[j]), convert<acc_t>(x[j]), sum[r][v]);
      }
    }
  }

  // To sums [parts()][kVectors][tile_lines].
  FASTDL_DEVICE int parts() const { return team > 32 ? team / 32 : 1; }
  FASTDL_DEVICE void put(acc_t* sums, int tile_lines) const {
    FASTDL_UNROLL
    for (int r = 0; r < kLines; ++r) {
      FASTDL_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc_t total = sum[r][v];
        for (int offset = 1; offset < team && offset < 32; offset *= 2) total += shuffle_xor(total, offset);
        if (member % 32 == 0) sums[(member / 32 * kVectors + v) * tile_lines + first + r] = total;
      }
    }
  }
};

// Where lines are adjacent: a thread takes lines of 16 bytes, or a few apart, of every kSlots'th k.
template <class Shape>
struct GemvWide {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  static constexpr int kVectors = Shape::kVectors, kTile = kGemvWideBytes / int(sizeof(scalar_t));
  static constexpr int kAcross = Shape::kWhole ? kTile / Shape::kEach : kTile < 32 ? kTile : 32;
  static constexpr int kHere = kTile / kAcross, kSlots = Shape::kThreads / kAcross;
  static constexpr int kRows = kGemvWideDepth / kSlots;  // of k, a step
  static_assert(kRows * kHere == kGemvLoads * Shape::kEach);
  using Loads = InRegisters<scalar_t, kHere>[kRows];

  const scalar_t* from;  // the first line that this thread takes, at its next k
  int first, slot, lines, left;
  acc_t sum[kHere][kVectors];

  FASTDL_DEVICE GemvWide(const GemvLayout& g, const TileWork& tile, const GemvWork& w, int) {
    slot = int(threadIdx.x) / kAcross, first = int(threadIdx.x) % kAcross * (Shape::kWhole ? kHere : 1);
    lines = (w.lines < kTile ? w.lines : kTile) - first, left = w.positions - slot;
    from = static_cast<const scalar_t*>(g.matrix.data) + tile.batch * g.matrix.batch + w.first_line + first +
           (tile.range.begin + slot) * g.matrix.column;
    FASTDL_UNROLL
    for (int h = 0; h < kHere; ++h) {
      FASTDL_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[h][v] = acc_t(0);
    }
  }
  FASTDL_DEVICE int step() const { return kGemvWideDepth; }

  FASTDL_DEVICE void load_next(const GemvLayout& g, Loads& next) {
    constexpr int kApart = Shape::kWhole ? 1 : kAcross;
    const int64_t apart = kSlots * g.matrix.column;
    FASTDL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const bool deep = r * kSlots < left;
      if (Shape::kWhole && deep && lines >= kHere) {
        next[r].set(load_vector<kHere, Cache::kReadOnly>(from));
      } else {
        Vector<scalar_t, kHere> single;
        FASTDL_UNROLL
        for (int h = 0; h < kHere; ++h) {
          const bool inside = deep && h * kApart < lines;
          single[h] = inside ? load<Cache::kReadOnly>(from + h * kApart) : convert<scalar_t>(0.f);
        }
        next[r].set(single);
      }
      from += apart;
    }
    left -= kGemvWideDepth;
  }

  FASTDL_DEVICE void multiply(const Loads& loaded, const scalar_t* shared) {
    FASTDL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vector<scalar_t, kHere> w = loaded[r].get();
      FASTDL_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const acc_t x = convert<acc_t>(shared[v * Shape::kChunk + slot + r * kSlots]);
        FASTDL_UNROLL
        for (int h = 0; h < kHere; ++h) sum[h][v] = fma(convert<acc_t>(w[h]), x, sum[h][v]);
      }
    }
  }

  FASTDL_DEVICE int parts() const { return Shape::kWarps; }
  FASTDL_DEVICE void put(acc_t* sums, int tile_lines) const {
    FASTDL_UNROLL
    for (int h = 0; h < kHere; ++h) {
      FASTDL_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc_t total = sum[h][v];
        FASTDL_UNROLL
        for (int offset = kAcross; offset < 32; offset *= 2) total += shuffle_xor(total, offset);
        if (threadIdx.x % 32 < kAcross) {
          sums[(int(threadIdx.x) / 32 * kVectors + v) * tile_lines + first +
               h * (Shape::kWhole ? 1 : kAcross)] = total;
        }
      }
    }
  }
};

// Adds the parts of sums [parts][kVectors][tile_lines] and finishes: 4 columns a thread.
template <class Shape>
FASTDL_DEVICE void finish_gemv(const Problem& p, const TileGrid& grid, const GemvLayout& g,
                               const TileWork& tile, const GemvWork& w, void* workspace,
                               const typename Shape::acc_t* sums, int parts, int tile_lines) {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  constexpr int kColumns = 4;
  const int across = tile_lines / kColumns, count = g.lines_are_rows ? tile_lines : Shape::kVectors * across;
  const uint64_t seed = load_seed(p.epilogue);
  for (int i = int(threadIdx.x); i < count; i += Shape::kThreads) {
    const int v = g.lines_are_rows ? 0 : i / across, line = g.lines_are_rows ? i : i % across * kColumns;
    const int left = w.lines - line;
    if (v >= g.vectors || left <= 0) continue;
    const Columns at = g.lines_are_rows
                           ? Columns{tile.batch, w.first_line + line, 0, g.vectors}
                           : Columns{tile.batch, v, w.first_line + line, left < kColumns ? left : kColumns};
    Vector<acc_t, kColumns> value;
    FASTDL_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int from = g.lines_are_rows ? j * tile_lines + line : v * tile_lines + line + j;
      value[j] = acc_t(0);
      if (g.lines_are_rows && j >= Shape::kVectors) continue;
      for (int part = 0; part < parts; ++part) value[j] += sums[part * Shape::kVectors * tile_lines + from];
    }
    if (grid.splits > 1) {
      store_partial(workspace, p, grid, tile, at, value);
    } else {
      finish<true, scalar_t>(p, at, seed, value);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    gemv_kernel(const __grid_constant__ Problem p, const __grid_constant__ TileGrid grid,
                const __grid_constant__ GemvLayout g, int tile_lines, int depth, void* workspace) {
  using scalar_t = typename Shape::scalar_t;
  using acc_t = typename Shape::acc_t;
  using Part = std::conditional_t<Shape::kWide, GemvWide<Shape>, GemvDeep<Shape>>;
  FASTDL_DYNAMIC_SHARED(memory);
  scalar_t* const shared = reinterpret_cast<scalar_t*>(memory);
  FASTDL_SHARED(tile, TileWork);  // not in registers, which are dear
  if (threadIdx.x == 0) tile = tile_work(grid, blockIdx.x, p.k, depth);
  __syncthreads();
  const GemvWork w = GemvWork::of<scalar_t>(g, tile, tile_lines, Shape::kWhole && !Shape::kWide);
  Part part(g, tile, w, tile_lines);
  typename Part::Loads next;
  part.load_next(g, next);
  for (int chunk = 0; chunk < w.positions; chunk += Shape::kChunk) {
    const int left = w.positions - chunk;
    const int steps = ((left < Shape::kChunk ? left : Shape::kChunk) + part.step() - 1) / part.step();
    __syncthreads();  // nobody reads the chunk before
    stage_vectors<Shape>(g, tile, w, shared, chunk, steps * part.step());
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      typename Part::Loads loaded;
      FASTDL_UNROLL
      for (int i = 0; i < int(sizeof loaded / sizeof loaded[0]); ++i) loaded[i] = next[i];
      part.load_next(g, next);
      part.multiply(loaded, shared + step * part.step());
    }
  }
  __syncthreads();
  acc_t* const sums = reinterpret_cast<acc_t*>(memory);
  part.put(sums, tile_lines);
  __syncthreads();
  finish_gemv<Shape>(p, grid, g, tile, w, workspace, sums, part.parts(), tile_lines);
}

}  // namespace fastdl::gemm
