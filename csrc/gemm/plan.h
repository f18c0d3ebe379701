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
  double macs;         // multiply-adds of a multiprocessor and cycle
  double tile_cycles;  // a tile's start and end, where nothing else is under way
  WgmmaTurns turns = kHalves;
};

constexpr int kMaxSplits = 64;
constexpr double kLaunchCycles = 4000;
constexpr double kBytesPerCycle = 12;      // of a multiprocessor, from memory
constexpr double kNearBytesPerCycle = 40;  // from L2
constexpr double kExitBytesPerCycle = 24;  // of sums on their way out, of the tile's two warpgroups
constexpr double kReads = 1500,
                 kNext = 300;  // a tile's first step from memory; from a ring that was filled ahead

inline bool has_unit_stride(const Matrix& m) { return m.row == 1 || m.column == 1; }

// How much a full epilogue's arithmetic prolongs a tile's exit.
inline double exit_weight(const Epilogue& e) {
  double weight = 1;
  if (e.activation > 2) weight += 1;  // more than a comparison
  if (e.seed) weight += 0.5;
  if (e.saved || e.residual || e.preactivation) weight += 0.75;
  if (e.column_sums || e.mean) weight += 0.75;
  return weight;
}

// Cycles of one tile of a wgmma kernel between its neighbours: the slower of the tensor cores and L2, then
// the exit, unless the other warpgroup multiplies meanwhile.
inline double wgmma_tile_cycles(const Problem& p, const Candidate& c, int cluster, double steps) {
  const double math = steps * c.tile_m * c.tile_n / c.macs;
  const double lines = c.tile_m + double(c.tile_n) / cluster;
  const double traffic = steps * lines * double(size_of(p.dtype)) / kNearBytesPerCycle;
  const double exit = exit_weight(p.epilogue) * c.tile_m * c.tile_n * 4 / kExitBytesPerCycle;
  const double inside = math > traffic ? math : traffic;
  if (c.turns != kAlternate) return kNext + inside + exit;
  return inside > 2 * exit ? inside : 2 * exit;  // one warpgroup's exit takes twice as long
}

// Estimated cycles: every multiprocessor makes its tiles one after the other; what is split costs a launch,
// and its parts pass through memory twice. All of it reads its operands and writes its output once.
inline double cycles(const Problem& p, const Machine& machine, const Candidate& c, int splits, int cluster) {
  const int64_t rows = ceil_div(p.m, int64_t(c.tile_m) * cluster) * cluster;
  const int64_t blocks = rows * ceil_div(p.n, c.tile_n) * p.batch * splits;
  const int64_t turns = ceil_div(blocks, machine.multiprocessors / cluster * cluster);
  const double steps = double(ceil_div(ceil_div(p.k, c.depth), splits)) * c.depth;
  const double outputs = double(p.m) * double(p.n) * double(p.batch);
  const double memory = kBytesPerCycle * machine.multiprocessors;
  double time;
  if (c.family == kWgmma) {
    const double tile = wgmma_tile_cycles(p, c, cluster, steps);
    const double exit =
        c.turns == kAlternate ? c.tile_m * c.tile_n * 8 / kExitBytesPerCycle : 0;  // the last one's
    time = kReads + double(turns) * tile + exit;
  } else {
    time = double(turns) * (c.tile_cycles + steps * c.tile_m * c.tile_n / c.macs);
  }
  const double bytes =
      double(size_of(p.dtype)) * (double(p.batch) * double(p.k) * double(p.m + p.n) + outputs);
  if (time < bytes / memory) time = bytes / memory;
  if (splits > 1) time += kLaunchCycles + 2 * splits * outputs * double(accumulator_size(p.dtype)) / memory;
  return time;
}

// Whether the candidate can make the product at all.
inline bool makes(const Problem& p, const Candidate& c) {
  if (c.family != kWgmma) return true;
  const bool columns = p.epilogue.column_sums || p.epilogue.mean;
  if (c.turns == kTokens) return p.a.column == 1 && !columns && !p.a_sums;
  return !p.a_sums || c.turns == kHalves || c.tile_m == 64;
}

}  // namespace plan_detail

