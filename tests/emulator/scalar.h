// 16-bit floating point for g++, rounding as the GPU's conversions do (to nearest, ties to even).
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastdl {
namespace emulator {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

inline uint16_t float_to_half_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000u,
                 magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFF;                     // the GPU's canonical NaN
  if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                                  // below 2^-14: a multiple of 2^-24
    const float scaled = bit_cast<float>(magnitude) + 0.5f;  // the adder's own rounding; ulp of 0.5 is 2^-24
    return uint16_t(sign | (bit_cast<uint32_t>(scaled) - 0x3F000000u));
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13));
}

inline float half_bits_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x0400u) return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = float(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

inline uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return uint16_t((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

inline float bfloat16_bits_to_float(uint16_t bits) { return bit_cast<float>(uint32_t(bits) << 16); }

// Rounds a double to a float so that a second rounding to 16 bits comes out as one (round to odd).
inline float double_to_float_odd(double value) {
  const float nearest = float(value);
  if (double(nearest) == value || nearest != nearest) return nearest;
  uint32_t bits = bit_cast<uint32_t>(nearest);
  const double magnitude = value < 0 ? -value : value;
  if (double(bit_cast<float>(bits & 0x7FFFFFFFu)) > magnitude) --bits;  // towards zero
  return bit_cast<float>(bits | 1);
}

}  // namespace emulator

#define FASTDL_SCALAR16(name, from_float, to_float)                                          \
  struct name {                                                                              \
    uint16_t bits;                                                                           \
    name() = default;                                                                        \
    name(float value) : bits(emulator::from_float(value)) {}                                 \
    name(double value) : bits(emulator::from_float(emulator::double_to_float_odd(value))) {} \
    name(int value) : name(double(value)) {}                                                 \
    operator float() const { return emulator::to_float(bits); }                              \
    name& operator+=(name other) { return *this = name(float(*this) + float(other)); }       \
  };                                                                                         \
  inline name operator+(name a, name b) { return name(float(a) + float(b)); }                \
  inline name operator-(name a, name b) { return name(float(a) - float(b)); }                \
  inline name operator*(name a, name b) { return name(float(a) * float(b)); }                \
  inline name operator/(name a, name b) { return name(float(a) / float(b)); }
FASTDL_SCALAR16(half, float_to_half_bits, half_bits_to_float)
FASTDL_SCALAR16(bfloat16, float_to_bfloat16_bits, bfloat16_bits_to_float)
#undef FASTDL_SCALAR16

}  // namespace fastdl
