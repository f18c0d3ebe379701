// Every line of PTX that kernels use, one wrapper per instruction; under g++ the same names run in
// tests/emulator. 32-bit addresses are addresses of the shared window, from shared_address(). An instruction
// that the compiled architecture lacks traps: dispatch on device_properties().capability.
#pragma once
#include "simt.h"
#if !defined(__CUDACC__)
#include "emulator/ptx.h"
#else
#include <cuda.h>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FASTDL_ASM80(...) asm volatile(__VA_ARGS__)
#else
#define FASTDL_ASM80(...) __trap()
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FASTDL_ASM90(...) asm volatile(__VA_ARGS__)
#else
#define FASTDL_ASM90(...) __trap()
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTDL_ASM90A(...) asm volatile(__VA_ARGS__)
#else
#define FASTDL_ASM90A(...) __trap()
#endif

namespace fastdl::ptx {

using TensorMap = CUtensorMap;  // a kernel takes it as `const __grid_constant__ ptx::TensorMap map`

FASTDL_DEVICE uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// Matrices of 8 x 8 16-bit elements: lane 8 i + r gives the address of row r of matrix i.
template <int kCount, bool kTranspose = false>
FASTDL_DEVICE void ldmatrix(uint32_t (&r)[kCount], uint32_t address) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 1 && !kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2 && !kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (!kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}
template <int kCount, bool kTranspose = false>
FASTDL_DEVICE void stmatrix(uint32_t address, const uint32_t (&r)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 1 && !kTranspose) {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
  } else if constexpr (kCount == 1) {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address),
                 "r"(r[0]) : "memory");
  } else if constexpr (kCount == 2 && !kTranspose) {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]) : "memory");
  } else if constexpr (kCount == 2) {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]) : "memory");
  } else if constexpr (!kTranspose) {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
  } else {
    FASTDL_ASM90("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
  }
}

// D (16 x 8) += A (16 x 16) B (16 x 8) of a warp; scalar_t bfloat16 or half.
template <class scalar_t>
FASTDL_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    FASTDL_ASM80(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
        "r"(b[1]));
  } else {
    static_assert(std::is_same_v<scalar_t, half>);
    FASTDL_ASM80(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
        "r"(b[1]));
  }
}
// D (16 x 8) += A (16 x 8) B (8 x 8) in tf32: float bits, of which the low 13 are ignored.
FASTDL_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FASTDL_ASM80(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};" : "+f"(d[0]),
      "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Rounds to tf32 (nearest, ties away from zero).