// Partial sums of columns come from whole rows of tiles: such products are not split.
inline Plan plan_as_it_lies(const Problem& p, const Machine& machine) {
  using namespace plan_detail;
  Plan found{};
  const bool words = p.dtype == kFloat32, wide = p.dtype == kFloat64, halves = !words && !wide;
  const bool tensor_cores = machine.capability >= 80 && has_unit_stride(p.a) && has_unit_stride(p.b) &&
                            (halves || (words && p.precision == kHigh));
  const bool partials = p.epilogue.column_sums || p.epilogue.mean || p.a_sums;
  if (is_gemv(p) && !partials) return plan_gemv(p, machine);
  if (words && p.precision >= kEmulated && !partials) {
    const Plan emulated = plan_emulated(p, machine);
    if (emulated.tile_m > 0) return emulated;
  }
  const bool hopper = tensor_cores && halves && machine.wgmma && tma_reads(p.a, p.m, p.k, p.batch, p.dtype) &&
                      tma_reads(p.b, p.k, p.n, p.batch, p.dtype);
  const Candidate wgmma[] = {{kWgmma, 128, 256, kWgmmaDepth, 2000, 0},
                             {kWgmma, 128, 192, kWgmmaDepth, 1900, 0},
                             {kWgmma, 64, 256, kWgmmaDepth, 1950, 0, kAlternate},
                             {kWgmma, 128, 128, kWgmmaDepth, 1850, 0, kAlternate},
                             {kWgmma, 128, 64, kWgmmaDepth, 1500, 0},
                             {kMma, 64, 64, 32, 450, 3000}};
  const Candidate mma[] = {{kMma, 128, 128, halves ? 32 : 16, halves ? 700.0 : 350.0, 3000},
                           {kMma, 64, 64, halves ? 32 : 16, halves ? 450.0 : 225.0, 3000}};
  const Candidate simt[] = {{kSimt, 64, 64, wide ? 8 : 16, wide ? 24.0 : 80.0, 3000},
                            {kSimt, 128, 128, 8, 105, 3000}};
  const Candidate* from = hopper ? wgmma : tensor_cores ? mma : simt;
  const int count = hopper ? int(std::size(wgmma)) : tensor_cores || words ? 2 : 1;
  const bool splits_allowed = !p.epilogue.column_sums && !p.epilogue.mean;
  double best = 0;
  const auto consider = [&](const Candidate& c, int splits, int cluster) {
    const double cost = cycles(p, machine, c, splits, cluster);
    if (found.tile_m > 0 && cost >= best) return;
    best = cost;
    found = {c.family, c.tile_m, c.tile_n, c.depth, splits, split_workspace_bytes(p, splits),
             c.turns,  cluster,  cost};
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
  return found;
}

// Where TMA cannot read an operand, Hopper's tensor cores may be worth a pass that pads its lines.
inline Plan plan(const Problem& p, const Machine& machine) {
  using namespace plan_detail;
  const Plan direct = plan_as_it_lies(p, machine);
  if (!machine.wgmma || size_of(p.dtype) != 2 || (direct.family != kSimt && direct.family != kMma))
    return direct;
  const bool a = !tma_reads(p.a, p.m, p.k, p.batch, p.dtype), b = !tma_reads(p.b, p.k, p.n, p.batch, p.dtype);
  const Packed packed_a(p.a, p.m, p.k, p.batch, p.dtype), packed_b(p.b, p.k, p.n, p.batch, p.dtype);
  Problem q = p;
  if (a) q.a = packed_a.matrix;
  if (b) q.b = packed_b.matrix;
  Plan found = plan_as_it_lies(q, machine);
  const int64_t bytes = (a ? packed_a.bytes : 0) + (b ? packed_b.bytes : 0);
  found.cycles +=
      double(a + b) * kLaunchCycles + 2 * double(bytes) / (kBytesPerCycle * machine.multiprocessors);
  if (found.family != kWgmma || found.cycles >= direct.cycles) return direct;
  found.repacks_a = a, found.repacks_b = b;
  found.workspace_bytes = aligned_split_bytes(p, found.splits) + bytes;
  return found;
}

}  // namespace fastdl::gemm
