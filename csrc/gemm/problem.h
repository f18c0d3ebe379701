// A matrix product and what is done to its elements: pointers, sizes, strides. Every kernel family takes it.
#pragma once
#include <cstdint>
#include "philox.cuh"

namespace fastdl::gemm {

enum Dtype : uint8_t { kFloat32, kFloat64, kFloat16, kBfloat16 };

// How float32 operands are multiplied: as they are, by fused multiply-adds; rounded to tf32; as three
// bfloat16 terms each (emulated.h) where that is faster, or, to be looked at, wherever it is possible.
enum Precision : uint8_t { kHighest, kHigh, kEmulated, kAlwaysEmulated };

// Strides in elements, any sign, zero and overlaps included.
struct Matrix {
  const void* data;
  int64_t row, column, batch;

  FASTDL_HOST_DEVICE Matrix transposed() const { return {data, column, row, batch}; }
};

// What happens to each sum, in this order; null pointers mean absent. Tensors are of the product's dtype
// unless said otherwise; a matrix is (batch, m, n) with adjacent columns, and `index` is (batch * m + row) *
// n + column.
//
//   value = alpha * sum + bias[column]                    -> preactivation, rounded
//   without saved: value = activation(value), then dropout by index
//   with saved:    dropout by index, then value *= activation'(saved)
//   value += residual                                     -> output, rounded
//
// From the rounded outputs: column_sums, mean and m2, one partial for each block of Plan::tile_m rows.
// Batched products have no partials.
struct Epilogue {
  double alpha = 1;
  int32_t activation = 0;  // activation.cuh; 0: none
  bool aligned = false;  // every vector of 16 bytes of columns lies at a multiple of 16 bytes: align() below
  const void* bias = nullptr;      // (n)
  void* preactivation = nullptr;   // contiguous
  const void* saved = nullptr;     // contiguous: preactivation, or for relu and leaky_relu the output
  const void* residual = nullptr;  // with the two strides below
  int64_t residual_row = 0, residual_batch = 0;
  const int64_t* seed = nullptr;  // one value on the device; null: no dropout
  KeepRule keep{};
  double keep_scale = 1;        // of kept elements
  void* column_sums = nullptr;  // (row blocks, n), accumulator type: float, for float64 double
  void* mean = nullptr;         // (row blocks, n), accumulator type: of the block's rows of this column
  void* m2 = nullptr;           // (row blocks, n): sum of squared deviations from that mean

  // Whether there is more to do than alpha and bias.
  FASTDL_HOST_DEVICE bool is_full() const {
    return activation != 0 || preactivation || saved || residual || seed || column_sums || mean;
  }
};

// output (batch, m, n) = epilogue(a (batch, m, k) b (batch, k, n)).
struct Problem {
  int64_t m, n, k, batch;
  Dtype dtype;
  Precision precision;  // of float32
  Matrix a, b;
  void* output;  // adjacent columns
  int64_t output_row, output_batch;
  void* a_sums;  // (m): the sums of a's rows, grad_bias where this is grad_weight's product; null: absent
  Epilogue epilogue;
};

inline int64_t size_of(Dtype dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Sizes of accumulators and partial results.
inline int64_t accumulator_size(Dtype dtype) { return dtype == kFloat64 ? 8 : 4; }

inline bool is_aligned(const void* data, int64_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(bytes) == 0;
}

// Fills epilogue.aligned: whether kernels may read and write vectors of columns, 8 elements of 16 bits, 4 or
// 2 of more, wherever a column is a multiple of that and all of them are inside.
inline void align(Problem& p) {
  const int64_t vector = 16 / size_of(p.dtype);
  const Epilogue& e = p.epilogue;
  const bool pointers = is_aligned(p.output) && is_aligned(e.bias) && is_aligned(e.preactivation) &&
                        is_aligned(e.saved) && is_aligned(e.residual);
  int64_t strides = p.output_row | (p.batch > 1 ? p.output_batch : 0);
  if (e.residual) strides |= e.residual_row | (p.batch > 1 ? e.residual_batch : 0);
  if (e.preactivation || e.saved) strides |= p.n;
  p.epilogue.aligned = pointers && strides % vector == 0;
}

}  // namespace fastdl::gemm
