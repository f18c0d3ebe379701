// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), and the keep decision of
// dropout. Plain C++: CUDA, the CPU execution of kernels and the CPU ops share these lines, so a seed means
// one mask everywhere.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define FASTDL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTDL_HOST_DEVICE inline
#endif

namespace fastdl {

struct Philox4 {
  uint32_t word[4];
};

// Both halves of a product. On the device in 32 bits: of a 64-bit product nvcc makes an addition too many.
FASTDL_HOST_DEVICE constexpr uint32_t multiply_high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return uint32_t(uint64_t(a) * b >> 32);
#endif
}

// The block cipher: a counter of four words under a key of two.
FASTDL_HOST_DEVICE constexpr Philox4 philox_block(Philox4 counter, uint32_t k0, uint32_t k1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Four random words: the seed is the key, and `stream` picks one of 2^32 independent sequences.
FASTDL_HOST_DEVICE constexpr Philox4 philox(uint64_t seed, uint64_t counter, uint32_t stream = 0) {
  return philox_block({{uint32_t(counter), uint32_t(counter >> 32), stream, 0}}, uint32_t(seed),
                      uint32_t(seed >> 32));
}

// The words of `calls` consecutive counters, in order. For CPU loops: inlined into a function compiled for
// the machine's vector unit, with `calls` a multiple of 16, no call is left to scalar code.
#if defined(__GNUC__)
__attribute__((always_inline))
#endif
inline void philox_words(uint64_t seed, uint64_t counter, uint32_t stream, int64_t calls, uint32_t* words) {
  for (int64_t i = 0; i < calls; ++i) {
    const Philox4 r = philox(seed, counter + uint64_t(i), stream);
    for (int w = 0; w < 4; ++w) words[4 * i + w] = r.word[w];
  }
}

// Which elements of a tensor survive dropout with probability p, by logical (row-major) element index.
// 16 random bits an element: counter = index / 8, element j of the eight reads the low or high half of word j
// / 2. Outside 1/64 <= p <= 63/64 an error of 2^-17 in p would show: 32 bits, counter = index / 4, on a
// stream of its own.
struct KeepRule {
  uint32_t threshold;  // keep where bits >= threshold
  bool wide;           // 32 bits an element
  bool none;           // p = 1 keeps nothing: 2^32 does not fit the threshold

  static KeepRule of(double p) {
    const bool wide = p < 1.0 / 64 || p > 63.0 / 64;
    const double scaled = p * (wide ? 4294967296.0 : 65536.0) + 0.5;
    return {scaled >= 4294967295.0 ? 4294967295u : uint32_t(scaled), wide, p >= 1};
  }
  // What a kept element is multiplied with; p = 1 keeps none, and must not make an infinity.
  static double scale(double p) { return p >= 1 ? 0.0 : 1.0 / (1.0 - p); }
};

constexpr uint32_t kWideStream = 1;

FASTDL_HOST_DEVICE bool keep_in_word8(const Philox4& r, int j, uint32_t threshold) {
  return ((r.word[j / 2] >> (16 * (j % 2))) & 0xFFFFu) >= threshold;
}

// The general form, one element at a time; kernels read eight (or four) per philox call.
FASTDL_HOST_DEVICE bool keep_element(uint64_t seed, uint64_t index, const KeepRule& rule) {
  if (rule.none) return false;
  if (rule.wide) return philox(seed, index / 4, kWideStream).word[index % 4] >= rule.threshold;
  return keep_in_word8(philox(seed, index / 8), int(index % 8), rule.threshold);
}

}  // namespace fastdl
