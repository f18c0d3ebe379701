// Which kernel takes a product, and how it is cut: a pure function of sizes, layouts and device.
#pragma once
#include "gemm/plan_hopper.h"

namespace fastdl::gemm {

inline Plan plan(const Problem& p, const Machine& machine) {
  Plan found{};
  if (machine.capability >= 90 && machine.capability < 100 && plan_hopper(p, machine, &found)) return found;
  return {kSimt, 0, 128, 128, 8, 1, 0};
}

}  // namespace fastdl::gemm
