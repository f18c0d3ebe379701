// The instructions behind csrc/ptx.cuh as the CPU executes them; their meaning follows the PTX manual.
#pragma once
#include "core.h"

namespace fastdl::emulator {

enum class Format { kBfloat16, kHalf, kTf32 };

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// matrix.cpp: collectives of a warp
void ldmatrix(uint32_t* registers, int count, uint32_t address, bool transpose, Site site);
void stmatrix(uint32_t address, const uint32_t* registers, int count, bool transpose, Site site);
void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, Format format, int k, Site site);
float to_float(uint32_t bits, Format format);
// sum + a b over k: rounded to nearest after every product, or, as GPUs do, once, toward zero (Settings).
float tensor_core_sum(float sum, const float* a, int a_stride, const float* b, int b_stride, int k);

// copies.cpp
void copy_async(uint32_t to, const void* from, int bytes, int valid, Site site);
void copy_async_commit();
void copy_async_wait(int groups);  // -1: everything, committed or not
void mbarrier_init(uint32_t address, uint32_t count, Site site);
void mbarrier_invalidate(uint32_t address, Site site);
void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t bytes, Site site);
void mbarrier_expect(uint32_t address, uint32_t bytes, Site site);
bool mbarrier_test(uint32_t address, uint32_t parity, Site site);
void mbarrier_wait(uint32_t address, uint32_t parity, Site site);

void load_cluster(float* value, uint32_t address, Site site);

// tma.cpp
const char* encode_tensor_map(TensorMap* map, int element_bytes, const void* base, int rank,
                              const uint64_t* size, const uint64_t* stride_bytes, const uint32_t* box,
                              int swizzle_bytes, bool rounds_to_tf32);
void tma_load(uint32_t to, const TensorMap* map, const int* coordinate, int rank, uint32_t mbarrier,
              uint32_t blocks, Site site);
void tma_store(const TensorMap* map, uint32_t from, const int* coordinate, int rank, bool add, Site site);
void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, Site site);
void bulk_store(void* to, uint32_t from, uint32_t bytes, Site site);
void bulk_commit();
void bulk_wait(int groups, bool read_only);

// wgmma.cpp: collectives of a warpgroup
struct WgmmaShape {
  int n;
  Format format;
  bool a_mn_major, b_mn_major, a_in_registers;
};
void wgmma(float* d, const WgmmaShape& shape, const uint32_t* a_fragment, uint64_t a, uint64_t b,
           bool scale_d, Site site);
void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups, Site site);

}  // namespace fastdl::emulator
