// Division by a number that the host knows: a multiplication and a shift instead of some hundred
// instructions.
#pragma once
#include "philox.cuh"

namespace fastdl {

// Exact for 0 <= n < 2^63 and 1 <= value (Granlund and Montgomery 1994): magic = ceil(2^(63 + s) / value)
// with s = ceil(log2(value)) exceeds the quotient by less than 2^-63 of it, too little to reach the next
// integer.
struct Divisor {
  int64_t value = 1;
  uint64_t magic = uint64_t(1) << 63;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(divisor) {
    while (shift < 63 && (int64_t(1) << shift) < value) ++shift;
    const unsigned __int128 power = (unsigned __int128)1 << (63 + shift);
    magic = uint64_t((power + uint64_t(value) - 1) / uint64_t(value));
  }

  FASTDL_HOST_DEVICE int64_t quotient(int64_t n) const {
    return int64_t(uint64_t((unsigned __int128)(uint64_t(n) << 1) * magic >> 64) >> shift);
  }
};

}  // namespace fastdl
