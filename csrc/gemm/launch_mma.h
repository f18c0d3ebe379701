// The instances of mma_kernel for one dtype; each api_mma*.cu compiles those of one.
#pragma once
#include "gemm/api.h"
#include "gemm/mma.cuh"

namespace fastdl::gemm {

const char* launch_mma_bfloat16(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_mma_half(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_mma_tf32(const Problem& problem, const Plan& plan, void* workspace, void* stream);

template <class Shape>
const char* launch_mma_shape(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const TileGrid grid = tile_grid(p, plan);
  if (grid.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  LaunchConfig config{dim3(unsigned(grid.blocks())), dim3(Shape::kThreads)};
  config.shared_bytes = Shape::kSharedBytes;
  config.stream = stream;
  return launch(mma_kernel<Shape>, config, p, grid, workspace);
}

template <class scalar_t, bool a_deep, bool b_deep>
const char* launch_mma_layout(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  if (plan.tile_m == 128) {
    return launch_mma_shape<MmaShape<scalar_t, 128, 128, 2, 4, a_deep, b_deep>>(p, plan, workspace, stream);
  }
  return launch_mma_shape<MmaShape<scalar_t, 64, 64, 2, 2, a_deep, b_deep>>(p, plan, workspace, stream);
}

// One of each operand's strides is 1.
template <class scalar_t>
const char* launch_mma_typed(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const bool a_deep = p.a.column == 1, b_deep = p.b.row == 1;
  if (a_deep && b_deep) return launch_mma_layout<scalar_t, true, true>(p, plan, workspace, stream);
  if (a_deep) return launch_mma_layout<scalar_t, true, false>(p, plan, workspace, stream);
  if (b_deep) return launch_mma_layout<scalar_t, false, true>(p, plan, workspace, stream);
  return launch_mma_layout<scalar_t, false, false>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
