// Which kernel takes a product, and how it is cut: a pure function of sizes, layouts and device.
#pragma once
#include "gemm/plan_hopper.h"

namespace fastdl::gemm {

inline Plan plan(const Problem& p, const Machine& machine) {
  Plan found{};
  if (machine.capability >= 90 && machine.capability < 100 && plan_hopper(p, machine, &found)) return found;
  const int tile = p.dtype == kFloat32 && p.m * p.n > 128 * 128 * machine.multiprocessors ? 128 : 64;
  return {kSimt, 0, tile, tile, p.dtype == kFloat64 || tile == 128 ? 8 : 16, 1, 0};
}

}  // namespace fastdl::gemm
