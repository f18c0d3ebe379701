// Which value an element gets at initialization: a function of key, global element index and rule alone.
// Plain C++ on IEEE float32 operations that are rounded one by one, so CPU, GPU and the torch formula in
// fastdl/init.py agree bit for bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.cuh"

namespace fastdl {

constexpr uint32_t kInitStream = 0x696E6974;  // "init": no other op draws from it

enum class Distribution : int64_t { kConstant = 0, kUniform = 1, kNormal = 2, kTruncatedNormal = 3 };

// parameter: constant (value), uniform (low, high), normal (mean, std),
// truncated normal (mean, +-std, low, high, cdf(low), cdf(high)).
struct InitRule {
  Distribution distribution;
  double parameter[6];
};

// One rounding per operation: neither nvcc nor g++ may fuse these into one multiply-add.
FASTDL_HOST_DEVICE float times_plus(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  const float product = a * b;
  return product + c;
#endif
}
FASTDL_HOST_DEVICE double times_plus(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(__dmul_rn(a, b), c);
#else
  const double product = a * b;
  return product + c;
#endif
}

// sqrt(|x|); a root that cannot fail vectorizes.
FASTDL_HOST_DEVICE float root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(fabsf(x));
#else
  return __builtin_sqrtf(__builtin_fabsf(x));
#endif
}

// condition ? a : b on bits: compilers turn the plain form into a branch, and the loop stays scalar.
FASTDL_HOST_DEVICE float select(bool condition, float a, float b) {
  uint32_t bits_a, bits_b;
  std::memcpy(&bits_a, &a, 4);
  std::memcpy(&bits_b, &b, 4);
  const uint32_t mask = 0u - uint32_t(condition), bits = (bits_a & mask) | (bits_b & ~mask);
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// log(x) for normal x > 0: exponent and mantissa in [sqrt(1/2), sqrt(2)), minimax polynomial of log(1 + f) /
// f.
FASTDL_HOST_DEVICE float log_polynomial(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  bits -= exponent << 23;
  float mantissa;
  std::memcpy(&mantissa, &bits, 4);
  const float f = mantissa - 1.f;
  float y = 0.087199934f;
  y = times_plus(y, f, -0.14366187f);
  y = times_plus(y, f, 0.14952753f);
  y = times_plus(y, f, -0.16562499f);
  y = times_plus(y, f, 0.199568f);
  y = times_plus(y, f, -0.25002068f);
  y = times_plus(y, f, 0.33334187f);
  y = times_plus(y, f, -0.49999988f);
  y = times_plus(y, f, 1.f);
  return times_plus(float(exponent), 0.6931472f, y * f);
}

// z >= 0 with P(|Z| > z) = t for a standard normal Z and 2^-32 <= t <= 1: z / (1 - t) is smooth in
// w = -log(t (2 - t)) near the centre and in sqrt(w) in the tail (Giles 2010, "Approximating the erfinv
// function"; minimax coefficients of our own, relative error below 1e-6).
FASTDL_HOST_DEVICE float two_sided_quantile(float t) {
  const float w = -log_polynomial(t * (2.f - t));
  const float c = w - 2.5f;
  float centre = 4.0354287e-08f;
  centre = times_plus(centre, c, 4.861035e-07f);
  centre = times_plus(centre, c, -4.990561e-06f);
  centre = times_plus(centre, c, -6.217988e-06f);
  centre = times_plus(centre, c, 0.0003091502f);
  centre = times_plus(centre, c, -0.0017730101f);
  centre = times_plus(centre, c, -0.005908171f);
  centre = times_plus(centre, c, 0.34880266f);
  centre = times_plus(centre, c, 2.1233137f);
  const float s = root(w) - 3.5f;
  float tail = -0.00023958084f;
  tail = times_plus(tail, s, 0.0007984053f);
  tail = times_plus(tail, s, -0.0010966052f);
  tail = times_plus(tail, s, 0.0014118752f);
  tail = times_plus(tail, s, -0.0028498366f);
  tail = times_plus(tail, s, 0.0046693156f);
  tail = times_plus(tail, s, 1.4246262f);
  tail = times_plus(tail, s, 4.7170877f);
  return (1.f - t) * select(w < 5.f, centre, tail);
}

// Uniform on (0, 1): midpoints of 2^23 cells, exact in float32 and symmetric about 1/2.
FASTDL_HOST_DEVICE float unit_uniform(uint32_t word) {
  return (float(int32_t(word >> 9)) + 0.5f) * 1.1920929e-07f;
}

// Standard normal: 31 bits of tail probability and one of sign; |z| <= 6.3.
FASTDL_HOST_DEVICE float standard_normal(uint32_t word) {
  const float z = two_sided_quantile((float(int32_t(word >> 1)) + 0.5f) * 4.656613e-10f);
  return select(word & 1, -z, z);
}

// Standard normal between the quantiles of probability low and high.
FASTDL_HOST_DEVICE float truncated_normal(uint32_t word, float low, float high) {
  const float p = times_plus(high - low, unit_uniform(word), low);
  const float t = 2.f * (p < 0.5f ? p : 1.f - p);
  const float z = two_sided_quantile(t < 2.3283064e-10f ? 2.3283064e-10f : t);
  return select(p < 0.5f, -z, z);
}

// acc_t: double for float64 tensors, else float.
template <Distribution kDistribution, typename acc_t>
FASTDL_HOST_DEVICE acc_t init_value(uint32_t word, const InitRule& rule) {
  const double* p = rule.parameter;
  if constexpr (kDistribution == Distribution::kConstant) {
    return acc_t(p[0]);
  } else if constexpr (kDistribution == Distribution::kNormal) {
    return times_plus(acc_t(p[1]), acc_t(standard_normal(word)), acc_t(p[0]));
  } else {
    constexpr bool kUniform = kDistribution == Distribution::kUniform;
    const acc_t low = acc_t(p[kUniform ? 0 : 2]), high = acc_t(p[kUniform ? 1 : 3]);
    const acc_t x =
        kUniform
            ? times_plus(high - low, acc_t(unit_uniform(word)), low)
            : times_plus(acc_t(p[1]), acc_t(truncated_normal(word, float(p[4]), float(p[5]))), acc_t(p[0]));
    return x < low ? low : x > high ? high : x;
  }
}

}  // namespace fastdl
