// Vectors as both layouts' kernels carry them.
#pragma once
#include "batch_norm/apply.cuh"

namespace fastdl::batch_norm {

// 16 bytes as they come from memory: elements are taken apart where they are used.
using Packet = Vector<uint32_t, 4>;

// Element i of packets.
template <class scalar_t>
FASTDL_DEVICE accumulator_t<scalar_t> element(const Packet* packets, int i) {
  if constexpr (std::is_same_v<scalar_t, bfloat16>) {  // one instruction instead of two for every other
    const uint32_t pair = packets[i / 8][i / 2 % 4];
    return __uint_as_float(i % 2 ? pair & 0xFFFF0000u : pair << 16);
  } else {
    Vector<scalar_t, kVectorSize<scalar_t>> elements;
    memcpy(&elements, packets + i / kVectorSize<scalar_t>, sizeof elements);
    return convert<accumulator_t<scalar_t>>(elements[i % kVectorSize<scalar_t>]);
  }
}
template <class scalar_t>
using Values = Vector<accumulator_t<scalar_t>, kVectorSize<scalar_t>>;  // what it is computed as
template <class scalar_t>
constexpr uint32_t kWhole = (1u << kVectorSize<scalar_t>)-1;

template <class scalar_t>
FASTDL_DEVICE Values<scalar_t> widen(const Packet& packet) {
  Values<scalar_t> values;
  for_each<kVectorSize<scalar_t>>([&](int i) { values[i] = element<scalar_t>(&packet, i); });
  return values;
}

}  // namespace fastdl::batch_norm
