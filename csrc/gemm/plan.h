// Which kernel takes a product, and how it is cut: a pure function of sizes, layouts and device.
#pragma once
#include <algorithm>
#include "gemm/plan_emulated.h"
#include "gemm/plan_gemv.h"
#include "gemm/plan_types.h"
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
};

constexpr int kMaxSplits = 64;
constexpr double kTileCycles = 3000, kLaunchCycles = 4000;  // a tile's start and end; a launch
constexpr double kBytesPerCycle = 12;                       // of a multiprocessor, from memory

// Estimated cycles: every multiprocessor makes its tiles one after the other; what is split costs a launch,
// and its parts pass through memory twice.
inline double cycles(const Problem& p, const Machine& machine, const Candidate& c, int splits) {
  const int64_t blocks = ceil_div(p.m, c.tile_m) * ceil_div(p.n, c.tile_n) * p.batch * splits;
  const double steps = double(ceil_div(ceil_div(p.k, c.depth), splits)) * c.depth;
  const double tile = kTileCycles + steps * c.tile_m * c.tile_n / c.macs;
  const double parts = double(p.m) * double(p.n) * double(p.batch) * double(accumulator_size(p.dtype));
  const double sum =
      splits == 1 ? 0 : kLaunchCycles + 2 * splits * parts / (kBytesPerCycle * machine.multiprocessors);
  return double(ceil_div(blocks, machine.multiprocessors)) * tile + sum;
}

inline bool has_unit_stride(const Matrix& m) { return m.row == 1 || m.column == 1; }

}  // namespace plan_detail

// Partial sums of columns come from whole rows of tiles: such products are not split.
inline Plan plan(const Problem& p, const Machine& machine) {
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
  const bool hopper = tensor_cores && halves && machine.wgmma && !partials &&
                      tma_reads(p.a, p.m, p.k, p.batch, p.dtype) &&
                      tma_reads(p.b, p.k, p.n, p.batch, p.dtype);
  const Candidate wgmma[] = {
      {kWgmma, 128, 256, kWgmmaDepth, 1700}, {kWgmma, 128, 128, kWgmmaDepth, 1400}, {kMma, 64, 64, 32, 450}};
  const Candidate mma[] = {{kMma, 128, 128, halves ? 32 : 16, halves ? 700.0 : 350.0},
                           {kMma, 64, 64, halves ? 32 : 16, halves ? 450.0 : 225.0}};
  const Candidate simt[] = {{kSimt, 64, 64, wide ? 8 : 16, wide ? 24.0 : 80.0}, {kSimt, 128, 128, 8, 105}};
  const Candidate* from = hopper ? wgmma : tensor_cores ? mma : simt;
  const int count = hopper ? 3 : tensor_cores || words ? 2 : 1;
  const bool splits_allowed = !p.epilogue.column_sums && !p.epilogue.mean;
  double best = 0;
  for (int i = 0; i < count; ++i) {
    for (int splits = 1; splits <= kMaxSplits; splits *= 2) {
      if (splits > 1 && (!splits_allowed || p.k < 4 * int64_t(from[i].depth) * splits)) break;
      const double cost = cycles(p, machine, from[i], splits);
      if (found.tile_m > 0 && cost >= best) continue;
      best = cost;
      found = {from[i].family, from[i].tile_m, from[i].tile_n,
               from[i].depth,  splits,         split_workspace_bytes(p, splits)};
    }
  }
  return found;
}

}  // namespace fastdl::gemm
