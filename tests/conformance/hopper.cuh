// stmatrix, mbarrier, TMA, clusters, named barriers: from sm_90 on.
#pragma once
#include "harness.h"

namespace fastdl::conformance {

template <int kCount, bool kTranspose>
__global__ void stmatrix_kernel(const uint32_t* in, half* out) {
  FASTDL_SHARED(tile, half[256]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tile[i] = half(0.0f);
  __syncwarp();
  uint32_t r[kCount];
  for (int i = 0; i < kCount; ++i) r[i] = in[i * 32 + lane];
  ptx::stmatrix<kCount, kTranspose>(ptx::shared_address(&tile[lane * 7 % 32 * 8]), r);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) out[i] = tile[i];
}

__global__ void mbarrier_kernel(unsigned* out) {
  FASTDL_SHARED(mbarrier, uint64_t);
  if (threadIdx.x) return;
  const uint32_t address = ptx::shared_address(&mbarrier);
  unsigned n = 0;
  const auto test = [&] {
    out[n++] = ptx::mbarrier_test(address, 0);
    out[n++] = ptx::mbarrier_test(address, 1);
  };
  ptx::mbarrier_init(address, 2);
  test();
  for (int i = 0; i < 5; ++i) {
    ptx::mbarrier_arrive(address);
    test();
  }
  ptx::mbarrier_invalidate(address);
}

// A box comes in, is copied out, and goes back to another tensor, shifted.
template <int kRank>
__global__ void tma_kernel(const __grid_constant__ ptx::TensorMap in,
                           const __grid_constant__ ptx::TensorMap out, uint4* box, uint32_t bytes, int x,
                           int y, int z) {
  FASTDL_DYNAMIC_SHARED(tile);
  FASTDL_SHARED(mbarrier, uint64_t);
  const uint32_t full = ptx::shared_address(&mbarrier), to = ptx::shared_address(tile);
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&in);
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(full, bytes);
    if constexpr (kRank == 1) ptx::tma_load(to, &in, full, x);
    if constexpr (kRank == 2) ptx::tma_load(to, &in, full, x, y);
    if constexpr (kRank == 3) ptx::tma_load(to, &in, full, x, y, z);
  }
  ptx::mbarrier_wait(full, 0);
  for (uint32_t i = threadIdx.x; i < bytes / 16; i += 32) box[i] = reinterpret_cast<uint4*>(tile)[i];
  __syncthreads();
  if (threadIdx.x) return;
  if constexpr (kRank == 1) ptx::tma_store(&out, to, x + 5);
  if constexpr (kRank == 2) ptx::tma_store(&out, to, x + 5, y + 3);
  if constexpr (kRank == 3) ptx::tma_store(&out, to, x + 5, y + 3, z + 1);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

__global__ void tma_add_kernel(const __grid_constant__ ptx::TensorMap out) {
  FASTDL_DYNAMIC_SHARED(bytes);
  float* tile = reinterpret_cast<float*>(bytes);
  for (int i = int(threadIdx.x); i < 64; i += 32) tile[i] = float(i);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x) return;
  ptx::tma_add(&out, ptx::shared_address(tile), 4, -1);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

__global__ void bulk_kernel(const unsigned char* in, unsigned char* out) {
  FASTDL_DYNAMIC_SHARED(tile);
  FASTDL_SHARED(mbarrier, uint64_t);
  const uint32_t full = ptx::shared_address(&mbarrier), to = ptx::shared_address(tile);
  if (threadIdx.x) return;
  ptx::mbarrier_init(full, 1);
  ptx::mbarrier_init_fence();
  ptx::mbarrier_arrive_expect(full, 48 + 16);
  ptx::bulk_load(to, in + 32, 48, full);
  ptx::bulk_load(to + 48, in, 16, full);
  ptx::mbarrier_wait(full, 0);
  ptx::bulk_store(out, to + 16, 48);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

// Block r loads row r of the box for all; then everyone reads everybody's shared memory.
__global__ void cluster_kernel(const __grid_constant__ ptx::TensorMap in, float* out) {
  FASTDL_DYNAMIC_SHARED(bytes);
  FASTDL_SHARED(mbarrier, uint64_t);
  FASTDL_SHARED(mine, float);
  const unsigned rank = ptx::cluster_rank(), size = ptx::cluster_size();
  const uint32_t full = ptx::shared_address(&mbarrier), to = ptx::shared_address(bytes);
  float* tile = reinterpret_cast<float*>(bytes);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, size);
    ptx::mbarrier_init_fence();
    mine = float(100 * rank);
  }
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(full, size * 128);
    for (unsigned other = 0; other < size; ++other) {
      if (other == rank) continue;
      const uint32_t there = ptx::map_address(full, other);
      other % 2 ? ptx::mbarrier_arrive_remote(there) : ptx::mbarrier_free_remote(there);
    }
    ptx::tma_load_multicast(to + rank * 128, &in, full, uint16_t((1u << size) - 1), 8, int(rank));
  }
  ptx::mbarrier_wait_cluster(full, 0);
  float sum = tile[threadIdx.x] * 1000;
  for (unsigned other = 0; other < size; ++other) sum += *ptx::map_shared(&mine, other);
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum + float(rank);
  ptx::cluster_sync();
}

