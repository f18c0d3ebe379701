// How products of a matrix and a few vectors are cut: bytes decide. Estimates; only their ratios matter.
#pragma once
#include <algorithm>
#include "gemm/gemv_shape.h"
#include "gemm/split.h"

namespace fastdl::gemm {

constexpr int kGemvMaxSplits = 128;
constexpr double kGemvBlockCycles = 600, kGemvSplitCycles = 6000;  // a block's start and end; a second launch
constexpr double kGemvBytesPerCycle = 18;  // of a multiprocessor: 4.8 TB/s over 132 at 2 GHz

// Lines a block and parts of k. A second launch costs as much as some megabytes, so parts are the last
// resort: where k is adjacent more threads on fewer lines come first.
inline Plan plan_gemv(const Problem& p, const Machine& machine) {
  const GemvLayout g = gemv_layout(p);
  const int64_t size = size_of(p.dtype);
  const int each = int(16 / size), least = g.wide ? kGemvWideBytes / int(size) : 4;
  int widest = g.wide ? least : 128;
  while (widest > least && widest / 2 >= g.lines) widest /= 2;  // more would leave threads without lines
  Plan found{};
  double best = 0;
  for (int tile = widest; tile >= least; tile /= 2) {
    const int depth = g.wide ? kGemvWideDepth : gemv_team(tile) * each;
    if (tile < widest && depth > std::max<int64_t>(p.k, 32 * each)) break;  // or without k
    for (int splits = 1; splits <= kGemvMaxSplits; splits *= 2) {
      if (splits > 1 && p.k < 4 * int64_t(depth) * splits) break;
      const int64_t blocks = ceil_div(g.lines, tile) * p.batch * splits;
      const double lines = double(std::min<int64_t>(tile, g.lines)) + g.vectors;
      const double block =
          kGemvBlockCycles + lines * double(p.k) / splits * double(size) / kGemvBytesPerCycle;
      const double cost =
          double(ceil_div(blocks, machine.multiprocessors)) * block + (splits > 1 ? kGemvSplitCycles : 0);
      if (found.splits > 0 && cost >= best) continue;
      best = cost;
      found = {kGemv,  g.lines_are_rows ? tile : kGemvVectors, g.lines_are_rows ? kGemvVectors : tile, depth,
               splits, split_workspace_bytes(p, splits)};
    }
  }
  return found;
}

}  // namespace fastdl::gemm