FASTDL_DEVICE uint32_t round_to_tf32(float x) {
  uint32_t bits = 0;
  FASTDL_ASM80("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// cp.async of kBytes (4, 8, 16), of which `valid` are read and the rest is zero.
template <int kBytes = 16>
FASTDL_DEVICE void copy_async(uint32_t to, const void* from, int valid = kBytes) {
  if constexpr (kBytes == 16) {
    FASTDL_ASM80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
  } else {
    FASTDL_ASM80("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(valid) : "memory");
  }
}
FASTDL_DEVICE void copy_async_commit() { FASTDL_ASM80("cp.async.commit_group;" :: : "memory"); }
template <int kPending>
FASTDL_DEVICE void copy_async_wait() {
  FASTDL_ASM80("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// mbarrier: 8 bytes of shared memory.
FASTDL_DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t arrivals) {
  FASTDL_ASM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(arrivals) : "memory");
}
FASTDL_DEVICE void mbarrier_invalidate(uint32_t mbarrier) {
  FASTDL_ASM90("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
}
// Makes initialised mbarriers visible to the cluster and to the asynchronous proxy; a barrier has to follow.
FASTDL_DEVICE void mbarrier_init_fence() {
  FASTDL_ASM90("fence.mbarrier_init.release.cluster;" :: : "memory");
}
FASTDL_DEVICE void mbarrier_arrive(uint32_t mbarrier) {
  FASTDL_ASM90("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}
// At the mbarrier of another block of the cluster: an address from map_address().
FASTDL_DEVICE void mbarrier_arrive_remote(uint32_t mbarrier) {
  FASTDL_ASM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}
// The same after reading alone: no release at cluster scope, which waits for all of the thread's memory.
FASTDL_DEVICE void mbarrier_free_remote(uint32_t mbarrier) {
  FASTDL_ASM90("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}
// Arrives, and lets the phase wait for so many bytes of bulk loads.
FASTDL_DEVICE void mbarrier_arrive_expect(uint32_t mbarrier, uint32_t bytes) {
  FASTDL_ASM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier),
               "r"(bytes) : "memory");
}
FASTDL_DEVICE bool mbarrier_test(uint32_t mbarrier, uint32_t parity) {
  uint32_t done = 0;
  FASTDL_ASM90("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(done) : "r"(mbarrier), "r"(parity) : "memory");
  return done != 0;
}
FASTDL_DEVICE void mbarrier_wait(uint32_t mbarrier, uint32_t parity) {
  FASTDL_ASM90(
      "{\n.reg .pred p;\nagain_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra "
      "again_%=;\n}\n" ::"r"(mbarrier),
      "r"(parity) : "memory");
}
// The same for what threads of other blocks of the cluster wrote before they arrived.
FASTDL_DEVICE void mbarrier_wait_cluster(uint32_t mbarrier, uint32_t parity) {
  FASTDL_ASM90(
      "{\n.reg .pred p;\nagain_%=:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again_%=;\n}\n" ::"r"(mbarrier),
      "r"(parity) : "memory");
}
// Orders ordinary accesses to shared memory before those of TMA and wgmma.
FASTDL_DEVICE void fence_proxy_async() { FASTDL_ASM90("fence.proxy.async.shared::cta;" :: : "memory"); }

// TMA: boxes of a tensor map, 1-d to 3-d; the innermost coordinate comes first.
FASTDL_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x) {
  FASTDL_ASM90(
      "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2}], [%3];" ::
          "r"(to),
      "l"(map), "r"(x), "r"(mbarrier) : "memory");
}
FASTDL_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x, int y) {
  FASTDL_ASM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(mbarrier) : "memory");
}
FASTDL_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x, int y, int z) {
  FASTDL_ASM90(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4}], "
      "[%5];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbarrier) : "memory");
}
// The box and the mbarrier's bytes go to the same offsets in every block of the mask.
FASTDL_DEVICE void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t mbarrier, uint16_t blocks,
                                      int x, int y) {
  FASTDL_ASM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2,%3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(mbarrier), "h"(blocks) : "memory");
}
FASTDL_DEVICE void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t mbarrier, uint16_t blocks,
                                      int x, int y, int z) {
  FASTDL_ASM90(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2,%3,%4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbarrier), "h"(blocks) : "memory");
}
FASTDL_DEVICE void tma_store(const TensorMap* map, uint32_t from, int x) {
  FASTDL_ASM90("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(map),
               "r"(from), "r"(x) : "memory");
}
FASTDL_DEVICE void tma_store(const TensorMap* map, uint32_t from, int x, int y) {
  FASTDL_ASM90("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2,%3}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y) : "memory");
}
FASTDL_DEVICE void tma_store(const TensorMap* map, uint32_t from, int x, int y, int z) {
  FASTDL_ASM90("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2,%3,%4}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z) : "memory");
}
// Adds float32 boxes to the tensor, in no fixed order.
FASTDL_DEVICE void tma_add(const TensorMap* map, uint32_t from, int x, int y) {
  FASTDL_ASM90(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2,%3}], [%1];" ::"l"(map),
      "r"(from), "r"(x), "r"(y) : "memory");
}
// Plain ranges: both addresses and the size multiples of 16 bytes.
FASTDL_DEVICE void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier) {
  FASTDL_ASM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(mbarrier) : "memory");
}
FASTDL_DEVICE void bulk_store(void* to, uint32_t from, uint32_t bytes) {
  FASTDL_ASM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes) : "memory");
}
FASTDL_DEVICE void bulk_commit() { FASTDL_ASM90("cp.async.bulk.commit_group;" :: : "memory"); }
// Until at most kPending groups of this thread's stores still read shared memory, or (bulk_wait) write.
template <int kPending>
FASTDL_DEVICE void bulk_wait_read() {
  FASTDL_ASM90("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
FASTDL_DEVICE void bulk_wait() {
  FASTDL_ASM90("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
FASTDL_DEVICE void prefetch_map(const TensorMap* map) {
  FASTDL_ASM90("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Named barriers 1 to 15 (0 is __syncthreads) for `threads` threads, a multiple of 32.
FASTDL_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
FASTDL_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// True in one lane of a converged warp.
FASTDL_DEVICE bool elect_one() {
  uint32_t elected = 0;
  FASTDL_ASM90(
      "{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(elected)::"memory");
  return elected != 0;
}
// Registers of each thread of a warpgroup.
template <int kCount>
FASTDL_DEVICE void register_increase() {
  FASTDL_ASM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
FASTDL_DEVICE void register_decrease() {
  FASTDL_ASM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
// Programmatic dependent launch: wait for the kernels before this one; let the next one start.
FASTDL_DEVICE void grid_dependency_wait() { FASTDL_ASM90("griddepcontrol.wait;" :: : "memory"); }
FASTDL_DEVICE void grid_dependency_launch() {
  FASTDL_ASM90("griddepcontrol.launch_dependents;" :: : "memory");
}

// Clusters: blocks that reach each other's shared memory.
FASTDL_DEVICE unsigned cluster_rank() {
  unsigned rank = 0;
  FASTDL_ASM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
FASTDL_DEVICE unsigned cluster_size() {
  unsigned size = 1;
  FASTDL_ASM90("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
FASTDL_DEVICE void cluster_arrive() { FASTDL_ASM90("barrier.cluster.arrive.release.aligned;" :: : "memory"); }
FASTDL_DEVICE void cluster_wait() { FASTDL_ASM90("barrier.cluster.wait.acquire.aligned;" :: : "memory"); }
FASTDL_DEVICE void cluster_sync() { cluster_arrive(), cluster_wait(); }
// The same variable in another block of the cluster, as a shared address or as a pointer.
FASTDL_DEVICE uint32_t map_address(uint32_t address, unsigned rank) {
  uint32_t mapped = 0;
  FASTDL_ASM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
template <class T>
FASTDL_DEVICE T* map_shared(T* pointer, unsigned rank) {
  uint64_t mapped = 0;
  FASTDL_ASM90("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}
// 16 bytes of a block of the cluster: an address from map_address(), a multiple of 16.
FASTDL_DEVICE void load_cluster(float (&value)[4], uint32_t address) {
  FASTDL_ASM90("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(value[0]), "=f"(value[1]),
               "=f"(value[2]), "=f"(value[3]) : "r"(address) : "memory");
}

// Keeps the compiler from moving accumulators across an asynchronous product.
template <int kCount>
FASTDL_DEVICE void keep_registers(float (&d)[kCount]) {
  FASTDL_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace fastdl::ptx

#include "wgmma.cuh"
#endif

namespace fastdl::ptx {

// Bytes of a row of a swizzled tile: 16-byte chunk c of row r lies at chunk c ^ (r mod 2, 4 or 8).
enum class Swizzle { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// Byte offset in a tile of that swizzle, the tile aligned to 1024 bytes.
template <Swizzle kSwizzle>
FASTDL_DEVICE uint32_t swizzle_offset(uint32_t offset) {
  constexpr uint32_t kMask = kSwizzle == Swizzle::kNone ? 0 : uint32_t(kSwizzle) / 16 - 1;
  return offset ^ ((offset >> 7 & kMask) << 4);
}

// The wgmma descriptor of an operand tile. K-major: `stride` bytes between groups of 8 rows, `leading` unused
// when swizzled. MN-major: `leading` bytes between swizzle rows along MN, `stride` bytes between groups of 8
// along K.
template <Swizzle kSwizzle>
FASTDL_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kMode = kSwizzle == Swizzle::k128  ? 1
                             : kSwizzle == Swizzle::k64 ? 2
                             : kSwizzle == Swizzle::k32 ? 3
                                                        : 0;
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
         kMode << 62;
}

}  // namespace fastdl::ptx

#include "tensor_map.cuh"
