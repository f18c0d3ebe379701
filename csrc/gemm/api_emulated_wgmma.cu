#include "gemm/emulated_wgmma.cuh"
#include "gemm/launch_emulated.h"

namespace fastdl::gemm {
namespace {

// Boxes of three terms.
const char* map_terms(ptx::TensorMap* map, const unsigned char* terms, const TermPlanes& planes, int depth,
                      int lines) {
  const uint64_t size[] = {uint64_t(planes.depth), uint64_t(planes.lines), uint64_t(planes.batches * kTerms)};
  const uint64_t stride[] = {uint64_t(planes.depth) * 2, uint64_t(planes.plane()) * 2};
  const uint32_t box[] = {uint32_t(depth), uint32_t(lines), kTerms};
  return ptx::make_tensor_map(map, reinterpret_cast<const bfloat16*>(terms), 3, size, stride, box,
                              ptx::Swizzle::k64);
}

template <class Shape>
const char* launch_shape(const Problem& p, const Plan& plan, const EmulatedWorkspace& at,
                         unsigned char* workspace, void* stream) {
  const TileGrid grid = tile_grid(p, plan);
  ptx::TensorMap a, b;
  const char* error = map_terms(&a, workspace + at.a_offset, at.a, Shape::kDepth, Shape::kTileM);
  if (!error) error = map_terms(&b, workspace + at.b_offset, at.b, Shape::kDepth, Shape::kTileN);
  if (error) return error;
  LaunchConfig config;
  config.grid = dim3(unsigned(std::min<int64_t>(grid.blocks(), machine().multiprocessors)));
  config.block = dim3(Shape::kThreads);
  config.shared_bytes = Shape::kSharedBytes;
  config.stream = stream;
  return launch(emulated_wgmma_kernel<Shape>, config, p, grid, a, b, int(at.a.batches), int(at.b.batches),
                static_cast<void*>(workspace));
}

}  // namespace

const char* launch_emulated_wgmma(const Problem& p, const Plan& plan, const EmulatedWorkspace& at,
                                  unsigned char* workspace, void* stream) {
  return plan.tile_n == 192 ? launch_shape<EmulatedWgmmaShape<192>>(p, plan, at, workspace, stream)
                            : launch_shape<EmulatedWgmmaShape<128>>(p, plan, at, workspace, stream);
}

}  // namespace fastdl::gemm
