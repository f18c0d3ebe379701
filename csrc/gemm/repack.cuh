// The passes that pad an operand's lines for TMA, or turn them to lie along k.
#pragma once
#include "divisor.cuh"
#include "vector.cuh"

namespace fastdl::gemm {

constexpr int kRepackThreads = 256, kRepackRun = 256;  // elements of a line that a warp copies

struct RepackArguments {
  const void* from;
  void* to;
  int64_t from_batch, from_line, from_inner, to_batch, to_line;  // strides; adjacent in `to`
  int64_t inner, runs;                                           // of a line; in all
  Divisor runs_of_line, lines;
};

// word_t has the elements' size. Neighbouring lanes copy neighbouring elements: no address need be aligned to
// more than an element, and a warp's accesses are whole sectors but for the ends. The padding is not written.
template <class word_t>
__global__ void __launch_bounds__(kRepackThreads) repack_kernel(const __grid_constant__ RepackArguments a) {
  constexpr int kEach = kRepackRun / 32;
  const int64_t run = int64_t(blockIdx.x) * (kRepackThreads / 32) + threadIdx.x / 32;
  if (run >= a.runs) return;
  const int64_t line_of_all = a.runs_of_line.quotient(run), batch = a.lines.quotient(line_of_all);
  const int64_t line = line_of_all - batch * a.lines.value;
  const int64_t first = (run - line_of_all * a.runs_of_line.value) * kRepackRun + threadIdx.x % 32;
  const word_t* const from =
      static_cast<const word_t*>(a.from) + batch * a.from_batch + line * a.from_line + first * a.from_inner;
  word_t* const to = static_cast<word_t*>(a.to) + batch * a.to_batch + line * a.to_line + first;
  word_t words[kEach];
  FASTDL_UNROLL
  for (int i = 0; i < kEach; ++i) {
    words[i] = first + 32 * i < a.inner ? load<Cache::kReadOnly>(from + 32 * i * a.from_inner) : word_t(0);
  }
  FASTDL_UNROLL
  for (int i = 0; i < kEach; ++i) {
    if (first + 32 * i < a.inner) store(to + 32 * i, words[i]);
  }
}

constexpr int kTransposeTile = 64, kTransposeThreads = 256;

struct TransposeArguments {
  const float* from;     // (batch, inner, lines), lines adjacent
  Vector<float, 4>* to;  // (batch, lines, inner), inner adjacent in lines of whole vectors
  int64_t from_batch, from_inner, to_batch, to_line;  // of `to` in vectors
  int64_t lines, inner;
  Divisor across, down;  // tiles along inner, along lines
  bool aligned;          // every fourth of `from` may be read as a vector
};

// A tile of 64 x 64 a block. A thread turns 4 x 4 elements in registers, so that both sides of shared memory
// move 16 bytes; rows' chunks are permuted by their line, and eight lanes find 32 banks on both ways.
__global__ void __launch_bounds__(kTransposeThreads)
    transpose_kernel(const __grid_constant__ TransposeArguments a) {
  using Quad = Vector<float, 4>;
  constexpr int kTile = kTransposeTile, kChunks = kTile / 4;
  FASTDL_SHARED(tile, Quad[kTile * kChunks]);
  const int64_t rows = a.across.quotient(blockIdx.x), batch = a.down.quotient(rows);
  const int64_t inner0 = (blockIdx.x - rows * a.across.value) * kTile,
                line0 = (rows - batch * a.down.value) * kTile;
  const int x = int(threadIdx.x) % kChunks, y = int(threadIdx.x) / kChunks;
  const int lines = a.lines - line0 < kTile ? int(a.lines - line0) : kTile;
  const int inner = a.inner - inner0 < kTile ? int(a.inner - inner0) : kTile;
  const float* const from = a.from + batch * a.from_batch + (inner0 + 4 * y) * a.from_inner + line0 + 4 * x;
  Quad read[4];
  FASTDL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const bool inside = 4 * y + i < inner;
    if (a.aligned && inside && 4 * x + 3 < lines) {
      read[i] = load_vector<4, Cache::kReadOnly>(from + i * a.from_inner);
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < 4; ++j) {
        read[i][j] = inside && 4 * x + j < lines ? load<Cache::kReadOnly>(from + i * a.from_inner + j) : 0.0f;
      }
    }
  }
  FASTDL_UNROLL
  for (int j = 0; j < 4; ++j) {
    tile[(4 * x + j) * kChunks + (y ^ x % 8)] = {read[0][j], read[1][j], read[2][j], read[3][j]};
  }
  __syncthreads();
  Quad* const to = a.to + batch * a.to_batch + line0 * a.to_line + inner0 / 4 + x;
  FASTDL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int line = y + i * kChunks;
    const Quad value = tile[line * kChunks + (x ^ line / 4 % 8)];
    if (line < lines && 4 * x < inner) store(to + line * a.to_line, value);
  }
}

}  // namespace fastdl::gemm
