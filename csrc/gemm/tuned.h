// Plans that were measured (fastdl/tune.py): a table of the process, asked before the estimate.
#pragma once
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include "gemm/plan.h"
#include "gemm/plan_cache.h"

namespace fastdl::gemm {

// What a measurement holds for: sizes, dtype, how the operands lie, and what goes with the product: sums
// allow fewer ways, and an epilogue takes time. Which one it is changes little.
using TunedKey = std::array<int64_t, 10>;

inline TunedKey tuned_key(const Problem& p, const Machine& machine) {
  return {p.m,
          p.n,
          p.k,
          p.batch,
          p.dtype * 8 + p.precision,
          exit_class(p),
          operand_class(p.a, p.m, p.k, p.batch, p.dtype),
          operand_class(p.b, p.k, p.n, p.batch, p.dtype),
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
    ++generation_;
  }
  // Grows with every choice.
  uint64_t generation() const { return generation_; }
  // Where the choice does not make this product: none.
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
  std::atomic<uint64_t> generation_ = 1;
};

}  // namespace fastdl::gemm
