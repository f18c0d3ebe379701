// Whether float32 on request is made of bfloat16 products, and how such products are cut. Estimates; only
// their ratios matter.
#pragma once
#include <algorithm>
#include "gemm/emulated.h"
#include "gemm/split.h"

namespace fastdl::gemm {

// Six products on tensor cores beat fused multiply-adds where those are at least ten times as fast: on the
// processors of data centres. Others multiply float32 as it is.
inline bool has_fast_tensor_cores(const Machine& machine) {
  const int c = machine.capability;
  return c == 80 || c == 90 || c == 100 || c == 103;
}

// A plan with tile_m = 0 where true float32 is no slower. Cycles: tiles one after the other on every
// multiprocessor, the pass that writes the terms, launches; multiply-adds of float32 at their best rate.
inline Plan plan_emulated(const Problem& p, const Machine& machine) {
  struct Candidate {
    Family family;
    int tile_m, tile_n;
    double macs;  // of a multiprocessor and cycle, of float32
  };
  constexpr double kTile = 3000, kLaunch = 4000, kBytesPerCycle = 12;
  constexpr int64_t kMost = INT32_MAX / 4;
  const bool always = p.precision == kAlwaysEmulated;
  Plan found{};
  if (!has_fast_tensor_cores(machine) && !always) return found;
  if (machine.capability < 80 || p.k == 0 || std::max({p.m, p.n, p.k, p.batch}) > kMost) return found;
  const double all = double(p.m) * double(p.n) * double(p.k) * double(p.batch);
  const double words = machine.capability == 80 ? 52 : 105, multiprocessors = machine.multiprocessors;
  double best = always ? 1e300 : kTile + all / (words * multiprocessors);
  const Candidate wgmma[] = {{kEmulatedWgmma, 128, 192, 270}, {kEmulatedWgmma, 128, 128, 250}};
  const Candidate mma[] = {{kEmulatedMma, 128, 128, machine.capability == 80 ? 110.0 : 170.0}};
  // Four bytes are read and six written, then six read again.
  const double terms = double(emulated_workspace(p, 0).bytes) * (16.0 / 6);
  const double pass = (p.a_sums ? 2 : 1) * kLaunch + terms / (kBytesPerCycle * multiprocessors);
  const int most =
      p.epilogue.column_sums || p.epilogue.mean ? 1 : 64;  // such sums come from whole rows of tiles
  for (int i = 0; i < (machine.wgmma ? 2 : 1); ++i) {
    const Candidate& c = machine.wgmma ? wgmma[i] : mma[i];
    for (int splits = 1; splits <= most; splits *= 2) {
      if (splits > 1 && p.k < 4 * int64_t(kEmulatedDepth) * splits) break;
      const int64_t blocks = ceil_div(p.m, c.tile_m) * ceil_div(p.n, c.tile_n) * p.batch * splits;
      const double depth = double(ceil_div(p.k, int64_t(kEmulatedDepth) * splits) * kEmulatedDepth);
      const double parts = splits == 1 ? 0 : 8.0 * splits * double(p.batch) * double(p.m) * double(p.n);
      const double cost =
          pass +
          double(ceil_div(blocks, machine.multiprocessors)) * (kTile + depth * c.tile_m * c.tile_n / c.macs) +
          (splits > 1 ? kLaunch + parts / (kBytesPerCycle * multiprocessors) : 0);
      if (cost >= best) continue;
      best = cost;
      found = {c.family,       c.tile_m, c.tile_n,
               kEmulatedDepth, splits,   emulated_workspace(p, split_workspace_bytes(p, splits)).bytes};
    }
  }
  return found;
}

}  // namespace fastdl::gemm
