// The instances of gemv_kernel for one dtype; each api_gemv*.cu compiles those of two.
#pragma once
#include "gemm/api.h"
#include "gemm/gemv.cuh"

namespace fastdl::gemm {

const char* launch_gemv_words(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_gemv_halves(const Problem& problem, const Plan& plan, void* workspace, void* stream);

template <class Shape>
const char* launch_gemv_shape(const Problem& p, const Plan& plan, const GemvLayout& layout, void* workspace,
                              void* stream) {
  const TileGrid grid = tile_grid(p, plan);
  if (grid.blocks() > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  if (p.k / plan.splits > 0x7FFF0000) return "more than 2^31 - 2^16 of k in a part; split the operands";
  LaunchConfig config{dim3(unsigned(grid.blocks())), dim3(Shape::kThreads)};
  config.shared_bytes = Shape::kSharedBytes;
  config.stream = stream;
  return launch(gemv_kernel<Shape>, config, p, grid, layout,
                layout.lines_are_rows ? plan.tile_m : plan.tile_n, plan.tile_k, workspace);
}

template <class scalar_t, int vectors>
const char* launch_gemv_layout(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const GemvLayout g = gemv_layout(p);
  const auto start = [&](auto shape) {
    return launch_gemv_shape<decltype(shape)>(p, plan, g, workspace, stream);
  };
  if (g.wide && g.whole) return start(GemvShape<scalar_t, vectors, true, true>{});
  if (g.wide) return start(GemvShape<scalar_t, vectors, true, false>{});
  if (g.whole) return start(GemvShape<scalar_t, vectors, false, true>{});
  return start(GemvShape<scalar_t, vectors, false, false>{});
}

// Two and three vectors run as four: memory bounds them all.
template <class scalar_t>
const char* launch_gemv_typed(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  return (p.m > kGemvVectors ? p.n : p.m) == 1
             ? launch_gemv_layout<scalar_t, 1>(p, plan, workspace, stream)
             : launch_gemv_layout<scalar_t, kGemvVectors>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
