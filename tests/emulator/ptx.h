// The CPU's side of csrc/ptx.cuh: the same names, the same meaning.
#pragma once
#include "cuda.h"
#include "instructions.h"

namespace fastdl::ptx {

using emulator::TensorMap;

inline uint32_t shared_address(const void* pointer, FASTDL_SITE) {
  return emulator::shared_address(pointer, site);
}

template <int kCount, bool kTranspose = false>
inline void ldmatrix(uint32_t (&r)[kCount], uint32_t address, FASTDL_SITE) {
  emulator::ldmatrix(r, kCount, address, kTranspose, site);
}
template <int kCount, bool kTranspose = false>
inline void stmatrix(uint32_t address, const uint32_t (&r)[kCount], FASTDL_SITE) {
  emulator::stmatrix(address, r, kCount, kTranspose, site);
}

template <class scalar_t>
constexpr emulator::Format kFormat = std::is_same_v<scalar_t, half>    ? emulator::Format::kHalf
                                     : std::is_same_v<scalar_t, float> ? emulator::Format::kTf32
                                                                       : emulator::Format::kBfloat16;

template <class scalar_t>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTDL_SITE) {
  emulator::mma_m16n8(d, a, b, kFormat<scalar_t>, 16, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTDL_SITE) {
  emulator::mma_m16n8(d, a, b, emulator::Format::kTf32, 8, site);
}
inline uint32_t round_to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return x != x ? 0x7FFFFFFFu : (bits + 0x1000u) & 0xFFFFE000u;
}

template <int kBytes = 16>
inline void copy_async(uint32_t to, const void* from, int valid = kBytes, FASTDL_SITE) {
  emulator::copy_async(to, from, kBytes, valid, site);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
inline void copy_async_wait() {
  emulator::copy_async_wait(kPending);
}

inline void mbarrier_init(uint32_t mbarrier, uint32_t arrivals, FASTDL_SITE) {
  emulator::mbarrier_init(mbarrier, arrivals, site);
}
inline void mbarrier_invalidate(uint32_t mbarrier, FASTDL_SITE) {
  emulator::mbarrier_invalidate(mbarrier, site);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint32_t mbarrier, FASTDL_SITE) {
  emulator::mbarrier_arrive(mbarrier, 1, 0, site);
}
inline void mbarrier_arrive_remote(uint32_t mbarrier, FASTDL_SITE) {
  emulator::mbarrier_arrive(mbarrier, 1, 0, site);
}
inline void mbarrier_free_remote(uint32_t mbarrier, FASTDL_SITE) {
  emulator::mbarrier_arrive(mbarrier, 1, 0, site);
}
inline void mbarrier_arrive_expect(uint32_t mbarrier, uint32_t bytes, FASTDL_SITE) {
  emulator::mbarrier_arrive(mbarrier, 1, bytes, site);
}
inline bool mbarrier_test(uint32_t mbarrier, uint32_t parity, FASTDL_SITE) {
  return emulator::mbarrier_test(mbarrier, parity, site);
}
inline void mbarrier_wait(uint32_t mbarrier, uint32_t parity, FASTDL_SITE) {
  emulator::mbarrier_wait(mbarrier, parity, site);
}
inline void mbarrier_wait_cluster(uint32_t mbarrier, uint32_t parity, FASTDL_SITE) {
  emulator::mbarrier_wait(mbarrier, parity, site);
}
inline void fence_proxy_async() { emulator::proxy_fence(); }

template <class... Coordinates>
inline void tma_load_boxes(uint32_t to, const TensorMap* map, uint32_t mbarrier, uint32_t blocks,
                           emulator::Site site, Coordinates... coordinates) {
  const int c[] = {coordinates...};
  emulator::tma_load(to, map, c, int(sizeof...(coordinates)), mbarrier, blocks, site);
}
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x, FASTDL_SITE) {
  tma_load_boxes(to, map, mbarrier, 0, site, x);
}
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x, int y, FASTDL_SITE) {
  tma_load_boxes(to, map, mbarrier, 0, site, x, y);
}
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t mbarrier, int x, int y, int z, FASTDL_SITE) {
  tma_load_boxes(to, map, mbarrier, 0, site, x, y, z);
}
inline void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t mbarrier, uint16_t blocks, int x,
                               int y, FASTDL_SITE) {
  tma_load_boxes(to, map, mbarrier, blocks, site, x, y);
}
inline void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t mbarrier, uint16_t blocks, int x,
                               int y, int z, FASTDL_SITE) {
  tma_load_boxes(to, map, mbarrier, blocks, site, x, y, z);
}
template <class... Coordinates>
inline void tma_store_boxes(const TensorMap* map, uint32_t from, bool add, emulator::Site site,
                            Coordinates... coordinates) {
  const int c[] = {coordinates...};
  emulator::tma_store(map, from, c, int(sizeof...(coordinates)), add, site);
}
inline void tma_store(const TensorMap* map, uint32_t from, int x, FASTDL_SITE) {
  tma_store_boxes(map, from, false, site, x);
}
inline void tma_store(const TensorMap* map, uint32_t from, int x, int y, FASTDL_SITE) {
  tma_store_boxes(map, from, false, site, x, y);
}
inline void tma_store(const TensorMap* map, uint32_t from, int x, int y, int z, FASTDL_SITE) {
  tma_store_boxes(map, from, false, site, x, y, z);
}
inline void tma_add(const TensorMap* map, uint32_t from, int x, int y, FASTDL_SITE) {
  tma_store_boxes(map, from, true, site, x, y);
}
inline void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, FASTDL_SITE) {
  emulator::bulk_load(to, from, bytes, mbarrier, site);
}
inline void bulk_store(void* to, uint32_t from, uint32_t bytes, FASTDL_SITE) {
  emulator::bulk_store(to, from, bytes, site);
}
inline void bulk_commit() { emulator::bulk_commit(); }
template <int kPending>
inline void bulk_wait_read() {
  emulator::bulk_wait(kPending, true);
}
template <int kPending>
inline void bulk_wait() {
  emulator::bulk_wait(kPending, false);
}
inline void prefetch_map(const TensorMap*) {}

