// Unbiased rounding to 16 bits: up with the probability of the part cut off. Plain C++, shared by CPU and
// CUDA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "philox.cuh"

namespace fastdl::optim {

// 16 random bits of element `index` of parameter `ordinal`: eight elements share a Philox call.
FASTDL_HOST_DEVICE uint32_t rounding_bits(const Philox4& r, uint64_t index) {
  return (r.word[index % 8 / 2] >> (16 * (index % 2))) & 0xFFFFu;
}

// x finite -> the bits of a bfloat16: the lower half of the mantissa decides.
FASTDL_HOST_DEVICE uint16_t round_to_bfloat16(float x, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + random) >> 16);
}

// x finite -> a float that float16 represents exactly (or overflows): a multiple of the spacing around x.
FASTDL_HOST_DEVICE float round_to_float16(float x, uint32_t random) {
  const float magnitude = std::fabs(x);
  const float dither = float(random) * (1.f / 65536);
  uint32_t bits;
  memcpy(&bits, &magnitude, 4);
  const uint32_t exponent =
      bits >> 23;  // float16 is evenly spaced by 2^-24 below 2^-14, by 2^-10 of the power above
  const uint32_t spacing_bits = (exponent < 127 - 14 ? 127 - 24 : exponent - 10) << 23;
  float spacing;
  memcpy(&spacing, &spacing_bits, 4);
  return std::copysign(std::floor(magnitude / spacing + dither) * spacing, x);
}

}  // namespace fastdl::optim
