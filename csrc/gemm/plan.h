// Which kernel takes a product, and how it is cut: a pure function of sizes, layouts and device.
#pragma once
#include <algorithm>
#include <iterator>
#include "gemm/plan_emulated.h"
#include "gemm/plan_gemv.h"
#include "gemm/plan_types.h"
#include "gemm/repack.h"
#include "gemm/split.h"
#include "gemm/wgmma_shape.h"

namespace fastdl::gemm {
namespace plan_detail {

// A way to cut a product: tiles of one size by one family. Rates are estimates from the instructions'
// published throughput; only their ratios matter here.
struct Candidate {
  Family family;
  int tile_m, tile_n, depth;
  double macs;  // multiply-adds of a multiprocessor and cycle
  WgmmaTurns turns = kHalves;
};

constexpr int kMaxSplits = 64;
constexpr double kTileCycles = 3000, kLaunchCycles = 4000;  // a tile's start and end; a launch
constexpr double kBytesPerCycle = 12;                       // of a multiprocessor, from memory
constexpr double kNearBytesPerCycle = 40;                   // from L2
constexpr double kFirstStep = 1500;                         // of a block, from memory
constexpr double kNextStep = 300;                           // of a tile, from a ring that was filled ahead

inline bool has_unit_stride(const Matrix& m) { return m.row == 1 || m.column == 1; }

// Cycles of a multiprocessor for an element's way out of a wgmma kernel, counted from instructions.
inline double exit_cycles(const Problem& p, int splits) {
  const Epilogue& e = p.epilogue;
  if (splits > 1) return 0.15;
  if (e.aligned && !e.is_full()) return p.dtype == kFloat32 ? 0.125 : 0.045;
  double cycles = 0.22;
  if (e.activation > 2) cycles += 0.08;  // more than a comparison
  if (e.seed) cycles += 0.05;
  if (e.column_sums || e.mean) cycles += 0.05;
  return cycles;
}

// Of a block's `tiles` tiles: each takes the slower of the tensor cores and L2, then its exit. Warpgroups
// that alternate hide all exits but the last; each takes twice as long, for one has half the warps.
inline double wgmma_cycles(const Problem& p, const Candidate& c, int splits, int cluster, double k,
                           double tiles) {
  const double size = double(c.tile_m) * c.tile_n, math = k * size / c.macs;
  const double lines = c.turns == kTokens ? c.tile_m + c.tile_n : c.tile_m + double(c.tile_n) / cluster;
  const double traffic = k * lines * double(size_of(p.dtype)) / kNearBytesPerCycle;
  const double inside = kNextStep + std::max(math, traffic), exit = exit_cycles(p, splits) * size;
  if (c.turns != kAlternate) return kFirstStep + tiles * (inside + exit);
  return kFirstStep + tiles * std::max(inside, (inside + 2 * exit) / 2) + 2 * exit;
}

// Estimated cycles: every multiprocessor makes its tiles one after the other, and memory is read and written
// meanwhile, nine tenths of the shorter of both hidden by the longer. What is split costs a launch, and its
// parts pass through memory twice.
inline double cycles(const Problem& p, const Machine& machine, const Candidate& c, int splits, int cluster) {
  const int64_t rows = ceil_div(p.m, int64_t(c.tile_m) * cluster) * cluster;
  const int64_t blocks = rows * ceil_div(p.n, c.tile_n) * p.batch * splits;
  const double tiles = double(ceil_div(blocks, machine.multiprocessors / cluster * cluster));
  const double k = double(ceil_div(ceil_div(p.k, c.depth), splits)) * c.depth;
  const double outputs = double(p.m) * double(p.n) * double(p.batch);
  const double rate = kBytesPerCycle * machine.multiprocessors;
  const double memory =
      double(size_of(p.dtype)) * (double(p.batch) * double(p.k) * double(p.m + p.n) + outputs) / rate;
  const double work = c.family == kWgmma ? wgmma_cycles(p, c, splits, cluster, k, tiles)
                                         : tiles * (kTileCycles + k * c.tile_m * c.tile_n / c.macs);
  const double parts = 2 * splits * outputs * double(accumulator_size(p.dtype)) / rate;
  return std::max(work, memory) + 0.1 * std::min(work, memory) + (splits == 1 ? 0 : kLaunchCycles + parts);
}

// Whether the candidate can make the product at all.
inline bool makes(const Problem& p, const Candidate& c) {
  if (c.family != kWgmma) return true;
  const bool columns = p.epilogue.column_sums || p.epilogue.mean;
  if (c.turns == kTokens) return p.m <= 64 && p.a.column == 1 && !columns && !p.a_sums;
  return !p.a_sums || c.turns == kHalves || (c.tile_m == 64 && p.dtype != kFloat32);
}

}  // namespace plan_detail

// Calls f(plan) for every way to make the product of operands as they lie. Partial sums of columns come from
// whole rows of tiles: such products are not split.
template <class F>
void for_each_plan_as_it_lies(const Problem& p, const Machine& machine, F f) {
  using namespace plan_detail;
  const bool words = p.dtype == kFloat32, wide = p.dtype == kFloat64, halves = !words && !wide;
  const bool tensor_cores = machine.capability >= 80 && has_unit_stride(p.a) && has_unit_stride(p.b) &&
                            (halves || (words && p.precision == kHigh));
  const bool partials = p.epilogue.column_sums || p.epilogue.mean || p.a_sums;
  if (is_gemv(p) && !partials) return f(plan_gemv(p, machine));
  if (words && p.precision >= kEmulated) {
    const Plan emulated = plan_emulated(p, machine);
    if (emulated.tile_m > 0) return f(emulated);
  }
  const bool hopper = tensor_cores && machine.wgmma && wgmma_reads_a(p) && wgmma_reads_b(p);
  const int depth = wgmma_depth(p.dtype);
  const double rate = halves ? 1 : 0.5;  // of tf32
  const Candidate wgmma[] = {{kWgmma, 128, 256, depth, 2000 * rate},
                             {kWgmma, 128, 192, depth, 1900 * rate},
                             {kWgmma, 64, 256, depth, 1950 * rate, kAlternate},
                             {kWgmma, 128, 128, depth, 1850 * rate, kAlternate},
                             {kWgmma, 128, 64, depth, 1500 * rate},
                             {kWgmma, 16, 128, depth, 900 * rate, kTokens},
                             {kWgmma, 32, 128, depth, 1300 * rate, kTokens},
                             {kWgmma, 64, 128, depth, 1500 * rate, kTokens},
                             {kMma, 64, 64, depth / 2, 450 * rate}};
  const Candidate mma[] = {{kMma, 128, 128, halves ? 32 : 16, halves ? 700.0 : 350.0},
                           {kMma, 64, 64, halves ? 32 : 16, halves ? 450.0 : 225.0}};
  const Candidate simt[] = {{kSimt, 64, 64, wide ? 8 : 16, wide ? 24.0 : 80.0}, {kSimt, 128, 128, 8, 105}};
  const Candidate* from = hopper ? wgmma : tensor_cores ? mma : simt;
  const int count = hopper ? int(std::size(wgmma)) : tensor_cores || words ? 2 : 1;
  const bool splits_allowed = !p.epilogue.column_sums && !p.epilogue.mean;
  const auto consider = [&](const Candidate& c, int splits, int cluster) {
    f(Plan{c.family, c.tile_m, c.tile_n, c.depth, splits, split_workspace_bytes(p, splits), c.turns, cluster,
           cycles(p, machine, c, splits, cluster)});
  };
  for (int i = 0; i < count; ++i) {
    const Candidate& c = from[i];
    if (!makes(p, c)) continue;
    for (int splits = 1; splits <= kMaxSplits; splits *= 2) {
      if (splits > 1 && (!splits_allowed || p.k < 4 * int64_t(c.depth) * splits)) break;
      consider(c, splits, 1);
      if (c.family == kWgmma && c.turns != kTokens && p.m > c.tile_m && machine.multiprocessors > 1) {
        consider(c, splits, 2);
      }
    }
  }
}

// And of operands that wgmma cannot read, behind a pass that pads or turns their lines.
template <class F>
void for_each_plan(const Problem& p, const Machine& machine, F f) {
  using namespace plan_detail;
  for_each_plan_as_it_lies(p, machine, f);
  const bool tensor_cores = size_of(p.dtype) == 2 || (p.dtype == kFloat32 && p.precision == kHigh);
  const bool a = !wgmma_reads_a(p), b = !wgmma_reads_b(p);
  if (!machine.wgmma || !tensor_cores || (!a && !b)) return;
  const Packed to_a = packed_a(p), to_b = packed_b(p);
  Problem q = p;
  if (a) q.a = to_a.matrix;
  if (b) q.b = to_b.matrix;
  const int64_t bytes = (a ? to_a.bytes : 0) + (b ? to_b.bytes : 0);
  for_each_plan_as_it_lies(q, machine, [&](Plan found) {
    if (found.family != kWgmma) return;
    found.cycles += double(a + b) * kLaunchCycles;
    found.cycles += 2 * double(bytes) / (kBytesPerCycle * machine.multiprocessors);
    found.repacks_a = a, found.repacks_b = b;
    found.workspace_bytes = aligned_split_bytes(p, found.splits) + bytes;
    f(found);
  });
}

// The one of the fewest estimated cycles.
inline Plan plan(const Problem& p, const Machine& machine) {
  Plan best{};
  for_each_plan(p, machine, [&](const Plan& found) {
    if (best.tile_m == 0 || found.cycles < best.cycles) best = found;
  });
  return best;
}

}  // namespace fastdl::gemm
