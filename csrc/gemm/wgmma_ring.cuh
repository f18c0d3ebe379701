// What kernels of wgmma share: operands in shared memory, the ring of stages that TMA fills, the walk over
// tiles.
#pragma once
#include "gemm/schedule.h"
#include "gemm/wgmma_shape.h"
#include "ptx.cuh"

namespace fastdl::gemm {

// An operand's step in shared memory: kLines (a's rows, b's columns) x 128 bytes. Where k is adjacent, lines
// of those, one box; otherwise, of 16 bits, a box for each 64 lines, of 64 rows along k. All swizzled.
template <int lines, bool deep>
struct WgmmaOperand {
  static constexpr int kLines = lines, kBytes = lines * kWgmmaBytes, kBox = 64 * kWgmmaBytes;
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
  // This block's half of a step that both blocks of a pair need, to both; the map's boxes are of half the
  // lines.
  FASTDL_DEVICE static void fetch_half(uint32_t to, const ptx::TensorMap* map, uint32_t mbarrier, int line,
                                       int k, int batch, int rank) {
    constexpr uint16_t kBoth = 3;
    if constexpr (deep) {
      ptx::tma_load_multicast(to + uint32_t(rank * (kBytes / 2)), map, mbarrier, kBoth, k,
                              line + rank * (lines / 2), batch);
    } else {
      for (int i = rank; i < lines / 64; i += 2) {
        ptx::tma_load_multicast(to + uint32_t(i * kBox), map, mbarrier, kBoth, line + 64 * i, k, batch);
      }
    }
  }
  // Of the lines from `line` on, a multiple of 64, and what one instruction takes of k: 32 of the 128 bytes.
  FASTDL_DEVICE static uint64_t descriptor(uint32_t tile, int line, int part) {
    const uint32_t at = tile + uint32_t(line / 64 * kBox) + uint32_t(deep ? part * 32 : part * 16 * 128);
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
  FASTDL_DEVICE void skip(int steps) {
    const uint32_t to = stage + uint32_t(steps);
    parity ^= to / kStages & 1, stage = to % kStages;
  }
};

// f(work) for every kTeams-th tile of this block from its team-th on, and skip(steps) for those between; the
// blocks of a pair take tiles below each other.
template <int kTeams, int kDepth, class Skip, class F>
FASTDL_DEVICE void for_tiles_in_turns(const TileGrid& grid, int64_t k, int team, Skip skip, F f) {
  const unsigned pairs = grid.cluster == 2, blocks = unsigned(grid.blocks()), stride = gridDim.x >> pairs;
  for (unsigned block = (blockIdx.x >> pairs) + unsigned(team) * stride; block < blocks;
       block += kTeams * stride) {
    if (kTeams > 1 && block >= stride) skip(tile_work(grid, block - stride, k, kDepth).range.steps);
    TileWork work = tile_work(grid, block, k, kDepth);
    if (pairs) work.row = 2 * work.row + int32_t(blockIdx.x % 2);
    f(work);
  }
}

// f(work) for every tile of this block.
template <int kDepth, class F>
FASTDL_DEVICE void for_tiles(const TileGrid& grid, int64_t k, F f) {
  for_tiles_in_turns<1, kDepth>(grid, k, 0, [](int) {}, f);
}

}  // namespace fastdl::gemm
