// C (M, N) = A (M, K) B (N, K)^T in bfloat16: a TMA producer warpgroup, a ring of full and empty mbarriers,
// two warpgroups of wgmma out of 128-byte-swizzled tiles, TMA stores. kCluster blocks share the tile of A by
// multicast.
#include "harness.h"
#include "matrix.h"

namespace fastdl::mistakes {

constexpr int kM = 128, kN = 128, kK = 64, kStages = 3;
constexpr uint32_t kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStageSize = kABytes + kBBytes,
                   kCBytes = kM * kN * 2;
constexpr size_t kSharedBytes = kStages * size_t(kStageSize) + kCBytes + 2 * kStages * 8;

struct Ring {  // shared addresses
  uint32_t base, c, full, empty;
  FASTDL_DEVICE explicit Ring(uint32_t address)
      : base(address), c(base + kStages * kStageSize), full(c + kCBytes), empty(full + kStages * 8) {}
};

template <int kCluster>
FASTDL_DEVICE void produce(const Ring& ring, const ptx::TensorMap* a_map, const ptx::TensorMap* b_map, int m0,
                           int n0, int steps) {
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = uint32_t(step % kStages), parity = uint32_t(step / kStages & 1);
    const uint32_t a = ring.base + stage * kStageSize, b = a + kABytes, full = ring.full + stage * 8;
    if (!mistake(32)) ptx::mbarrier_wait(ring.empty + stage * 8, mistake(31) ? parity : parity ^ 1);
    ptx::mbarrier_arrive_expect(full, mistake(33) ? kStageSize + 128 : mistake(39) ? kABytes : kStageSize);
    if constexpr (kCluster == 1) {
      ptx::tma_load(a, a_map, full, step * kK, m0);
    } else {  // each block fetches its slice for all
      const int slice = int(ptx::cluster_rank()) * (kM / kCluster);
      const uint16_t blocks = uint16_t((1u << (kCluster + mistake(50))) - 1);
      ptx::tma_load_multicast(a + uint32_t(slice) * kK * 2, a_map, full, blocks, step * kK, m0 + slice);
    }
    ptx::tma_load(b + (mistake(51) ? 64 : 0), b_map, full, step * kK, mistake(43) ? n0 + 8 : n0);
  }
  // Peers still arrive at this block's mbarriers: it stays until every stage was freed.
  for (int last = steps - 1; kCluster > 1 && !mistake(44) && last >= 0 && last >= steps - kStages; --last) {
    ptx::mbarrier_wait(ring.empty + uint32_t(last % kStages) * 8, uint32_t(last / kStages & 1));
  }
}

template <int kCluster>
FASTDL_DEVICE void consume(const Ring& ring, float (&d)[kN / 2], int half_tile, int steps) {
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = uint32_t(step % kStages), parity = uint32_t(step / kStages & 1);
    const uint32_t a = ring.base + stage * kStageSize + uint32_t(half_tile) * 64 * kK * 2;
    const uint32_t b = ring.base + stage * kStageSize + kABytes, empty = ring.empty + stage * 8;
    if (!mistake(34)) ptx::mbarrier_wait(ring.full + stage * 8, parity);
    ptx::keep_registers(d);
    if (!mistake(35)) ptx::wgmma_fence();
    for (uint32_t k = 0; k < kK / 16; ++k) {
      const uint32_t offset = k * (mistake(36) ? 16 : 32);
      uint64_t a_tile = ptx::matrix_descriptor<ptx::Swizzle::k128>(a + offset, 0, mistake(37) ? 512 : 1024);
      uint64_t b_tile = ptx::matrix_descriptor<ptx::Swizzle::k128>(b + offset, 0, 1024);
      if (mistake(45)) b_tile = ptx::matrix_descriptor<ptx::Swizzle::k64>(b + offset, 0, 1024);
      if (mistake(52)) a_tile += threadIdx.x / 32 % 4;
      ptx::wgmma<kN, bfloat16>(d, a_tile, b_tile);
    }
    if (!mistake(53)) ptx::wgmma_commit();
    ptx::keep_registers(d);
    const auto free_stage = [&] {
      if (threadIdx.x % 128) return;
      for (unsigned rank = 0; rank < kCluster; ++rank) {
        if constexpr (kCluster == 1) {
          ptx::mbarrier_arrive(empty);
          if (mistake(54)) ptx::mbarrier_arrive(empty);
        } else {
          ptx::mbarrier_free_remote(mistake(55) ? empty : ptx::map_address(empty, rank));
        }
      }
    };
    if (mistake(40)) free_stage();
    if (mistake(41)) {
      ptx::wgmma_wait<1>();
    } else {
      ptx::wgmma_wait<0>();
    }
    if (!mistake(40)) free_stage();
  }
}

