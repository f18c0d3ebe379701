#include "gemm/emulated_mma.cuh"
#include "gemm/launch_emulated.h"

namespace fastdl::gemm {

const char* launch_emulated_mma(const Problem& p, const Plan& plan, const EmulatedWorkspace& at,
                                unsigned char* workspace, void* stream) {
  const TileGrid grid = tile_grid(p, plan);
  if (grid.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  LaunchConfig config{dim3(unsigned(grid.blocks())), dim3(EmulatedMmaShape::kThreads)};
  config.shared_bytes = EmulatedMmaShape::kSharedBytes;
  config.stream = stream;
  return launch(emulated_mma_kernel, config, p, grid, at, workspace);
}

}  // namespace fastdl::gemm
