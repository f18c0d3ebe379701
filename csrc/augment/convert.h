// The vectorized loops of the CPU path: contiguous pixels in, normalized values of the output's type out.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <new>
#include <vector>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include "augment/rule.cuh"

// One function, compiled for several generations of x86; the loader picks. Elsewhere the baseline has
// vectors.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTDL_X86_CLONES 1
#define FASTDL_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FASTDL_X86_CLONES 0
#define FASTDL_CLONES
#endif
#define FASTDL_INLINE __attribute__((always_inline)) inline

namespace fastdl::augment {

// Floats of a vector of this processor, where a function asks for it.
#if FASTDL_X86_CLONES
#define FASTDL_WIDE __attribute__((target("arch=x86-64-v4")))
inline int vector_lanes() { return __builtin_cpu_supports("x86-64-v4") ? 16 : 8; }
#else
inline int vector_lanes() { return 8; }
#endif

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kWidest = 16;  // floats of a vector

inline int64_t padded(int64_t n) { return (n + kWidest - 1) / kWidest * kWidest; }

// Memory on which vectors of any length lie within cache lines.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const Aligned&) const { return true; }
};
template <class T>
using Buffer = std::vector<T, Aligned<T>>;

// Rounding to nearest even without branches, so that loops over it vectorize. kNumber: the value is no NaN.
template <bool kNumber>
FASTDL_INLINE void store(float value, float* to) {
  *to = value;
}

template <bool kNumber>
FASTDL_INLINE void store(float value, BFloat16* to) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  to->x = uint16_t(!kNumber && (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

template <bool kNumber>
FASTDL_INLINE void store(float value, Half* to) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits & 0x80000000, size = bits ^ sign;
  const uint32_t normal = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
  // Below 2^-14 adding 0.5 leaves the subnormal's bits, rounded, at the bottom of the sum.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3F000000;
  const uint32_t large = !kNumber && size > 0x7F800000 ? 0x7E00 : 0x7C00;
  const uint32_t result = size >= 0x47800000 ? large : size < 0x38800000 ? subnormal : normal;
  to->x = uint16_t(result | (sign >> 16));
}

template <bool kNumber>
FASTDL_INLINE void store(float value, uint8_t* to) {
  *to = to_byte(value);
}

// kByte: values are 0…255 (uint8 images, or their interpolation).
template <bool kByte, class In, class Out>
FASTDL_INLINE void convert_one(In in, Out* out, const Channel& c) {
  if constexpr (std::is_same_v<In, uint8_t> && std::is_same_v<Out, uint8_t>) {
    *out = in;  // bytes as they are
  } else if constexpr (std::is_same_v<Out, uint8_t>) {
    store<kByte>(kByte ? float(in) : float(in) * 255, out);
  } else {
    store<kByte>(normalize(float(in), c, kByte), out);
  }
}

// `rows` of n pixels of one channel.
template <bool kByte, class In, class Out>
FASTDL_CLONES void convert(const In* __restrict in, int64_t in_row, Out* __restrict out, int64_t out_row,
                           int64_t rows, int64_t n, Channel c) {
  for (; rows > 0; --rows, in += in_row, out += out_row) {
    for (int64_t i = 0; i < n; ++i) convert_one<kByte>(in[i], out + i, c);
  }
}

#if FASTDL_X86_CLONES
// `rows` of n ≥ 32 bytes to the 16-bit values of a table of 256, which fits eight vector registers.
FASTDL_WIDE inline void look_up(const uint8_t* in, int64_t in_row, uint16_t* out, int64_t out_row,
                                int64_t rows, int64_t n, const uint16_t* table) {
  typedef uint8_t Bytes __attribute__((vector_size(32), aligned(1), may_alias));
  typedef uint16_t Words __attribute__((vector_size(64), aligned(2), may_alias));
  Words t[8];
  for (int i = 0; i < 8; ++i) t[i] = *reinterpret_cast<const Words*>(table + 32 * i);
  for (; rows > 0; --rows, in += in_row, out += out_row) {
    for (int64_t begin = 0; begin < n; begin += 32) {  // the last block overlaps the one before
      const int64_t at = std::min(begin, n - 32);
      const Words i = __builtin_convertvector(*reinterpret_cast<const Bytes*>(in + at), Words);
      const Words a = __builtin_shuffle(t[0], t[1], i), b = __builtin_shuffle(t[2], t[3], i);
      const Words c = __builtin_shuffle(t[4], t[5], i), d = __builtin_shuffle(t[6], t[7], i);
      const Words low = (i & 64) != 0 ? b : a, high = (i & 64) != 0 ? d : c;
      *reinterpret_cast<Words*>(out + at) = (i & 128) != 0 ? high : low;
    }
  }
}
#endif

// Interleaved channels: constants of element i are those of i % period; they are repeated to a useful length.
template <bool kByte, class In, class Out>
FASTDL_CLONES void convert(const In* __restrict in, int64_t in_row, Out* __restrict out, int64_t out_row,
                           int64_t rows, int64_t n, const float* __restrict high, const float* __restrict low,
                           const float* __restrict bias, int64_t period) {
  for (; rows > 0; --rows, in += in_row, out += out_row) {
    for (int64_t begin = 0; begin < n; begin += period) {
      const int64_t count = std::min(period, n - begin);
      for (int64_t i = 0; i < count; ++i) {
        convert_one<kByte>(in[begin + i], out + begin + i, Channel{high[i], low[i], bias[i]});
      }
    }
  }
}

// Asks for n elements that are read soon: processors see no pattern in the ends of short rows.
template <class T>
FASTDL_INLINE void prefetch(const T* from, int64_t n) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (int64_t b = 0; b < n * int64_t(sizeof(T)); b += 64) __builtin_prefetch(bytes + b);
}

