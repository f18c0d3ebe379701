// What kernels of wgmma share: operands in shared memory, the ring of stages that TMA fills, the walk over
// tiles.
#pragma once
#include "gemm/schedule.h"
#include "gemm/wgmma_shape.h"
#include "ptx.cuh"

namespace fastdl::gemm {

// An operand's step in shared memory: kLines (a's rows, b's columns) x 64. Where k is adjacent, lines of 128
// bytes, one box; otherwise a box for each 64 lines, of 64 rows along k. All swizzled.
template <int lines, bool deep>
struct WgmmaOperand {
  static constexpr int kLines = lines, kBytes = lines * kWgmmaDepth * 2, kBox = 64 * kWgmmaDepth * 2;
  static constexpr ptx::Major kMajor = deep ? ptx::Major::kK : ptx::Major::kMN;

  FASTDL_DEVICE static void fetch(uint32_t to, const ptx::TensorMap* map, uint32_t mbarrier, int line, int k,
                                  int batch) {
    if constexpr (deep) {
      ptx::tma_load(to, map, mbarrier, k, line, batch);
    } else {
      FASTDL_UNROLL
      for (int i = 0; i < lines / 64; ++i) {
        ptx::tma_load(to + uint32_t(i * kBox), map, mbarrier, line + 64 * i, k, batch);
      }
    }
  }
  // Of the lines from `line` on, a multiple of 64, and 16 steps of k.
  FASTDL_DEVICE static uint64_t descriptor(uint32_t tile, int line, int k) {
    const uint32_t at = tile + uint32_t(line / 64 * kBox) + uint32_t(deep ? k * 2 : k * 128);
    return ptx::matrix_descriptor<ptx::Swizzle::k128>(at, deep ? 0 : kBox, 1024);
  }
};

// Where the ring stands; both sides count alike.
template <int kStages>
struct RingPlace {
  uint32_t stage = 0, parity = 0;
  FASTDL_DEVICE void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// f(work) for every tile of this block.
template <class F>
FASTDL_DEVICE void for_tiles(const TileGrid& grid, int64_t k, F f) {
  for (int64_t block = blockIdx.x; block < grid.blocks(); block += gridDim.x) {
    f(tile_work(grid, block, k, kWgmmaDepth));
  }
}

}  // namespace fastdl::gemm
