// The pass that pads an operand's lines for TMA.
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

}  // namespace fastdl::gemm