template <int kCluster>
__global__ void __launch_bounds__(384, 1)
    gemm_hopper_kernel(const __grid_constant__ ptx::TensorMap a_map,
                       const __grid_constant__ ptx::TensorMap b_map,
                       const __grid_constant__ ptx::TensorMap c_map, int K) {
  FASTDL_DYNAMIC_SHARED(bytes);
  const Ring ring(ptx::shared_address(bytes));
  const int warpgroup = int(threadIdx.x) / 128, m0 = int(blockIdx.y) * kM, n0 = int(blockIdx.x) * kN;
  const int steps = (K + kK - 1) / kK;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(ring.full + i * 8, 1);
      ptx::mbarrier_init(ring.empty + i * 8, uint32_t(mistake(38) ? 2 * kCluster - 1 : 2 * kCluster));
    }
    ptx::mbarrier_init_fence();
  }
  if (kCluster > 1 && !mistake(56)) {
    ptx::cluster_sync();
  } else if (!mistake(30)) {
    __syncthreads();
  }
  if (warpgroup == 0) {
    ptx::register_decrease<40>();
    if (threadIdx.x == 0) produce<kCluster>(ring, &a_map, &b_map, m0, n0, steps);
    return;
  }
  ptx::register_increase<232>();
  float d[kN / 2];
  for (float& v : d) v = 0.0f;
  consume<kCluster>(ring, d, warpgroup - 1, steps);

  // 64 x 128 as two halves of 64 columns: rows of 128 bytes, swizzled.
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
  const uint32_t c_tile = ring.c + uint32_t(warpgroup - 1) * 64 * kN * 2, half_bytes = 64 * 128;
  for (int j = 0; j < kN / 2; j += 2) {
    const int row = warp * 16 + lane / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + lane % 4 * 2;
    uint32_t offset = uint32_t(column / 64) * half_bytes + uint32_t(row * 128 + column % 64 * 2);
    if (!mistake(46)) offset = ptx::swizzle_offset<ptx::Swizzle::k128>(offset);
    store_vector(reinterpret_cast<bfloat16*>(bytes + (c_tile - ring.base) + offset),
                 Vector<bfloat16, 2>{{bfloat16(d[j]), bfloat16(d[j + 1])}});
  }
  if (!mistake(42)) ptx::fence_proxy_async();
  if (!mistake(47)) ptx::barrier_sync(warpgroup + (mistake(57) ? 20 : 0), mistake(58) ? 96 : 128);
  if (threadIdx.x % 128 == 0) {
    for (int half = 0; half < 2; ++half) {
      ptx::tma_store(&c_map, c_tile + uint32_t(half) * half_bytes, n0 + half * 64, m0 + (warpgroup - 1) * 64);
    }
    if (!mistake(59)) ptx::bulk_commit();
    if (!mistake(48)) ptx::bulk_wait_read<0>();
  }
}

static ptx::TensorMap map_of(const Buffer<bfloat16>& x, int rows, int columns, int box_rows,
                             ptx::Swizzle swizzle) {
  const uint64_t size[] = {uint64_t(columns), uint64_t(rows)}, stride[] = {uint64_t(columns) * 2};
  const uint32_t box[] = {64, uint32_t(box_rows)};
  ptx::TensorMap map;
  accepted(ptx::make_tensor_map(&map, x.data, 2, size, stride, box, swizzle));
  return map;
}

template <int kCluster>
static void check_gemm(int M, int N, int K) {
  Matrices m(M, N, K);
  const ptx::Swizzle a_swizzle = mistake(49) ? ptx::Swizzle::kNone : ptx::Swizzle::k128;
  const ptx::TensorMap a = map_of(m.A, M, K, kM / kCluster, a_swizzle),
                       b = map_of(m.B, N, K, kN, ptx::Swizzle::k128);
  const ptx::TensorMap c = map_of(m.C, M, N, 64, ptx::Swizzle::k128);
  LaunchConfig config{dim3(unsigned(N + kN - 1) / kN, unsigned(M + kM - 1) / kM), 384, kSharedBytes};
  config.cluster = kCluster;
  accepted(launch(gemm_hopper_kernel<kCluster>, config, a, b, c, K));
  m.check();
}
FASTDL_CASE(gemm_hopper) { check_gemm<1>(136, 72, 296); }
FASTDL_CASE(gemm_hopper_small) { check_gemm<1>(64, 64, 64); }
FASTDL_CASE(gemm_hopper_cluster) { check_gemm<2>(128, 256, 320); }

}  // namespace fastdl::mistakes
