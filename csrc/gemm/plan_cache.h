// A plan walks tens of candidates, some microseconds; a thread keeps its last ones. The key is all that a
// plan is a function of: whoever lets plan.h read more adds it here (tests/gemm_plan_cache.cpp looks).
#pragma once
#include <array>
#include <cstddef>
#include <vector>
#include "gemm/plan_types.h"
#include "gemm/wgmma_shape.h"

namespace fastdl::gemm {

// How an operand lies, as far as plans and kernels tell layouts apart.
inline int64_t operand_class(const Matrix& x, int64_t rows, int64_t columns, int64_t batch, Dtype dtype) {
  return (x.row == 1) | (x.column == 1) << 1 | (x.batch == 0) << 2 |
         tma_reads(x, rows, columns, batch, dtype) << 3;
}

// What goes with the product, by bits of Exit: fastdl/tune.py has the same numbers.
enum Exit { kRowSums = 1, kColumnSums = 2, kFull = 4 };  // a's sums; sums or moments of columns; an epilogue
inline int64_t exit_class(const Problem& p) {
  return (p.a_sums ? kRowSums : 0) | (p.epilogue.column_sums || p.epilogue.mean ? kColumnSums : 0) |
         (p.epilogue.is_full() ? kFull : 0);
}

using PlanKey = std::array<int64_t, 8>;

inline PlanKey plan_key(const Problem& p, const Machine& machine) {
  const Epilogue& e = p.epilogue;
  const int64_t exit = e.aligned | (e.activation > 2) << 1 | (e.seed != nullptr) << 2;
  return {p.m,
          p.n,
          p.k,
          p.batch,
          p.dtype | p.precision << 4 | exit_class(p) << 8 | exit << 12,
          operand_class(p.a, p.m, p.k, p.batch, p.dtype) | operand_class(p.b, p.k, p.n, p.batch, p.dtype)
                                                               << 4,
          machine.multiprocessors | int64_t(machine.capability) << 32 | int64_t(machine.wgmma) << 48,
          machine.shared_bytes};
}

struct KnownPlan {
  PlanKey key{};
  uint64_t generation = 0;  // of the measured plans; 0: nothing is known
  Plan plan{};
};

// Where this thread keeps the plan of a key; another key's may be there.
inline KnownPlan& plan_slot(const PlanKey& key) {
  constexpr size_t kSlots = 256;
  thread_local std::vector<KnownPlan> table(kSlots);  // a library loaded late has little thread-local memory
  uint64_t mixed = 0;
  for (const int64_t x : key) mixed = (mixed ^ uint64_t(x)) * 0x9E3779B97F4A7C15u;
  return table[size_t(mixed >> 40) % kSlots];
}

// make()'s plan, unless this thread has it from the same generation (1 and up).
template <class F>
Plan cached_plan(const Problem& p, const Machine& machine, uint64_t generation, F make) {
  const PlanKey key = plan_key(p, machine);
  KnownPlan& known = plan_slot(key);
  if (known.generation != generation || known.key != key) known = {key, generation, make()};
  return known.plan;
}

}  // namespace fastdl::gemm
