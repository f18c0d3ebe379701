// Conversions between scalar types and 16-byte accesses to global memory.
#pragma once
#include "simt.h"

namespace fastdl {

// Conversions -------------------------------------------------------------------------------------
// convert<to_t>(x), rounding to nearest; 16-bit types go through float (double to 16 bits: rounded once).
template <class to_t, class from_t>
FASTDL_DEVICE to_t convert(from_t x) {
  if constexpr (std::is_same_v<to_t, from_t>) {
    return x;
#if defined(__CUDACC__)
  } else if constexpr (std::is_same_v<from_t, half>) {
    return to_t(__half2float(x));
  } else if constexpr (std::is_same_v<from_t, bfloat16>) {
    return to_t(__bfloat162float(x));
  } else if constexpr (std::is_same_v<to_t, half>) {
    if constexpr (std::is_same_v<from_t, double>) return __double2half(x);
    return __float2half_rn(float(x));
  } else if constexpr (std::is_same_v<to_t, bfloat16>) {
    if constexpr (std::is_same_v<from_t, double>) return __double2bfloat16(x);
    return __float2bfloat16_rn(float(x));
#else
  } else if constexpr (std::is_same_v<from_t, half> || std::is_same_v<from_t, bfloat16>) {
    return to_t(float(x));
#endif
  } else {
    return to_t(x);
  }
}

// Vectors -----------------------------------------------------------------------------------------
// kCount
// elements that travel together: up to 16 bytes in one access, aligned to their size.
template <class scalar_t, int kCount>
struct alignas(sizeof(scalar_t) * kCount < 16 ? sizeof(scalar_t) * kCount : 16) Vector {
  scalar_t value[kCount];
  FASTDL_DEVICE scalar_t& operator[](int i) { return value[i]; }
  FASTDL_DEVICE const scalar_t& operator[](int i) const { return value[i]; }
};

// Elements of a 16-byte access.
template <class scalar_t>
constexpr int kVectorSize = 16 / int(sizeof(scalar_t));

enum class Cache {
  kDefault,
  kStreaming,  // touched once: first to leave the caches
  kReadOnly,   // loads only: nobody writes it during the kernel
};

#if defined(__CUDACC__)
namespace detail {

template <int kBytes>
struct Word {};
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

}  // namespace detail
#endif

// One access of sizeof(T) bytes (1, 2, 4, 8 or 16) at an address aligned to them. T: scalar_t or Vector.
template <Cache kCache = Cache::kDefault, class T>
#if defined(__CUDACC__)
FASTDL_DEVICE T load(const T* address) {
  using word_t = typename detail::Word<sizeof(T)>::type;
  const word_t* p = reinterpret_cast<const word_t*>(address);
  word_t word;
  if constexpr (kCache == Cache::kStreaming) {
    word = __ldcs(p);
  } else if constexpr (kCache == Cache::kReadOnly) {
    word = __ldg(p);
  } else {
    word = *p;
  }
  T result;
  memcpy(&result, &word, sizeof(T));
  return result;
}
#else
inline T load(const T* address, FASTDL_SITE) {
  emulator::check_aligned(address, sizeof(T), site);
  emulator::count_traffic(address, sizeof(T), false);
  return *address;
}
#endif

template <Cache kCache = Cache::kDefault, class T>
#if defined(__CUDACC__)
FASTDL_DEVICE void store(T* address, const std::type_identity_t<T>& value) {
  using word_t = typename detail::Word<sizeof(T)>::type;
  word_t word;
  memcpy(&word, &value, sizeof(T));
  if constexpr (kCache == Cache::kStreaming) {
    __stcs(reinterpret_cast<word_t*>(address), word);
  } else if constexpr (sizeof(T) >= 8) {  // of a plain assignment nvcc 13.0 makes stores of 4 bytes in places
    __stwb(reinterpret_cast<word_t*>(address), word);
  } else {
    *reinterpret_cast<word_t*>(address) = word;
  }
}
#else
inline void store(T* address, const std::type_identity_t<T>& value, FASTDL_SITE) {
  emulator::check_aligned(address, sizeof(T), site);
  emulator::count_traffic(address, sizeof(T), true);
  *address = value;
}
#endif

// The kCount elements from `address` on, which is aligned to the vector.
template <int kCount, Cache kCache = Cache::kDefault, class scalar_t>
FASTDL_DEVICE Vector<scalar_t, kCount> load_vector(const scalar_t* address) {
  return load<kCache>(reinterpret_cast<const Vector<scalar_t, kCount>*>(address));
}
template <Cache kCache = Cache::kDefault, class scalar_t, int kCount>
FASTDL_DEVICE void store_vector(scalar_t* address, const Vector<scalar_t, kCount>& value) {
  store<kCache>(reinterpret_cast<Vector<scalar_t, kCount>*>(address), value);
}

// Element by element in another type.
template <class to_t, class from_t, int kCount>
FASTDL_DEVICE Vector<to_t, kCount> convert_vector(const Vector<from_t, kCount>& from) {
  Vector<to_t, kCount> to;
  FASTDL_UNROLL
  for (int i = 0; i < kCount; ++i) to[i] = convert<to_t>(from[i]);
  return to;
}

// Unaligned ranges --------------------------------------------------------------------------------
// Splits n
// elements from `address` into single elements [0, head), whole vectors, and a tail [tail, n).
struct Split {
  int64_t head, vectors, tail;
};
template <int kCount, class scalar_t>
__host__ __device__ inline Split split_range(const scalar_t* address, int64_t n) {
  constexpr int64_t kBytes = kCount * int64_t(sizeof(scalar_t)), kAlign = kBytes < 16 ? kBytes : 16;
  const int64_t past = int64_t(reinterpret_cast<uintptr_t>(address) % uintptr_t(kAlign));
  int64_t head = past == 0 ? 0 : (kAlign - past) / int64_t(sizeof(scalar_t));
  if (head > n) head = n;
  const int64_t vectors = (n - head) / kCount;
  return {head, vectors, head + vectors * kCount};
}

// Whether vectors of kCount elements may be read at this address.
template <int kCount, class scalar_t>
__host__ __device__ inline bool is_aligned(const scalar_t* address) {
  constexpr size_t kBytes = kCount * sizeof(scalar_t);
  return reinterpret_cast<uintptr_t>(address) % (kBytes < 16 ? kBytes : 16) == 0;
}

}  // namespace fastdl
