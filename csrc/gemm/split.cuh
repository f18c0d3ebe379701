// Sums of parts of k, added in order: equal inputs give equal bits.
#pragma once
#include "gemm/epilogue.cuh"
#include "gemm/schedule.h"
#include "gemm/split.h"

namespace fastdl::gemm {

// The workspace: see split.h.
template <class acc_t>
struct Partials {
  acc_t *sums, *row_sums;

  FASTDL_DEVICE Partials(void* workspace, const Problem& p, int splits)
      : sums(static_cast<acc_t*>(workspace)), row_sums(sums + p.batch * splits * p.m * p.n) {}
};

template <int kCount, class acc_t>
FASTDL_DEVICE void store_partial(void* workspace, const Problem& p, const TileGrid& grid,
                                 const TileWork& work, const Columns& at,
                                 const Vector<acc_t, kCount>& value) {
  acc_t* sums = Partials<acc_t>(workspace, p, grid.splits).sums;
  const int64_t matrix = at.batch * grid.splits + work.split;
  store_columns<acc_t, kCount>(sums + (matrix * p.m + at.row) * p.n + at.column, value, at.inside,
                               p.n % 4 == 0);
}

// The sum of a row of a: the result, or one split's part of it.
template <class scalar_t, class acc_t>
FASTDL_DEVICE void store_row_sum(void* workspace, const Problem& p, const TileGrid& grid,
                                 const TileWork& work, int64_t row, acc_t sum) {
  if (grid.splits == 1) {
    store(static_cast<scalar_t*>(p.a_sums) + row, convert<scalar_t>(sum));
  } else {
    store(Partials<acc_t>(workspace, p, grid.splits).row_sums + work.split * p.m + row, sum);
  }
}

// Adds the parts and finishes: one thread for 4 columns of a row, then one for each sum of a's rows.
template <class scalar_t>
__global__ void __launch_bounds__(256)
    split_sum_kernel(const __grid_constant__ Problem p, int splits, void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  const Partials<acc_t> partials(workspace, p, splits);
  const int64_t vectors = (p.n + 3) / 4, all = p.batch * p.m * vectors;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread < all) {
    const int64_t line = thread / vectors, column = (thread - line * vectors) * 4;
    const Columns at{line / p.m, line % p.m, column, p.n - column < 4 ? int(p.n - column) : 4};
    const acc_t* from = partials.sums + ((at.batch * splits * p.m) + at.row) * p.n + column;
    Vector<acc_t, 4> sum = load_columns<acc_t, 4>(from, at.inside, p.n % 4 == 0);
    for (int s = 1; s < splits; ++s) {
      const auto part = load_columns<acc_t, 4>(from + s * p.m * p.n, at.inside, p.n % 4 == 0);
      FASTDL_UNROLL
      for (int j = 0; j < 4; ++j) sum[j] += part[j];
    }
    finish<true, scalar_t>(p, at, load_seed(p.epilogue), sum);
  } else if (p.a_sums && thread - all < p.m) {
    const int64_t row = thread - all;
    acc_t sum = acc_t(0);
    for (int s = 0; s < splits; ++s) sum += load(partials.row_sums + s * p.m + row);
    store(static_cast<scalar_t*>(p.a_sums) + row, convert<scalar_t>(sum));
  }
}

}  // namespace fastdl::gemm
