// Dropout of matrices whose rows lie side by side in memory (channels_last: channels are rows). Neighbours in
// memory are far apart in the mask: a thread takes a vector of rows and walks along the columns, eight
// decisions of each row at a time.
#pragma once
#include "dropout/dropout.cuh"

namespace fastdl::dropout {

constexpr int kOctet = 8;  // columns, and decisions of a Philox call

// (batch, rows, columns); the row stride is 1.
struct Transposed {
  bool vectors;  // whether every vector of rows is aligned and whole
  int64_t rows, columns, batch_stride[kOperands], column_stride[kOperands];
  int64_t threads;        // that have work
  int64_t run;            // columns that a thread walks, a multiple of kOctet
  Divisor bundles, runs;  // vectors of rows, runs of columns of a matrix
};

// The decisions of kSize rows, eight columns at a time. Rows need not begin at a multiple of eight: what a
// Philox call gives beyond the eight columns is kept for the next.
template <int kSize>
class RowMasks {
 public:
  // first: logical index of the first row's element; the next row's is `columns` further.
  FASTDL_DEVICE RowMasks(const MaskReader& mask, int64_t first, int64_t columns)
      : mask_(mask), first_(first), columns_(columns) {
#pragma unroll 1
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

// Where a thread's vectors of rows lie in the operands, from the first column of the matrix on.
template <class scalar_t>
struct Columns {
  const scalar_t *input, *other;
  scalar_t* output;
};

// kCount columns of vectors that all operands take.
template <class scalar_t, class Pass, int kCount>
FASTDL_DEVICE void transposed_vectors(const Problem& problem, const Transposed& t,
                                      const Columns<scalar_t>& at, int64_t column, uint64_t kept) {
  Packed input[kCount], other[kCount] = {};
  FASTDL_UNROLL
  for (int i = 0; i < kCount; ++i) {
    input[i] = load_packed(at.input + (column + i) * t.column_stride[kInput]);
    if (Pass::has_other) other[i] = load_packed(at.other + (column + i) * t.column_stride[kOther]);
  }
  FASTDL_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const auto output = compute<Pass>(problem, unpack<scalar_t>(input[i]), unpack<scalar_t>(other[i]),
                                      [&](int j) { return (kept >> (kOctet * j + i) & 1) != 0; });
    store_vector<Cache::kStreaming>(at.output + (column + i) * t.column_stride[kOutput], output);
  }
}

// One column of `count` rows, up to a vector.
template <class scalar_t, class Pass>
FASTDL_DEVICE void transposed_elements(const Problem& problem, const Transposed& t,
                                       const Columns<scalar_t>& at, int64_t column, int64_t count,
                                       uint64_t kept) {
  constexpr int kSize = kVectorSize<scalar_t>;
  Vector<scalar_t, kSize> input{}, other{};
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < count) input[j] = load(at.input + column * t.column_stride[kInput] + j);
    if (Pass::has_other && j < count) other[j] = load(at.other + column * t.column_stride[kOther] + j);
  }
  const auto output =
      compute<Pass>(problem, input, other, [&](int j) { return (kept >> (kOctet * j) & 1) != 0; });
  FASTDL_UNROLL
  for (int j = 0; j < kSize; ++j) {
    if (j < count) store(at.output + column * t.column_stride[kOutput] + j, output[j]);
  }
}

// Grid: threads by vector of rows, then run of columns, then matrix.
template <class scalar_t, class Pass>
__global__ void __launch_bounds__(kThreads)
    dropout_transposed_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Transposed t) {
  constexpr int kSize = kVectorSize<scalar_t>, kHalf = kOctet / 2;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= t.threads) return;
  const int64_t line = t.bundles.quotient(thread), matrix = t.runs.quotient(line);
  const int64_t row = (thread - line * t.bundles.value) * kSize;
  const int64_t begin = (line - matrix * t.runs.value) * t.run;
  const int64_t end = begin + t.run < t.columns ? begin + t.run : t.columns;
  const Columns<scalar_t> at{
      static_cast<const scalar_t*>(problem.input) + matrix * t.batch_stride[kInput] + row,
      static_cast<const scalar_t*>(problem.other) + matrix * t.batch_stride[kOther] + row,
      static_cast<scalar_t*>(problem.output) + matrix * t.batch_stride[kOutput] + row};
  const MaskReader mask(problem.mask);
  RowMasks<kSize> masks(mask, (matrix * t.rows + row) * t.columns + begin, t.columns);
  for (int64_t octet = begin; octet < end; octet += kOctet) {
    uint64_t kept = masks.next();
    if (t.vectors && octet + kOctet <= end) {
#pragma unroll 1
      for (int64_t column = octet; column < octet + kOctet; column += kHalf, kept >>= kHalf) {
        transposed_vectors<scalar_t, Pass, kHalf>(problem, t, at, column, kept);
      }
      continue;
    }
    for (int64_t column = octet; column < octet + kOctet && column < end; ++column, kept >>= 1) {
      transposed_elements<scalar_t, Pass>(problem, t, at, column, t.rows - row, kept);
    }
  }
}

}  // namespace fastdl::dropout
