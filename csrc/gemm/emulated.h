// float32 products out of bfloat16 ones: how the operands' terms lie in the workspace. Plain C++: the plan
// asks too.
//
// x = high + middle + low, each the nearest bfloat16 to what is left: 8 + 8 + 8 bits, exact for |x| >= 2^-110
// (below, the rest is under 2^-134). Of the nine products of terms the three smallest, under 2^-24 of the
// whole, are left out; the others are added smallest first.
#pragma once
#include "gemm/plan_types.h"

namespace fastdl::gemm {

// Tensor cores cut their sums toward zero, which adds up over k. So their sums are added to float32
// registers, rounding to nearest, every 16 (mma.sync) or 32 (wgmma) of k: one or two cuts at full size, the
// others are 2^-8 of it or less.
constexpr int kTerms = 3;
constexpr int kEmulatedDepth = 64;  // of k: operands are padded to it, and k is split at multiples
constexpr int kTermPairs = 6;

// Which term of a meets which of b in product i: one of a's columns with one of b's.
FASTDL_HOST_DEVICE constexpr int a_term(int i) { return i == 0 ? 2 : i == 1 || i == 3 ? 1 : 0; }
FASTDL_HOST_DEVICE constexpr int b_term(int i) { return i == 2 ? 2 : i == 1 || i == 4 ? 1 : 0; }

// An operand's terms (batches, 3, lines, depth) in bfloat16, k adjacent, zero from k on.
struct TermPlanes {
  int64_t batches, lines, depth;

  FASTDL_HOST_DEVICE int64_t plane() const { return lines * depth; }
  FASTDL_HOST_DEVICE int64_t bytes() const { return batches * kTerms * plane() * 2; }
};

// The terms' pass adds up every row of a by so many columns, for a launch that adds those sums.
constexpr int kRowSumDepth = 16;

struct EmulatedWorkspace {
  TermPlanes a, b;
  int64_t a_offset, b_offset, row_sums_offset, bytes;  // parts of a split k come first
  int64_t row_sums;                                    // of every row of a
};

inline EmulatedWorkspace emulated_workspace(const Problem& p, int64_t split_bytes) {
  const auto aligned = [](int64_t bytes) { return ceil_div(bytes, 256) * 256; };
  const int64_t depth = ceil_div(p.k, kEmulatedDepth) * kEmulatedDepth;
  const auto batches = [&](const Matrix& x) { return x.batch == 0 ? int64_t(1) : p.batch; };
  EmulatedWorkspace w{};
  w.a = {batches(p.a), p.m, depth}, w.b = {batches(p.b), p.n, depth};
  w.a_offset = aligned(split_bytes);
  w.b_offset = w.a_offset + aligned(w.a.bytes());
  w.row_sums_offset = w.b_offset + aligned(w.b.bytes());
  w.row_sums = p.a_sums ? depth / kRowSumDepth : 0;
  w.bytes = w.row_sums_offset + aligned(w.row_sums * p.m * 4);
  return w;
}

}  // namespace fastdl::gemm
