// Dropout of matrices whose rows lie side by side in memory (channels_last: channels are rows). Neighbours in
// memory are far apart in the mask: a thread takes a vector of rows and walks along the columns, eight
// decisions of each row at a time.
#pragma once
#include "dropout/dropout.cuh"

namespace fastdl::dropout {

constexpr int kOctet = 8;

// (batch, rows, columns); the row stride is 1.
struct Transposed {
  bool vector[kOperands],
      all_vectors;  // whether 16 bytes at a time can be accessed at every kVectorSize-th row
  int64_t rows, columns, batch_stride[kOperands], column_stride[kOperands];
  int64_t run;            // columns that a thread walks, a multiple of kOctet
  int64_t threads;        // that have work
  Divisor bundles, runs;  // vectors of rows, runs of columns of a matrix
};

// Up to kSize neighbours in memory, `count` of them present.
template <class scalar_t, int kSize>
FASTDL_DEVICE Vector<scalar_t, kSize> read_rows(const scalar_t* from, bool vector, int64_t count) {
  if (vector && count >= kSize) return load_vector<kSize, Cache::kStreaming>(from);
  Vector<scalar_t, kSize> result{};
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < count) result[j] = load(from + j);
  }
  return result;
}

template <class scalar_t, int kSize>
FASTDL_DEVICE void write_rows(scalar_t* to, bool vector, int64_t count,
                              const Vector<scalar_t, kSize>& values) {
  if (vector && count >= kSize) return store_vector(to, values);
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < count) store(to + j, values[j]);
  }
}

// The decisions of kSize rows, eight columns at a time. Rows need not begin at a multiple of eight: what a
// Philox call gives beyond the eight columns is kept for the next.
template <int kSize>
class RowMasks {
 public:
  // first: logical index of the first row's element; the next row's is `columns` further.
  FASTDL_DEVICE RowMasks(const MaskReader& mask, int64_t first, int64_t columns)
      : mask_(mask), first_(first), columns_(columns) {
    FASTDL_UNROLL
    for (int j = 0; j < kSize; ++j) {
      const int64_t index = first + j * columns;
      const int phase = int(index % kOctet);
      if (phase > 0) ahead_ |= uint64_t(mask.octet(index - phase) >> phase) << (kOctet * j);
    }
  }

  // Bit 8 * row + column of the next eight columns.
  FASTDL_DEVICE uint64_t next() {
    uint64_t kept = 0;
#pragma unroll 1
    for (int j = 0; j < kSize; ++j) {
      const int64_t index = first_ + j * columns_;
      const int known = int(-index & (kOctet - 1));  // of these eight, from the call before
      const uint32_t both = uint32_t(ahead_ & 0xFF) | mask_.octet(index + known) << known;
      kept |= uint64_t(both & 0xFF) << (kOctet * j);
      ahead_ = ahead_ >> kOctet | uint64_t(both >> kOctet) << (kOctet * (kSize - 1));
    }
    first_ += kOctet;
    return kept;
  }

 private:
  const MaskReader& mask_;
  int64_t first_, columns_;
  uint64_t ahead_ = 0;  // a byte a row
};

// Grid: threads by bundle of rows, then run of columns, then matrix.
template <class scalar_t, Pass kPass>
__global__ void __launch_bounds__(kThreads)
    dropout_transposed_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Transposed t) {
  constexpr int kSize = kVectorSize<scalar_t>, kHalf = kOctet / 2;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= t.threads) return;
  const int64_t line = t.bundles.quotient(thread), matrix = t.runs.quotient(line);
  const int64_t row = (thread - line * t.bundles.value) * kSize, rows = t.rows - row;
  const int64_t begin = (line - matrix * t.runs.value) * t.run;
  const int64_t end = begin + t.run < t.columns ? begin + t.run : t.columns;
  const auto offset = [&](int operand, int64_t column) {
    return matrix * t.batch_stride[operand] + column * t.column_stride[operand] + row;
  };
  const scalar_t* from = static_cast<const scalar_t*>(problem.input) + offset(kInput, 0);
  const scalar_t* other = static_cast<const scalar_t*>(problem.other) + offset(kOther, 0);
  scalar_t* to = static_cast<scalar_t*>(problem.output) + offset(kOutput, 0);

  const MaskReader mask(problem.mask);
  RowMasks<kSize> masks(mask, (matrix * t.rows + row) * t.columns + begin, t.columns);
  for (int64_t octet = begin; octet < end; octet += kOctet) {
    uint64_t kept = masks.next();
    for (int64_t column = octet; column < octet + kOctet && column < end; column += kHalf) {
      Vector<scalar_t, kSize> inputs[kHalf], others[kHalf] = {};
      FASTDL_UNROLL
      for (int i = 0; i < kHalf; ++i) {
        if (column + i >= end) break;
        inputs[i] =
            read_rows<scalar_t, kSize>(from + (column + i) * t.column_stride[kInput], t.vector[kInput], rows);
        if (kPass.has_other) {
          others[i] = read_rows<scalar_t, kSize>(other + (column + i) * t.column_stride[kOther],
                                                 t.vector[kOther], rows);
        }
      }
      FASTDL_UNROLL
      for (int i = 0; i < kHalf; ++i) {
        if (column + i >= end) break;
        const auto output = compute<kPass>(problem, inputs[i], others[i],
                                           [&](int j) { return (kept >> (kOctet * j + i) & 1) != 0; });
        write_rows(to + (column + i) * t.column_stride[kOutput], t.vector[kOutput], rows, output);
      }
      kept >>= kHalf;
    }
  }
}

}  // namespace fastdl::dropout