// Everybody's 16 bytes, added in the order of ranks.
__global__ void gather_kernel(const float* in, float4* out) {
  FASTDL_SHARED(mine, float4[32]);
  mine[threadIdx.x] = reinterpret_cast<const float4*>(in)[blockIdx.x * blockDim.x + threadIdx.x];
  ptx::cluster_sync();
  float sum[4] = {0, 0, 0, 0}, part[4];
  for (unsigned rank = 0; rank < ptx::cluster_size(); ++rank) {
    ptx::load_cluster(part, ptx::map_address(ptx::shared_address(&mine[31 - threadIdx.x]), rank));
    for (int i = 0; i < 4; ++i) sum[i] = sum[i] * 3 + part[i];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = {sum[0], sum[1], sum[2], sum[3]};
  ptx::cluster_sync();
}

__global__ void cluster_reduce_kernel(const float* in, float* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] =
      cluster_reduce(in[blockIdx.x * blockDim.x + threadIdx.x], Sum{}, 0.0f);
}

__global__ void handshake_kernel(unsigned* out) {  // two halves take turns by two named barriers
  FASTDL_SHARED(value, unsigned);
  const bool first = threadIdx.x < 32;
  for (unsigned i = 0; i < 4; ++i) {
    if (first) {
      if (ptx::elect_one()) value = i * i;
      ptx::barrier_arrive(1, 64);
      ptx::barrier_sync(2, 64);
    } else {
      ptx::barrier_sync(1, 64);
      out[i * 32 + threadIdx.x - 32] = value;
      ptx::barrier_arrive(2, 64);
    }
  }
}

template <int kCount, bool kTranspose>
void check_stmatrix() {
  Array<uint32_t> in(kCount * 32);
  in.fill([](size_t i) { return i * 1041 % 65536; });
  Array<half> out(256);
  accepted(launch(stmatrix_kernel<kCount, kTranspose>, {1, 32}, in.device, out.device));
  out.print("stmatrix x" + std::to_string(kCount) + (kTranspose ? " transposed" : ""));
}

// A tensor of bfloat16 (size z, y, x) with padded rows, and a box of it.
struct Tensor {
  uint64_t size[3] = {70, 30, 5}, stride[2] = {144, 144 * 32};
  uint32_t box[3];
  size_t elements() const { return 72 * 32 * 5; }
  ptx::TensorMap map(const bfloat16* base, int rank, ptx::Swizzle swizzle) const {
    ptx::TensorMap m;
    accepted(ptx::make_tensor_map(&m, base, rank, size, stride, box, swizzle));
    return m;
  }
};

template <int kRank>
void check_tma(ptx::Swizzle swizzle, int x, int y, int z) {
  const uint32_t columns = swizzle == ptx::Swizzle::kNone ? 32 : uint32_t(swizzle) / 2;
  const Tensor tensor{.box = {columns, kRank > 1 ? 12u : 1u, kRank > 2 ? 2u : 1u}};
  const uint32_t bytes = columns * 2 * tensor.box[1] * tensor.box[2];
  Array<bfloat16> in(tensor.elements()), out(tensor.elements());
  Array<uint32_t> box(bytes / 4);
  accepted(launch(tma_kernel<kRank>, {1, 32, bytes}, tensor.map(in.device, kRank, swizzle),
                  tensor.map(out.clear().device, kRank, swizzle), reinterpret_cast<uint4*>(box.device), bytes,
                  x, y, z));
  const std::string name = std::to_string(kRank) + "-d swizzle " + std::to_string(int(swizzle)) + " at " +
                           std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z);
  box.print("TMA load " + name);
  out.print("TMA store " + name);
}

