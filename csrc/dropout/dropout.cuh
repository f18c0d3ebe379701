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
constexpr int kUnits = 4;     // vectors of an operand that a thread has in flight
constexpr int kMaxDims = 64;  // torch's own limit

template <class scalar_t>
constexpr int kBlockElements = kThreads * kUnits * kVectorSize<scalar_t>;

// What becomes of an element; kPlain and kForward differ in that kPlain has no activation.
enum class Pass { kPlain, kForward, kBackward };

struct Problem {
  const void* input;
  const void* other;  // null: no residual
  void* output;
  int64_t numel;
  double scale;
  Activation activation;
  KeepMask mask;
};

// Elements
// ---------------------------------------------------------------------------------------------------

// In place: the outputs of kSize elements from their inputs, others, and whether they are kept (keep(j)).
template <Pass kPass, class acc_t, int kSize, class Keep>
FASTDL_DEVICE void compute(const Problem& problem, Vector<acc_t, kSize>& value,
                           const Vector<acc_t, kSize>& other, Keep keep) {
  if constexpr (kPass != Pass::kPlain) {
    with_activation(problem.activation, [&](auto activation) {
      FASTDL_UNROLL
      for (int j = 0; j < kSize; ++j) {
        value[j] =
            kPass == Pass::kForward ? activation.value(value[j]) : activation.gradient(value[j], other[j]);
      }
    });
  }
  const acc_t scale = acc_t(problem.scale);
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) value[j] = keep(j) ? value[j] * scale : acc_t(0);  // whatever it was
  if (kPass != Pass::kBackward && problem.other) {
    FASTDL_UNROLL
    for (int j = 0; j < kSize; ++j) value[j] += other[j];
  }
}

// Memory
// -----------------------------------------------------------------------------------------------------

// Where an element lies: its offset in each operand, and how many more follow at the inner strides.
struct Place {
  int64_t offset[kOperands], following;
};

// Row-major, without gaps.
struct Linear {
  bool vector[kOperands];  // whether 16 bytes at a time can be accessed at every kVectorSize-th index

  FASTDL_DEVICE Place find(int64_t index) const { return {{index, index, index}, INT64_MAX}; }
  FASTDL_DEVICE int64_t step(int) const { return 1; }
};

// Any strides.
struct Strided {
  bool vector[kOperands];
  int dims;
  Divisor size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];

  FASTDL_DEVICE Place find(int64_t index) const {
    Place place{};
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

// Calls f(j, offset) for the elements index + j, j < count.
template <int kSize, class Layout, class F>
FASTDL_DEVICE void for_each_element(const Layout& layout, int operand, const Place& place, int64_t index,
                                    int64_t count, F f) {
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < count) {
      f(j, j <= place.following ? place.offset[operand] + j * layout.step(operand)
                                : layout.find(index + j).offset[operand]);
    }
  }
}

// The elements from `index` on, of which `count` exist; beyond them, zeros.
template <Operand kOperand, class scalar_t, int kSize, class Layout>
FASTDL_DEVICE Vector<scalar_t, kSize> read(const void* data, const Layout& layout, const Place& place,
                                           int64_t index, int64_t count) {
  const scalar_t* from = static_cast<const scalar_t*>(data);
  if (layout.vector[kOperand] && count >= kSize) {
    return load_vector<kSize, Cache::kStreaming>(from + place.offset[kOperand]);
  }
  Vector<scalar_t, kSize> result{};
  for_each_element<kSize>(layout, kOperand, place, index, count,
                          [&](int j, int64_t offset) { result[j] = load(from + offset); });
  return result;
}

template <class scalar_t, int kSize, class Layout>
FASTDL_DEVICE void write(void* data, const Layout& layout, const Place& place, int64_t index, int64_t count,
                         const Vector<scalar_t, kSize>& values) {
  scalar_t* to = static_cast<scalar_t*>(data);
  if (layout.vector[kOutput] && count >= kSize) {
    store_vector(to + place.offset[kOutput], values);
  } else {
    for_each_element<kSize>(layout, kOutput, place, index, count,
                            [&](int j, int64_t offset) { store(to + offset, values[j]); });
  }
}

// Kernel
// -----------------------------------------------------------------------------------------------------

// Grid: blocks of kBlockElements, in logical order.
template <class scalar_t, Pass kPass, class Layout>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Layout layout) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  const int64_t first = int64_t(blockIdx.x) * kBlockElements<scalar_t> + int64_t(threadIdx.x) * kSize;
  Vector<scalar_t, kSize> input[kUnits], other[kUnits];
  FASTDL_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const int64_t index = first + u * kThreads * kSize, count = problem.numel - index;
    if (count <= 0) break;
    const Place place = layout.find(index);
    input[u] = read<kInput, scalar_t, kSize>(problem.input, layout, place, index, count);
    if (problem.other) other[u] = read<kOther, scalar_t, kSize>(problem.other, layout, place, index, count);
  }
  const MaskReader mask(problem.mask);
  FASTDL_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const int64_t index = first + u * kThreads * kSize, count = problem.numel - index;
    if (count <= 0) return;
    uint32_t bits[kSize];
    mask.read(index, bits);
    auto values = convert_vector<acc_t>(input[u]);
    compute<kPass>(problem, values, convert_vector<acc_t>(other[u]),
                   [&](int j) { return mask.keeps(bits[j]); });
    write(problem.output, layout, layout.find(index), index, count, convert_vector<scalar_t>(values));
  }
}

}  // namespace fastdl::dropout
