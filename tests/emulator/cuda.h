// CUDA's spellings for g++: qualifiers, built-in variables, vector types, intrinsics. Needs no CUDA toolkit.
#pragma once
#include <math.h>
#include <algorithm>
#include <cmath>
#include "core.h"
#include "scalar.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
// g++ -fsanitize=thread does not see what a call returns into memory, so the race checker has no calls.
#if defined(__SANITIZE_THREAD__)
#define __forceinline__ inline __attribute__((always_inline))
#else
#define __forceinline__ inline
#endif
#define __noinline__ __attribute__((noinline))
#define __shared__ _Pragma("GCC error \"use FASTDL_SHARED or FASTDL_DYNAMIC_SHARED\"")

typedef struct CUstream_st* cudaStream_t;

#define threadIdx (::fastdl::emulator::current->thread_index)
#define blockIdx (::fastdl::emulator::current->block_index)
#define blockDim (::fastdl::emulator::current_block_dim)
#define gridDim (::fastdl::emulator::current_grid_dim)
static constexpr int warpSize = 32;

// Vector types, aligned as CUDA aligns them -------------------------------------------------------
#define FASTDL_VECTOR_TYPES(T, name)                                                 \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct name##3 { T x, y, z; };                                                     \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FASTDL_VECTOR_TYPES(signed char, char)
FASTDL_VECTOR_TYPES(unsigned char, uchar)
FASTDL_VECTOR_TYPES(short, short)
FASTDL_VECTOR_TYPES(unsigned short, ushort)
FASTDL_VECTOR_TYPES(int, int)
FASTDL_VECTOR_TYPES(float, float)
FASTDL_VECTOR_TYPES(double, double)
FASTDL_VECTOR_TYPES(long long, longlong)
FASTDL_VECTOR_TYPES(unsigned long long, ulonglong)
#undef FASTDL_VECTOR_TYPES
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Barriers, shuffles, votes -----------------------------------------------------------------------
#define FASTDL_SITE ::fastdl::emulator::Site site = ::fastdl::emulator::Site::here()
inline void __syncthreads(FASTDL_SITE) { fastdl::emulator::barrier(0, 0, true, site); }
inline int __syncthreads_count(int p, FASTDL_SITE) { return fastdl::emulator::barrier_count(p != 0, site); }
inline int __syncthreads_and(int p, FASTDL_SITE) { return !fastdl::emulator::barrier_count(p == 0, site); }
inline int __syncthreads_or(int p, FASTDL_SITE) { return fastdl::emulator::barrier_count(p != 0, site) != 0; }
inline void __syncwarp(unsigned mask = ~0u, FASTDL_SITE) {
  fastdl::emulator::warp_collective(mask, 0, nullptr, nullptr, site);
}
#define FASTDL_SHUFFLE(name, mode, argument_t)                                              \
  template <class T>                                                                        \
  inline T name(unsigned mask, T value, argument_t argument, int width = 32, FASTDL_SITE) { \
    return fastdl::emulator::shuffle_value(mask, value, unsigned(argument), width,          \
                                           fastdl::emulator::Shuffle::mode, site);          \
  }
FASTDL_SHUFFLE(__shfl_sync, kIndex, int)
FASTDL_SHUFFLE(__shfl_up_sync, kUp, unsigned)
FASTDL_SHUFFLE(__shfl_down_sync, kDown, unsigned)
FASTDL_SHUFFLE(__shfl_xor_sync, kXor, int)
#undef FASTDL_SHUFFLE
#define FASTDL_VOTE(result_t, name, value_t, kind, expression)                                     \
  inline result_t name(unsigned mask, value_t value, FASTDL_SITE) {                                \
    const uint64_t in = uint64_t(value);                                                           \
    (void)in;                                                                                      \
    return result_t(fastdl::emulator::vote(mask, expression, fastdl::emulator::Vote::kind, site)); \
  }
FASTDL_VOTE(unsigned, __ballot_sync, int, kBallot, value != 0)
FASTDL_VOTE(int, __any_sync, int, kOr, value != 0)
FASTDL_VOTE(int, __all_sync, int, kAll, value != 0)
FASTDL_VOTE(unsigned, __reduce_add_sync, unsigned, kAdd, in)
FASTDL_VOTE(unsigned, __reduce_max_sync, unsigned, kMax, in)
FASTDL_VOTE(unsigned, __reduce_min_sync, unsigned, kMin, in)
FASTDL_VOTE(unsigned, __reduce_or_sync, unsigned, kOr, in)
FASTDL_VOTE(unsigned, __reduce_and_sync, unsigned, kAnd, in)
FASTDL_VOTE(unsigned, __match_any_sync, unsigned, kMatch, in)
#undef FASTDL_VOTE

// Fences and atomics ------------------------------------------------------------------------------
inline void __threadfence_block() { fastdl::emulator::fence(fastdl::emulator::Scope::kBlock); }
inline void __threadfence() { fastdl::emulator::fence(fastdl::emulator::Scope::kDevice); }
inline void __threadfence_system() { fastdl::emulator::fence(fastdl::emulator::Scope::kSystem); }
inline void __nanosleep(unsigned, FASTDL_SITE) { fastdl::emulator::yield(site); }
[[noreturn]] inline void __trap(FASTDL_SITE) { fastdl::emulator::fail(site, "__trap()"); }

#define FASTDL_ATOMIC(name, expression)                                                            \
  template <class T>                                                                               \
  inline T name(T* address, std::type_identity_t<T> value, FASTDL_SITE) {                          \
    return fastdl::emulator::atomic_update(address, [&](T old) -> T { return expression; }, site); \
  }
FASTDL_ATOMIC(atomicAdd, old + value)
FASTDL_ATOMIC(atomicSub, old - value)
FASTDL_ATOMIC(atomicMax, old > value ? old : value)
FASTDL_ATOMIC(atomicMin, old < value ? old : value)
FASTDL_ATOMIC(atomicExch, ((void)old, value))
FASTDL_ATOMIC(atomicOr, old | value)
FASTDL_ATOMIC(atomicAnd, old& value)
FASTDL_ATOMIC(atomicXor, old ^ value)
FASTDL_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
#undef FASTDL_ATOMIC
template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value, FASTDL_SITE) {
  return fastdl::emulator::atomic_update(
      address, [&](T old) -> T { return old == compare ? value : old; }, site);
}

// Loads, bits, arithmetic -------------------------------------------------------------------------
template <class T>
inline T __ldg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcs(const T* address) {
  return *address;
}
template <class T>
inline void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
inline void __stcs(T* address, T value) {
  *address = value;
}
inline unsigned __float_as_uint(float x) { return fastdl::emulator::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return fastdl::emulator::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return fastdl::emulator::bit_cast<float>(x); }
inline float __int_as_float(int x) { return fastdl::emulator::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return fastdl::emulator::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return fastdl::emulator::bit_cast<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(both >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline float __int2float_rn(int x) { return float(x); }
using std::max;
using std::min;
