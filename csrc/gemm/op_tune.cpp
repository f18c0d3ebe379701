// What a measurement of plans needs: see fastdl/tune.py.
#include <algorithm>
#include "gemm/glue.h"

namespace fastdl::gemm {
namespace {

constexpr int64_t kFields = sizeof(Cut) / sizeof(int);

std::vector<Plan> plans_of(Problem& p) {
  std::vector<Plan> plans;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return plans;
  align(p);
  for_each_plan(p, machine(), [&](const Plan& plan) { plans.push_back(plan); });
  std::stable_sort(plans.begin(), plans.end(),
                   [](const Plan& a, const Plan& b) { return a.cycles < b.cycles; });
  return plans;
}

}  // namespace

// The ways to make the product, the one of the fewest estimated cycles first: (ways, 7) int64 on the CPU, of
// Cut's fields.
Tensor gemm_candidates(const Tensor& a, const Tensor& b, int64_t precision) {
  const DeviceGuard guard(a);
  Problem p = product_of("gemm_candidates", a, b, precision);
  const std::vector<Plan> plans = plans_of(p);
  const int64_t shape[] = {int64_t(plans.size()), kFields};
  Tensor ways = torch::stable::empty({shape, 2}, ScalarType::Long, std::nullopt,
                                     torch::stable::Device(torch::headeronly::DeviceType::CPU));
  int64_t* to = ways.mutable_data_ptr<int64_t>();
  for (const Plan& plan : plans) {
    const Cut c = plan.cut();
    for (int field : {c.family, c.tile_m, c.tile_n, c.splits, c.turns, c.cluster, c.near}) *to++ = field;
  }
  return ways;
}

// From now on products of these sizes and layouts are made like this, in this process.
void gemm_choose(const Tensor& a, const Tensor& b, int64_t precision, std::vector<int64_t> way) {
  const DeviceGuard guard(a);
  STD_TORCH_CHECK(int64_t(way.size()) == kFields, "gemm_choose: a way has ", kFields, " numbers, got ",
                  way.size());
  Cut cut;
  int* const fields[kFields] = {&cut.family, &cut.tile_m,  &cut.tile_n, &cut.splits,
                                &cut.turns,  &cut.cluster, &cut.near};
  for (int64_t i = 0; i < kFields; ++i) *fields[i] = int(way[size_t(i)]);
  Problem p = product_of("gemm_choose", a, b, precision);
  const std::vector<Plan> plans = plans_of(p);
  const bool known = std::any_of(plans.begin(), plans.end(), [&](const Plan& x) { return x.cut() == cut; });
  STD_TORCH_CHECK(known, "gemm_choose: this way is none of gemm_candidates; measure again");
  TunedPlans::get().choose(tuned_key(p, machine()), cut);
}

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("gemm_candidates", TORCH_BOX(&gemm_candidates));
  m.impl("gemm_choose", TORCH_BOX(&gemm_choose));
}

}  // namespace fastdl::gemm