// float32 through a map of tf32: ties and their neighbours of both signs, and `last` in front.
void check_tma_rounding(const char* name, float last) {
  Array<float> in(32 * 4), out(32 * 4);
  in.fill([&](size_t i) {
    const float x = (1 + float(i) * 0x1p-12f + float(i % 3) * 0x1p-23f) * (i % 2 ? -1.0f : 1.0f);
    return i == 0 ? last : i < 64 ? x : x * 0x1p-130f;
  });
  const uint64_t size[] = {32, 4}, stride[] = {128};
  const uint32_t box[] = {32, 4};
  ptx::TensorMap from, to;
  accepted(ptx::make_tensor_map(&from, reinterpret_cast<const ptx::RoundedToTf32*>(in.device), 2, size,
                                stride, box, ptx::Swizzle::kNone));
  accepted(ptx::make_tensor_map(&to, out.device, 2, size, stride, box, ptx::Swizzle::kNone));
  Array<uint32_t> loaded(32 * 4);
  accepted(
      launch(tma_kernel<2>, {1, 32, 512}, from, to, reinterpret_cast<uint4*>(loaded.device), 512u, 0, 0, 0));
  loaded.print(name);
}

void hopper() {
  check_stmatrix<1, false>();
  check_stmatrix<2, false>();
  check_stmatrix<4, false>();
  check_stmatrix<1, true>();
  check_stmatrix<2, true>();
  check_stmatrix<4, true>();
  Array<unsigned> parity(12), turns(4 * 32);
  accepted(launch(mbarrier_kernel, {1, 32}, parity.device));
  parity.print("mbarrier parity");
  accepted(launch(handshake_kernel, {1, 64}, turns.device));
  turns.print("named barriers");
  for (const int x : {0, 40, -3}) {
    check_tma<1>(ptx::Swizzle::kNone, x, 0, 0);
    for (const auto swizzle :
         {ptx::Swizzle::kNone, ptx::Swizzle::k32, ptx::Swizzle::k64, ptx::Swizzle::k128}) {
      check_tma<2>(swizzle, x, x / 2, 0);
      check_tma<3>(swizzle, x, x / 2, x / 10);
    }
  }
  check_tma_rounding("TMA load rounds to tf32", 1.0f);
  check_tma_rounding("TMA load rounds the largest to tf32", std::numeric_limits<float>::max());
  check_tma_rounding("TMA load rounds infinity to tf32", std::numeric_limits<float>::infinity());
  check_tma_rounding("TMA load rounds NaN to tf32", std::numeric_limits<float>::quiet_NaN());
  Array<float> sums(32 * 16), rows(32 * 8), answers(4 * 32), reduced(4 * 64);
  const uint64_t size[] = {20, 16}, stride[] = {128};
  const uint32_t box[] = {8, 8};
  ptx::TensorMap map;
  accepted(ptx::make_tensor_map(&map, sums.device, 2, size, stride, box, ptx::Swizzle::kNone));
  accepted(launch(tma_add_kernel, {1, 32, 256}, map));
  sums.print("TMA add");
  Array<unsigned char> in(128), out(64);
  in.fill([](size_t i) { return i; });
  accepted(launch(bulk_kernel, {1, 32, 64}, in.device, out.clear().device));
  out.print("bulk load and store");
  LaunchConfig config{4, 32, 512};
  config.cluster = 4;
  const uint64_t row_size[] = {32, 8}, row_stride[] = {128};
  const uint32_t row_box[] = {32, 1};
  accepted(ptx::make_tensor_map(&map, rows.device, 2, row_size, row_stride, row_box, ptx::Swizzle::kNone));
  accepted(launch(cluster_kernel, config, map, answers.device));
  answers.print("multicast, remote arrivals, remote reads");
  LaunchConfig reduce{4, 64};
  reduce.cluster = 2;
  accepted(launch(cluster_reduce_kernel, reduce, rows.device, reduced.device));
  reduced.print("cluster reduction");
  Array<float> parts(4 * 32 * 4), gathered(4 * 32 * 4);
  LaunchConfig gather{4, 32};
  gather.cluster = 4;
  accepted(launch(gather_kernel, gather, parts.device, reinterpret_cast<float4*>(gathered.device)));
  gathered.print("16 bytes from a cluster's blocks");
}

}  // namespace fastdl::conformance
