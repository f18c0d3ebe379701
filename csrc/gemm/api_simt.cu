#include "gemm/api.h"
#include "gemm/dispatch.h"
#include "gemm/simt.cuh"

namespace fastdl::gemm {
namespace {

template <class Shape>
const char* launch_shape(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const TileGrid grid = tile_grid(p, plan);
  if (grid.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  LaunchConfig config{dim3(unsigned(grid.blocks())), dim3(Shape::kThreads)};
  config.shared_bytes = Shape::shared_bytes(p.epilogue.column_sums || p.epilogue.mean);
  config.stream = stream;
  return launch(simt_kernel<Shape>, config, p, grid, workspace);
}

}  // namespace

const char* launch_simt(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const char* error = with_type(p.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    if constexpr (std::is_same_v<scalar_t, float>) {
      if (plan.tile_m == 128) return launch_shape<SimtShape<scalar_t, 2>>(p, plan, workspace, stream);
    }
    return launch_shape<SimtShape<scalar_t, 1>>(p, plan, workspace, stream);
  });
  return error || plan.splits == 1 ? error : launch_split_sum(p, plan.splits, workspace, stream);
}

}  // namespace fastdl::gemm