constexpr int64_t kChunk = 256;

// Three planes, from their last pixel backwards, to planes or to interleaved pixels.
template <class T>
FASTDL_INLINE void write_mirrored(const T* red, const T* green, const T* blue, T* __restrict to, int64_t step,
                                  int64_t channel, int64_t n) {
  if (step == 3) {
    for (int64_t i = 0; i < n; ++i) to[3 * i] = red[-i], to[3 * i + 1] = green[-i], to[3 * i + 2] = blue[-i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = red[-i];
    for (int64_t i = 0; i < n; ++i) to[channel + i] = green[-i];
    for (int64_t i = 0; i < n; ++i) to[2 * channel + i] = blue[-i];
  }
}

// Copies n pixels of `channels` elements between any strides.
template <class T>
FASTDL_CLONES void copy_pixels(const T* __restrict from, int64_t from_step, int64_t from_channel,
                               T* __restrict to, int64_t to_step, int64_t to_channel, int64_t n,
                               int64_t channels) {
  if (channels == 3 && from_channel == 1 && from_step == 3 && to_step == 1) {  // interleaved to planar
    T *red = to, *green = to + to_channel, *blue = to + 2 * to_channel;
    for (int64_t i = 0; i < n; ++i)
      red[i] = from[3 * i], green[i] = from[3 * i + 1], blue[i] = from[3 * i + 2];
  } else if (channels == 3 && to_channel == 1 && to_step == 3 && from_step == 1) {  // planar to interleaved
    const T *red = from, *green = from + from_channel, *blue = from + 2 * from_channel;
    for (int64_t i = 0; i < n; ++i) to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
  } else if (from_channel == 1 && to_channel == 1 && from_step == channels && to_step == channels) {
    std::copy_n(from, n * channels, to);
  } else if (channels == 3 && from_channel == 1 &&
             from_step == -3) {  // flipped: through planes of a few pixels
    T planes[3][kChunk];
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int64_t count = std::min(kChunk, n - begin);
      const T* lowest = from - 3 * (begin + count - 1);
      for (int64_t i = 0; i < count; ++i) {
        planes[0][i] = lowest[3 * i], planes[1][i] = lowest[3 * i + 1], planes[2][i] = lowest[3 * i + 2];
      }
      write_mirrored(planes[0] + count - 1, planes[1] + count - 1, planes[2] + count - 1,
                     to + begin * to_step, to_step, to_channel, count);
    }
  } else if (channels == 3 && from_step == -1 && to_step == 3 && to_channel == 1) {
    write_mirrored(from, from + from_channel, from + 2 * from_channel, to, to_step, to_channel, n);
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const T* source = from + c * from_channel;
      T* target = to + c * to_channel;
      if (from_step == 1 && to_step == 1) {
        std::copy_n(source, n, target);
      } else if (from_step == -1 && to_step == 1) {
        for (int64_t i = 0; i < n; ++i) target[i] = source[-i];
      } else {
        for (int64_t i = 0; i < n; ++i) target[i * to_step] = source[i * from_step];
      }
    }
  }
}

}  // namespace fastdl::augment
