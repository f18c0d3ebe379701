// dropout(activation(input)) + residual and its gradient in one pass over memory. The mask is never stored: a
// thread draws the decisions of its elements, from the seed and their logical index, while its loads are on
// the way.
#pragma once
#include "activation.cuh"
#include "dropout/api.h"
#include "keep_mask.cuh"
#include "vector.cuh"

namespace fastdl::dropout {

constexpr int kThreads = 256;
constexpr int kUnits = 2;     // vectors of each operand that a thread has in flight
constexpr int kMaxDims = 64;  // torch's own limit

template <class scalar_t>
constexpr int kBlockElements = kThreads * kUnits * kVectorSize<scalar_t>;

// What a kernel computes, see api.h: `other` is the residual forward, the activation's input backward.
template <bool kBackward, bool kHasActivation, bool kHasOther>
struct Pass {
  static constexpr bool backward = kBackward, has_activation = kHasActivation, has_other = kHasOther;
};

struct Problem {
  const void *input, *other;
  void* output;
  int64_t numel;
  double scale;
  Activation activation;
  KeepMask mask;
};

// The outputs of kSize elements, where keep(j) says whether element j survives.
template <class Pass, class scalar_t, int kSize, class Keep>
FASTDL_DEVICE Vector<scalar_t, kSize> compute(const Problem& problem, const Vector<scalar_t, kSize>& input,
                                              const Vector<scalar_t, kSize>& other, Keep keep) {
  using acc_t = accumulator_t<scalar_t>;
  auto value = convert_vector<acc_t>(input);
  if constexpr (Pass::has_activation) {
    with_activation(problem.activation, [&](auto activation) {
      FASTDL_UNROLL
      for (int j = 0; j < kSize; ++j) {
        if constexpr (Pass::backward) {
          value[j] = activation.gradient(value[j], convert<acc_t>(other[j]));
        } else {
          value[j] = activation.value(value[j]);
        }
      }
    });
  }
  const acc_t scale = acc_t(problem.scale);
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) value[j] = keep(j) ? value[j] * scale : acc_t(0);  // not 0 * NaN
  if constexpr (Pass::has_other && !Pass::backward) {
    FASTDL_UNROLL
    for (int j = 0; j < kSize; ++j) value[j] += convert<acc_t>(other[j]);
  }
  return convert_vector<scalar_t>(value);
}

// Where an element lies: its offset in each operand, and how many more follow at the inner strides.
struct Place {
  int64_t offset[kOperands], following;
};

// Row-major, without gaps.
struct Linear {
  bool vector[kOperands];  // whether every vector of this operand is aligned and without gaps
  bool all_vectors;

  FASTDL_DEVICE Place find(int64_t index) const { return {{index, index, index}, INT64_MAX}; }
  FASTDL_DEVICE int64_t step(int) const { return 1; }
};

// Any strides.
struct Strided {
  bool vector[kOperands], all_vectors;
  int dims;
  Divisor size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];

  FASTDL_DEVICE Place find(int64_t index) const {
    Place place{};
#pragma unroll 1
    for (int d = dims - 1; d >= 0; --d) {
      const int64_t outer = d > 0 ? size[d].quotient(index) : 0;
      const int64_t position = index - outer * size[d].value;
      if (d == dims - 1) place.following = size[d].value - 1 - position;
      FASTDL_UNROLL
      for (int k = 0; k < kOperands; ++k) place.offset[k] += position * stride[k][d];
      index = outer;
    }
    return place;
  }
  FASTDL_DEVICE int64_t step(int operand) const { return stride[operand][dims - 1]; }
};

// Vectors ----------------------------------------------------------------------------------------------

// A vector of any dtype as it comes from memory: elements are taken apart where they are used, not where they
// arrive, so that loads do not wait for each other.
using Packed = Vector<uint32_t, 4>;

FASTDL_DEVICE Packed load_packed(const void* address) {
  return load<Cache::kStreaming>(static_cast<const Packed*>(address));
}
template <class scalar_t>
FASTDL_DEVICE Vector<scalar_t, kVectorSize<scalar_t>> unpack(const Packed& packed) {
  Vector<scalar_t, kVectorSize<scalar_t>> elements;
  memcpy(&elements, &packed, sizeof packed);
  return elements;
}