inline void barrier_sync(int id, int threads, FASTDL_SITE) { emulator::barrier(id, threads, true, site); }
inline void barrier_arrive(int id, int threads, FASTDL_SITE) { emulator::barrier(id, threads, false, site); }
inline bool elect_one(FASTDL_SITE) {  // the PTX manual leaves the choice open; hardware takes the lowest lane
  return emulator::vote(~0u, emulator::current->lane, emulator::Vote::kMin, site) == emulator::current->lane;
}
template <int kCount>
inline void register_increase() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}
template <int kCount>
inline void register_decrease() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}

inline unsigned cluster_rank() { return emulator::cluster_rank(); }
inline unsigned cluster_size() { return emulator::cluster_size(); }
inline void cluster_arrive(FASTDL_SITE) { emulator::cluster_arrive(site); }
inline void cluster_wait(FASTDL_SITE) { emulator::cluster_wait(site); }
inline void cluster_sync(FASTDL_SITE) {
  emulator::cluster_arrive(site);
  emulator::cluster_wait(site);
}
inline uint32_t map_address(uint32_t address, unsigned rank, FASTDL_SITE) {
  return emulator::map_address(address, rank, site);
}
template <class T>
inline T* map_shared(T* pointer, unsigned rank, FASTDL_SITE) {
  return static_cast<T*>(const_cast<void*>(emulator::map_shared(pointer, rank, site)));
}
inline void load_cluster(float (&value)[4], uint32_t address, FASTDL_SITE) {
  emulator::load_cluster(value, address, site);
}

inline void wgmma_fence(FASTDL_SITE) { emulator::wgmma_fence(site); }
inline void wgmma_commit(FASTDL_SITE) { emulator::wgmma_commit(site); }
template <int kPending>
inline void wgmma_wait(FASTDL_SITE) {
  emulator::wgmma_wait(kPending, site);
}
template <int kCount>
inline void keep_registers(float (&)[kCount]) {}

enum class Major { kK = 0, kMN = 1 };

template <int kN, class scalar_t, Major kAMajor = Major::kK, Major kBMajor = Major::kK>
inline void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true, FASTDL_SITE) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  static_assert(sizeof(scalar_t) == 2 || (kAMajor == Major::kK && kBMajor == Major::kK));
  emulator::wgmma(d, {kN, kFormat<scalar_t>, kAMajor == Major::kMN, kBMajor == Major::kMN, false}, nullptr, a,
                  b, accumulate, site);
}
template <int kN, class scalar_t, Major kBMajor = Major::kK>
inline void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                  FASTDL_SITE) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  emulator::wgmma(d, {kN, kFormat<scalar_t>, false, kBMajor == Major::kMN, true}, a, 0, b, accumulate, site);
}

}  // namespace fastdl::ptx
