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
constexpr int kMaxNearParts = 8;                            // blocks of a cluster on every Hopper GPU
constexpr double kOwnBytesPerCycle = 128;                   // from a multiprocessor's shared memory
constexpr double kRemoteBytesPerCycle =
    12;                                // from others' of the cluster (arXiv 2402.13499: 3.3 TB/s of all)
constexpr double kNearCycles = 1000;   // two barriers of a cluster, the first remote reads
constexpr double kShareCycles = 0.15;  // of an element of a share, however little is done to it

inline bool has_unit_stride(const Matrix& m) { return m.row == 1 || m.column == 1; }

// Cycles of a multiprocessor for an element's way out of a wgmma kernel, counted from instructions.
inline double exit_cycles(const Problem& p, int splits) {
  const Epilogue& e = p.epilogue;
  if (splits > 1) return 0.15;
  if (e.aligned && !e.is_full()) return p.dtype == kFloat32 ? 0.125 : 0.03;
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

// Of the operands read and the output written once.
inline double memory_cycles(const Problem& p, const Machine& machine) {
  const double operands = double(p.k) * double(p.m + p.n), output = double(p.m) * double(p.n);
  return double(size_of(p.dtype)) * double(p.batch) * (operands + output) /
         (kBytesPerCycle * machine.multiprocessors);
}

// Nine tenths of the shorter are hidden by the longer.
inline double overlapped(double work, double memory) {
  return std::max(work, memory) + 0.1 * std::min(work, memory);
}

// Estimated cycles: every multiprocessor makes its tiles one after the other, and memory is read and written
// meanwhile. What is split costs a launch, and its parts pass through memory twice.
inline double cycles(const Problem& p, const Machine& machine, const Candidate& c, int splits, int cluster) {
  const int64_t rows = ceil_div(p.m, int64_t(c.tile_m) * cluster) * cluster;
  const int64_t blocks = rows * ceil_div(p.n, c.tile_n) * p.batch * splits;
  const double tiles = double(ceil_div(blocks, machine.multiprocessors / cluster * cluster));
  const double k = double(ceil_div(ceil_div(p.k, c.depth), splits)) * c.depth;
  const double work = c.family == kWgmma ? wgmma_cycles(p, c, splits, cluster, k, tiles)
                                         : tiles * (kTileCycles + k * c.tile_m * c.tile_n / c.macs);
  const double parts = 2 * splits * double(p.m) * double(p.n) * double(p.batch) *
                       double(accumulator_size(p.dtype)) / (kBytesPerCycle * machine.multiprocessors);
  return overlapped(work, memory_cycles(p, machine)) + (splits == 1 ? 0 : kLaunchCycles + parts);
}

// Blocks that are on the device at once, in clusters of so many: the 16 or 18 multiprocessors of a GPC hold
// whole clusters.
inline int64_t clustered_blocks(const Machine& machine, int cluster) {
  const int whole = cluster > 2 && machine.multiprocessors >= 16 ? 16 : cluster;
  return machine.multiprocessors / whole * whole;
}

// The same where a cluster's blocks share k: waves of blocks, each with one part of a tile, whose sums it
// writes, reads its share of and finishes. All of that comes after the product.
inline double near_cycles(const Problem& p, const Machine& machine, const Candidate& c, int parts) {
  const double size = double(c.tile_m) * c.tile_n, bytes = size * accumulator_size(p.dtype);
  const double k = double(ceil_div(ceil_div(p.k, c.depth), parts)) * c.depth;
  const double traffic = k * double((c.tile_m + c.tile_n) * size_of(p.dtype)) / kNearBytesPerCycle;
  const double add = bytes / kOwnBytesPerCycle + bytes * (parts - 1) / parts / kRemoteBytesPerCycle;
  const double finish = size / parts * std::max(exit_cycles(p, 1), kShareCycles);
  const int64_t blocks = ceil_div(p.m, c.tile_m) * ceil_div(p.n, c.tile_n) * p.batch * parts;
  const double waves = double(ceil_div(blocks, clustered_blocks(machine, parts)));
  const double work =
      waves * (kFirstStep + std::max(k * size / c.macs, traffic) + kNearCycles + add + finish);
  return overlapped(work, memory_cycles(p, machine));
}

// Whether the candidate can make the product at all.
inline bool makes(const Problem& p, const Candidate& c) {
  if (c.family != kWgmma) return true;
  const bool columns = p.epilogue.column_sums || p.epilogue.mean;
  if (c.turns == kTokens) return p.m <= 64 && p.a.column == 1 && !columns && !p.a_sums;
  if (!p.a_sums) return true;
  return c.turns == kHalves ? c.tile_m == 128 : c.tile_m == 64 && p.dtype != kFloat32;
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
                             {kWgmma, 256, 128, depth, 1900 * rate},
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
  const auto consider_near = [&](const Candidate& c, int parts) {
    const int64_t tiles = ceil_div(p.m, c.tile_m) * ceil_div(p.n, c.tile_n) * p.batch;
    if (tiles * parts > 2 * machine.multiprocessors || machine.multiprocessors < parts) return;
    Plan plan{c.family, c.tile_m, c.tile_n, c.depth, parts, 0, c.turns};
    plan.near = true, plan.cycles = near_cycles(p, machine, c, parts);
    f(plan);
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
      if (c.family == kWgmma && splits > 1 && splits <= kMaxNearParts) consider_near(c, splits);
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
    found.workspace_bytes = aligned_split_bytes(p, found.parts_in_memory()) + bytes;
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
