// The instances of wgmma_kernel for one dtype; each api_wgmma*.cu compiles those of one.
#pragma once
#include <vector>
#include "gemm/api.h"
#include "gemm/wgmma.cuh"

namespace fastdl::gemm {

const char* launch_wgmma_bfloat16(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_wgmma_half(const Problem& problem, const Plan& plan, void* workspace, void* stream);
const char* launch_wgmma_tf32(const Problem& problem, const Plan& plan, void* workspace, void* stream);

// A tensor map is a function of these and of the element's type; a thread's last ones of a type are kept.
struct MapKey {
  const void* data;
  uint64_t size[3], stride[2], box[3];

  bool operator==(const MapKey&) const = default;
  size_t slot(size_t slots) const {
    uint64_t mixed = reinterpret_cast<uintptr_t>(data) >> 4;
    for (uint64_t x : {size[0], size[1], size[2], stride[0], stride[1], box[0], box[1]}) {
      mixed = (mixed ^ x) * 0x9E3779B97F4A7C15u;
    }
    return size_t(mixed >> 40) % slots;
  }
};

// lines x k of an operand whose `line` stride leads from a's row, or b's column, to the next; of the output,
// its rows x columns.
template <class scalar_t>
const char* map_operand(ptx::TensorMap* map, const Matrix& x, int64_t lines, int64_t k, int64_t batch,
                        bool deep, int box_lines) {
  if (x.batch == 0) batch = 1;
  struct Known {
    MapKey key;
    ptx::TensorMap map;
  };
  constexpr size_t kSlots = 64;
  thread_local std::vector<Known> table(kSlots);  // a library loaded late has little thread-local memory
  const int64_t outer = deep ? x.row : x.column, next = batch > 1 ? x.batch : outer;
  const MapKey key = {x.data,
                      {uint64_t(deep ? k : lines), uint64_t(deep ? lines : k), uint64_t(batch)},
                      {uint64_t(outer) * sizeof(scalar_t), uint64_t(next) * sizeof(scalar_t)},
                      {kWgmmaBytes / sizeof(scalar_t), uint64_t(deep ? box_lines : kWgmmaDepth), 1}};
  Known& known = table[key.slot(kSlots)];
  if (!(known.key == key)) {
    const uint32_t box[] = {uint32_t(key.box[0]), uint32_t(key.box[1]), 1};
    known.key = {};
    using Stored = std::conditional_t<std::is_same_v<scalar_t, float>, ptx::RoundedToTf32, scalar_t>;
    const char* error = ptx::make_tensor_map(&known.map, static_cast<const Stored*>(x.data), 3, key.size,
                                             key.stride, box, ptx::Swizzle::k128);
    if (error) return error;
    known.key = key;
  }
  *map = known.map;
  return nullptr;
}

template <class Shape>
const char* launch_wgmma_shape(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  using scalar_t = typename Shape::scalar_t;
  constexpr bool kADeep = Shape::A::kMajor == ptx::Major::kK, kBDeep = Shape::B::kMajor == ptx::Major::kK;
  constexpr bool kSwapped = Shape::kTurns == kTokens;
  const TileGrid grid = tile_grid(p, plan);
  const Matrix rows = p.a, columns = p.b.transposed();
  ptx::TensorMap a, b;
  const char* error = map_operand<scalar_t>(&a, kSwapped ? columns : rows, kSwapped ? p.n : p.m, p.k, p.batch,
                                            kADeep, Shape::kTileM);
  if (!error) {
    error = map_operand<scalar_t>(&b, kSwapped ? rows : columns, kSwapped ? p.m : p.n, p.k, p.batch, kBDeep,
                                  Shape::kTileN / plan.cluster);
  }
  if (error) return error;
  ptx::TensorMap output = a;  // any, where it is not used
  if (sizeof(scalar_t) == 2 && !kSwapped && leaves_plain(p, plan.splits)) {
    const Matrix to = {p.output, p.output_row, 1, p.output_batch};
    error = map_operand<scalar_t>(&output, to, p.m, p.n, p.batch, true, 16);
    if (error) return error;
  }
  LaunchConfig config;
  const int64_t most = plan.near ? INT32_MAX : machine().multiprocessors / plan.cluster;
  config.grid = dim3(unsigned(std::min(grid.blocks(), most) * plan.cluster));
  config.block = dim3(Shape::kThreads);
  config.shared_bytes = Shape::kSharedBytes;
  config.stream = stream;
  config.cluster = dim3(unsigned(plan.near ? plan.splits : plan.cluster));
  config.early = true;
  return launch(wgmma_kernel<Shape>, config, p, grid, a, b, output, workspace);
}

template <class scalar_t, bool a_deep, bool b_deep>
const char* launch_wgmma_layout(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const auto with = [&]<int tile_m, int tile_n, WgmmaTurns turns>() {
    return launch_wgmma_shape<WgmmaShape<scalar_t, tile_m, tile_n, turns, a_deep, b_deep>>(p, plan, workspace,
                                                                                           stream);
  };
  if constexpr (a_deep) {
    const auto with_tokens = [&]<int tokens>() {
      return launch_wgmma_shape<WgmmaShape<scalar_t, 128, tokens, kTokens, b_deep, true>>(p, plan, workspace,
                                                                                          stream);
    };
    if (plan.turns == kTokens && plan.tile_m == 16) return with_tokens.template operator()<16>();
    if (plan.turns == kTokens && plan.tile_m == 32) return with_tokens.template operator()<32>();
    if (plan.turns == kTokens) return with_tokens.template operator()<64>();
  }
  if (plan.turns == kAlternate) {
    if (plan.tile_m == 64) return with.template operator()<64, 256, kAlternate>();
    return with.template operator()<128, 128, kAlternate>();
  }
  if (plan.tile_m == 256) return with.template operator()<256, 128, kHalves>();
  if (plan.tile_n == 256) return with.template operator()<128, 256, kHalves>();
  if (plan.tile_n == 192) return with.template operator()<128, 192, kHalves>();
  return with.template operator()<128, 64, kHalves>();
}

template <class scalar_t>
const char* launch_wgmma_typed(const Problem& p, const Plan& plan, void* workspace, void* stream) {
  const bool a_deep = p.a.column == 1, b_deep = p.b.row == 1;
  if (a_deep && b_deep) return launch_wgmma_layout<scalar_t, true, true>(p, plan, workspace, stream);
  if (a_deep) return launch_wgmma_layout<scalar_t, true, false>(p, plan, workspace, stream);
  if (b_deep) return launch_wgmma_layout<scalar_t, false, true>(p, plan, workspace, stream);
  return launch_wgmma_layout<scalar_t, false, false>(p, plan, workspace, stream);
}

}  // namespace fastdl::gemm
