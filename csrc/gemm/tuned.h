// Plans that were measured (fastdl/tune.py): a table of the process, asked before the estimate.
#pragma once
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include "gemm/plan.h"

namespace fastdl::gemm {

// What a measurement holds for: sizes, dtype, and how the operands lie.
using TunedKey = std::array<int64_t, 9>;

inline TunedKey tuned_key(const Problem& p, const Machine& machine) {
  const auto lies = [&](const Matrix& x, int64_t rows, int64_t columns) {
    const int64_t adjacent = x.column == 1 ? 1 : x.row == 1 ? 2 : 0;
    return adjacent * 4 + (x.batch == 0) * 2 + tma_reads(x, rows, columns, p.batch, p.dtype);
  };
  return {p.m,
          p.n,
          p.k,
          p.batch,
          p.dtype * 8 + p.precision,
          lies(p.a, p.m, p.k),
          lies(p.b, p.k, p.n),
          machine.capability,
          machine.multiprocessors};
}

class TunedPlans {
 public:
  static TunedPlans& get() {
    static TunedPlans plans;
    return plans;
  }
  void choose(const TunedKey& key, const Cut& cut) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cuts_[key] = cut;
    any_ = true;
  }
  // Where the choice does not make this product (it was measured without column sums, say): none.
  std::optional<Plan> find(const Problem& p, const Machine& machine) {
    if (!any_) return std::nullopt;
    Cut cut;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = cuts_.find(tuned_key(p, machine));
      if (found == cuts_.end()) return std::nullopt;
      cut = found->second;
    }
    std::optional<Plan> plan;
    for_each_plan(p, machine, [&](const Plan& x) {
      if (x.cut() == cut) plan = x;
    });
    return plan;
  }

 private:
  std::mutex mutex_;
  std::map<TunedKey, Cut> cuts_;
  std::atomic<bool> any_ = false;
};

}  // namespace fastdl::gemm