// A block whose elements all exist, of operands that all take vectors.
template <class scalar_t, class Pass, class Layout>
FASTDL_DEVICE void dropout_vectors(const Problem& problem, const Layout& layout, const MaskReader& mask,
                                   int64_t first) {
  constexpr int kSize = kVectorSize<scalar_t>, kStride = kThreads * kSize;
  const scalar_t *from = static_cast<const scalar_t*>(problem.input),
                 *beside = static_cast<const scalar_t*>(problem.other);
  Place place[kUnits];
  Packed input[kUnits], other[kUnits] = {};
  FASTDL_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    place[u] = layout.find(first + u * kStride);
    input[u] = load_packed(from + place[u].offset[kInput]);
    if (Pass::has_other) other[u] = load_packed(beside + place[u].offset[kOther]);
  }
  uint32_t bits[kUnits][kSize];
  mask.read(first, kStride, bits);
  FASTDL_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const auto output = compute<Pass>(problem, unpack<scalar_t>(input[u]), unpack<scalar_t>(other[u]),
                                      [&](int j) { return mask.keeps(bits[u][j]); });
    store_vector<Cache::kStreaming>(static_cast<scalar_t*>(problem.output) + place[u].offset[kOutput],
                                    output);
  }
}

// Elements ---------------------------------------------------------------------------------------------

// Calls f(j, offset) for the elements index + j that exist.
template <int kSize, class Layout, class F>
FASTDL_DEVICE void for_each_element(const Layout& layout, Operand operand, const Place& place, int64_t index,
                                    int64_t numel, F f) {
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (index + j >= numel) return;
    f(j, j <= place.following ? place.offset[operand] + j * layout.step(operand)
                              : layout.find(index + j).offset[operand]);
  }
}

// The elements from `index` on; zeros beyond the last.
template <class scalar_t, class Layout>
FASTDL_DEVICE auto read(const void* data, const Layout& layout, Operand operand, const Place& place,
                        int64_t index, int64_t numel) {
  constexpr int kSize = kVectorSize<scalar_t>;
  const scalar_t* from = static_cast<const scalar_t*>(data);
  if (layout.vector[operand] && index + kSize <= numel) {
    return load_vector<kSize, Cache::kStreaming>(from + place.offset[operand]);
  }
  Vector<scalar_t, kSize> result{};
  for_each_element<kSize>(layout, operand, place, index, numel,
                          [&](int j, int64_t offset) { result[j] = load(from + offset); });
  return result;
}

template <class scalar_t, int kSize, class Layout>
FASTDL_DEVICE void write(void* data, const Layout& layout, const Place& place, int64_t index, int64_t numel,
                         const Vector<scalar_t, kSize>& values) {
  scalar_t* to = static_cast<scalar_t*>(data);
  if (layout.vector[kOutput] && index + kSize <= numel) {
    store_vector<Cache::kStreaming>(to + place.offset[kOutput], values);
    return;
  }
  for_each_element<kSize>(layout, kOutput, place, index, numel,
                          [&](int j, int64_t offset) { store(to + offset, values[j]); });
}

// A block at the end, or with an operand that is not aligned or has gaps.
template <class scalar_t, class Pass, class Layout>
FASTDL_DEVICE void dropout_elements(const Problem& problem, const Layout& layout, const MaskReader& mask,
                                    int64_t first) {
  constexpr int kSize = kVectorSize<scalar_t>;
#pragma unroll 1
  for (int u = 0; u < kUnits; ++u) {
    const int64_t index = first + u * kThreads * kSize, numel = problem.numel;
    if (index >= numel) return;
    const Place place = layout.find(index);
    const auto input = read<scalar_t>(problem.input, layout, kInput, place, index, numel);
    Vector<scalar_t, kSize> other{};
    if (Pass::has_other) other = read<scalar_t>(problem.other, layout, kOther, place, index, numel);
    uint32_t bits[1][kSize];
    mask.read(index, 0, bits);
    const auto output = compute<Pass>(problem, input, other, [&](int j) { return mask.keeps(bits[0][j]); });
    write(problem.output, layout, place, index, numel, output);
  }
}

// Kernel -----------------------------------------------------------------------------------------------

// Grid: blocks of kBlockElements, in logical order.
template <class scalar_t, class Pass, class Layout>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Layout layout) {
  const int64_t block = int64_t(blockIdx.x) * kBlockElements<scalar_t>;
  const int64_t first = block + int64_t(threadIdx.x) * kVectorSize<scalar_t>;
  const MaskReader mask(problem.mask);
  if (layout.all_vectors && block + kBlockElements<scalar_t> <= problem.numel) {
    dropout_vectors<scalar_t, Pass>(problem, layout, mask, first);
  } else {
    dropout_elements<scalar_t, Pass>(problem, layout, mask, first);
  }
}

}  // namespace fastdl::dropout
