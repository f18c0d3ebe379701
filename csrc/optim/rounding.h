// Unbiased rounding to 16 bits: up with the probability of the part cut off. Plain C++, shared by CPU and
// CUDA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "philox.cuh"

namespace fastdl::optim {

// Under one seed no bits come twice: a parameter's streams are its own, and each of its steps is a counter's
// word.
struct RoundingKey {
  uint64_t seed;
  uint64_t step;  // as the parameter counts its steps; its lower half is used
};

// Random bits for element `index` of a parameter's operand `slot` (0: the parameter, 1...: its states). Four
// elements and two operands share a Philox call; each parameter has two streams.
FASTDL_HOST_DEVICE uint32_t rounding_stream(uint32_t ordinal, int slot) { return 2 * ordinal + slot / 2; }
FASTDL_HOST_DEVICE Philox4 rounding_words(RoundingKey key, uint64_t index, uint32_t stream) {
  return philox_block({{uint32_t(index / 4), uint32_t(index / 4 >> 32), stream, uint32_t(key.step)}},
                      uint32_t(key.seed), uint32_t(key.seed >> 32));
}
// An operand's half of its element's word: word index % 4 of the call.
FASTDL_HOST_DEVICE uint32_t rounding_half(uint32_t word, int slot) {
  return word >> (16 * (slot % 2)) & 0xFFFFu;
}
FASTDL_HOST_DEVICE uint32_t rounding_word(const Philox4& words, uint64_t index) {
  const uint32_t low =
      index & 1 ? words.word[1] : words.word[0];  // no dynamic index: words stay in registers
  const uint32_t high = index & 1 ? words.word[3] : words.word[2];
  return index & 2 ? high : low;
}

// x finite -> the bits of a bfloat16: the lower half of the mantissa decides.
FASTDL_HOST_DEVICE uint16_t round_to_bfloat16(float x, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + random) >> 16);
}

FASTDL_HOST_DEVICE float power_of_two(uint32_t biased_exponent) {
  const uint32_t bits = biased_exponent << 23;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// x finite -> a float that float16 represents exactly (or overflows): a multiple of the spacing around x.
FASTDL_HOST_DEVICE float round_to_float16(float x, uint32_t random) {
  const float magnitude = std::fabs(x);
  const float dither = float(random) * (1.f / 65536);
  uint32_t bits;
  memcpy(&bits, &magnitude, 4);
  // float16 is evenly spaced by 2^-24 below 2^-14, by 2^-10 of the power above
  const uint32_t exponent = bits >> 23, spacing = exponent < 127 - 14 ? 127 - 24 : exponent - 10;
  return std::copysign(std::floor(magnitude * power_of_two(254 - spacing) + dither) * power_of_two(spacing),
                       x);
}

}  // namespace fastdl::optim
