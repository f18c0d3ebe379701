// How a product with at most 4 rows or columns is read: the long side's `lines` once, the other side's
// vectors from shared memory. Plain C++: the plan asks too.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

constexpr int kGemvVectors = 4, kGemvThreads = 256;
constexpr int kGemvLoads = 4;        // 16-byte accesses that a thread has under way at a time
constexpr int kGemvWideDepth = 128;  // of k, a step where lines are adjacent
constexpr int kGemvWideBytes = 128;  // of adjacent lines, a block's tile there

struct GemvLayout {
  Matrix matrix, input;  // a line a row, and a vector a row; batches of both
  int64_t lines;
  int32_t vectors;
  bool lines_are_rows;  // of the output; otherwise columns
  bool wide;            // lines are adjacent in memory; otherwise k is, or nothing
  bool whole;           // read 16 bytes at a time; otherwise element by element, neighbours by neighbours
};

inline bool is_gemv(const Problem& p) { return p.m <= kGemvVectors || p.n <= kGemvVectors; }

inline GemvLayout gemv_layout(const Problem& p) {
  GemvLayout g{};
  g.lines_are_rows = p.m > kGemvVectors;
  g.matrix = g.lines_are_rows ? p.a : p.b.transposed(), g.input = g.lines_are_rows ? p.b.transposed() : p.a;
  g.lines = g.lines_are_rows ? p.m : p.n, g.vectors = int32_t(g.lines_are_rows ? p.n : p.m);
  const Matrix& x = g.matrix;
  const int64_t size = size_of(p.dtype);
  g.wide = x.row == 1 && x.column != 1 && g.lines * size >= kGemvWideBytes / 2;
  const auto steps = [&](int64_t stride, int64_t count) { return count == 1 || stride * size % 16 == 0; };
  // Where k is adjacent all lines may begin at one odd address: the kernel starts before it.
  g.whole = steps(x.batch, p.batch) &&
            (g.wide ? steps(x.column, p.k) && is_aligned(x.data) : x.column == 1 && steps(x.row, g.lines));
  return g;
}

// A block's lines where k is adjacent: teams of threads take 4 lines each.
inline int gemv_team(int tile_lines) { return kGemvThreads * kGemvLoads / tile_lines; }

}  // namespace fastdl::gemm
