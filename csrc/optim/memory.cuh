// How the optimizer's kernel reads and writes: any dtype, any alignment, nothing outside a tile.
#pragma once
#include "optim/api.h"
#include "optim/rounding.h"
#include "vector.cuh"

namespace fastdl::optim {

// Elements a thread takes at a time.
template <class T>
constexpr int kWidthOf = std::is_same_v<T, double> ? 1 : 4;

// A tile: elements [begin, begin + count) of a parameter. Indices are relative to begin; a vector's first may
// be negative, its last beyond count: what is outside is not touched.
struct Range {
  int64_t begin;
  int count;
  FASTDL_DEVICE bool has(int i) const { return unsigned(i) < unsigned(count); }
};

// Reads as T, 0 outside the range; one access where the address allows it.
template <class T, int kWidth, class scalar_t>
FASTDL_DEVICE void read_as(const scalar_t* data, int index, Range range, T* out) {
  data += range.begin + index;
  if (is_aligned<kWidth>(data) && range.has(index) && range.has(index + kWidth - 1)) {
    const auto v = load_vector<kWidth>(data);
    FASTDL_UNROLL
    for (int j = 0; j < kWidth; ++j) out[j] = convert<T>(v[j]);
  } else {
    FASTDL_UNROLL
    for (int j = 0; j < kWidth; ++j) out[j] = range.has(index + j) ? convert<T>(load(data + j)) : T(0);
  }
}

template <class T, int kWidth, class scalar_t>
FASTDL_DEVICE void write_as(scalar_t* data, int index, Range range, const T* in) {
  data += range.begin + index;
  Vector<scalar_t, kWidth> v;
  FASTDL_UNROLL
  for (int j = 0; j < kWidth; ++j) v[j] = convert<scalar_t>(in[j]);
  if (is_aligned<kWidth>(data) && range.has(index) && range.has(index + kWidth - 1)) {
    store_vector(data, v);
  } else {
    FASTDL_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      if (range.has(index + j)) store(data + j, v[j]);
    }
  }
}

// T is double where an operand is (DeviceRecord::in_double).
template <class T, int kWidth>
FASTDL_DEVICE void read(const void* data, Dtype dtype, int index, Range range, T* out) {
  if (dtype == kFloat32) return read_as<T, kWidth>(static_cast<const float*>(data), index, range, out);
  if (dtype == kBfloat16) return read_as<T, kWidth>(static_cast<const bfloat16*>(data), index, range, out);
  if (dtype == kFloat16) return read_as<T, kWidth>(static_cast<const half*>(data), index, range, out);
  if constexpr (std::is_same_v<T, double>) {
    read_as<T, kWidth>(static_cast<const double*>(data), index, range, out);
  }
}

template <class T, int kWidth>
FASTDL_DEVICE void write(void* data, Dtype dtype, int index, Range range, const T* in) {
  if (dtype == kFloat32) return write_as<T, kWidth>(static_cast<float*>(data), index, range, in);
  if (dtype == kBfloat16) return write_as<T, kWidth>(static_cast<bfloat16*>(data), index, range, in);
  if (dtype == kFloat16) return write_as<T, kWidth>(static_cast<half*>(data), index, range, in);
  if constexpr (std::is_same_v<T, double>) {
    write_as<T, kWidth>(static_cast<double*>(data), index, range, in);
  }
}

FASTDL_DEVICE double read_one(const void* data, Dtype dtype) {
  double value;
  read<double, 1>(data, dtype, 0, {0, 1}, &value);
  return value;
}

FASTDL_DEVICE bool is_low_precision(Dtype dtype) { return dtype == kFloat16 || dtype == kBfloat16; }

// Random words of elements [index, index + kWidth), of which operands take halves.
template <int kWidth>
FASTDL_DEVICE void draw_words(RoundingKey key, int64_t index, uint32_t stream, uint32_t* words) {
  const uint64_t first = uint64_t(index);
  const Philox4 call = rounding_words(key, first, stream);
  if constexpr (kWidth == 1) {
    words[0] = rounding_word(call, first);
  } else {
    static_assert(kWidth == 4);
    FASTDL_UNROLL
    for (int j = 0; j < 4; ++j) words[j] = call.word[j];
    if (const int shift = int(first % 4)) {  // a parameter that does not begin at a multiple of four elements
      const Philox4 next = rounding_words(key, first + 4, stream);
      FASTDL_UNROLL
      for (int j = 0; j < 4; ++j) {
        const auto word = [&](int k) { return k < 4 ? call.word[k] : next.word[k - 4]; };
        words[j] = shift == 1 ? word(j + 1) : shift == 2 ? word(j + 2) : word(j + 3);
      }
    }
  }
}

// Rounds in place to values that a 16-bit operand holds exactly.
template <class T, int kWidth>
FASTDL_DEVICE void round_stochastically(T* values, Dtype dtype, const uint32_t* words, int slot) {
  const bool to_half = dtype == kFloat16;
  FASTDL_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    const float value = float(values[j]);
    const uint32_t bits = rounding_half(words[j], slot);
    const float rounded = to_half ? round_to_float16(value, bits)
                                  : __uint_as_float(uint32_t(round_to_bfloat16(value, bits)) << 16);
    values[j] = isfinite(value) ? rounded : value;
  }
}

}  // namespace fastdl::optim
