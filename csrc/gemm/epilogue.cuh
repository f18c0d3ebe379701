// What a kernel does with its sums before they leave: adjacent columns of one row at a time, so that memory
// is accessed 16 bytes at once and eight columns share one draw of dropout's random bits. See Epilogue in
// problem.h.
#pragma once
#include "activation.cuh"
#include "gemm/problem.h"
#include "vector.cuh"

namespace fastdl::gemm {

template <int kCount, class acc_t>
FASTDL_DEVICE void activate(Vector<acc_t, kCount>& value, int32_t activation) {
  with_activation(Activation(activation), [&]<class Function>(Function) {
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) value[j] = Function::value(value[j]);
  });
}

// grad times the derivative at `saved`: the preactivation, or what has its sign.
template <int kCount, class acc_t>
FASTDL_DEVICE void activate_backward(Vector<acc_t, kCount>& grad, const Vector<acc_t, kCount>& saved,
                                     int32_t activation) {
  with_activation(Activation(activation), [&]<class Function>(Function) {
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) grad[j] = Function::gradient(grad[j], saved[j]);
  });
}

// Bit j: whether element index + j survives dropout; the bits of keep_element, eight (or four) to a call.
template <int kCount>
FASTDL_DEVICE uint32_t keep_bits(const KeepRule& rule, uint64_t seed, uint64_t index) {
  if (rule.none) return 0;
  const int each = rule.wide ? 4 : 8, past = int(index % uint64_t(each));
  uint64_t call = index / uint64_t(each);
  uint32_t bits = 0;
  for (int have = 0; have < past + kCount; have += each, ++call) {
    const Philox4 r = philox(seed, call, rule.wide ? kWideStream : 0);
    uint32_t drawn = 0;
    FASTDL_UNROLL
    for (int j = 0; j < 8; ++j) {
      const uint32_t number = rule.wide ? r.word[j / 2] : r.word[j / 2] >> (16 * (j % 2)) & 0xFFFFu;
      drawn |= uint32_t(number >= rule.threshold) << (rule.wide ? j / 2 : j);
    }
    bits |= drawn << have;
  }
  return bits >> past;
}

// Where kCount adjacent columns lie; `inside` of them, at least one, exist.
struct Columns {
  int64_t batch, row, column;
  int inside;

  FASTDL_DEVICE int64_t index(const Problem& p) const { return (batch * p.m + row) * p.n + column; }
  FASTDL_DEVICE int64_t in_residual(const Problem& p) const {
    return batch * p.epilogue.residual_batch + row * p.epilogue.residual_row + column;
  }
};

// Columns as they lie in memory, 16 bytes at a time where they may be; zero past `inside`.
template <class scalar_t, int kCount>
FASTDL_DEVICE Vector<scalar_t, kCount> load_stored(const scalar_t* from, int inside, bool aligned) {
  constexpr int kEach = kCount < kVectorSize<scalar_t> ? kCount : kVectorSize<scalar_t>;
  Vector<scalar_t, kCount> value;
  FASTDL_UNROLL
  for (int i = 0; i < kCount; i += kEach) {
    Vector<scalar_t, kEach> part;
    if (aligned && inside == kCount) {
      part = load_vector<kEach>(from + i);
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < kEach; ++j) part[j] = i + j < inside ? load(from + i + j) : convert<scalar_t>(0.f);
    }
    FASTDL_UNROLL
    for (int j = 0; j < kEach; ++j) value[i + j] = part[j];
  }
  return value;
}

// The same as accumulators.
template <class scalar_t, int kCount>
FASTDL_DEVICE Vector<accumulator_t<scalar_t>, kCount> load_columns(const scalar_t* from, int inside,
                                                                   bool aligned) {
  return convert_vector<accumulator_t<scalar_t>>(load_stored<scalar_t, kCount>(from, inside, aligned));
}

template <class scalar_t, int kCount>
FASTDL_DEVICE void store_columns(scalar_t* to, const Vector<accumulator_t<scalar_t>, kCount>& value,
                                 int inside, bool aligned) {
  constexpr int kEach = kCount < kVectorSize<scalar_t> ? kCount : kVectorSize<scalar_t>;
  FASTDL_UNROLL
  for (int i = 0; i < kCount; i += kEach) {
    Vector<scalar_t, kEach> part;
    FASTDL_UNROLL
    for (int j = 0; j < kEach; ++j) part[j] = convert<scalar_t>(value[i + j]);
    if (aligned && inside == kCount) {
      store_vector(to + i, part);
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < kEach; ++j) {
        if (i + j < inside) store(to + i + j, part[j]);
      }
    }
  }
}

FASTDL_DEVICE uint64_t load_seed(const Epilogue& e) { return e.seed ? uint64_t(load(e.seed)) : 0; }

// What an epilogue reads beside the sums, loaded where it is needed.
template <class scalar_t, int kCount>
struct OperandsInMemory {
  using Values = Vector<accumulator_t<scalar_t>, kCount>;

  FASTDL_DEVICE static Values load_at(const Problem& p, const Columns& at, const void* data, int64_t offset) {
    return load_columns<scalar_t, kCount>(static_cast<const scalar_t*>(data) + offset, at.inside,
                                          p.epilogue.aligned);
  }
  FASTDL_DEVICE Values bias(const Problem& p, const Columns& at) const {
    return load_at(p, at, p.epilogue.bias, at.column);
  }
  FASTDL_DEVICE Values saved(const Problem& p, const Columns& at) const {
    return load_at(p, at, p.epilogue.saved, at.index(p));
  }
  FASTDL_DEVICE Values residual(const Problem& p, const Columns& at) const {
    return load_at(p, at, p.epilogue.residual, at.in_residual(p));
  }
};

// The same with `saved`, or else the residual, loaded ahead: memory answers while other columns are finished.
template <class scalar_t, int kCount>
struct OperandsAhead : OperandsInMemory<scalar_t, kCount> {
  using Base = OperandsInMemory<scalar_t, kCount>;
  using typename Base::Values;
  uint32_t first[kCount * sizeof(scalar_t) / 4];  // words: elements of 16 bits would take a register each

  FASTDL_DEVICE void load(const Problem& p, const Columns& at) {
    const Epilogue& e = p.epilogue;
    const void* const data = e.saved ? e.saved : e.residual;
    if (!data) return;
    const int64_t offset = e.saved ? at.index(p) : at.in_residual(p);
    const auto stored =
        load_stored<scalar_t, kCount>(static_cast<const scalar_t*>(data) + offset, at.inside, e.aligned);
    memcpy(first, &stored, sizeof first);
  }
  FASTDL_DEVICE Values loaded() const {
    Vector<scalar_t, kCount> stored;
    memcpy(&stored, first, sizeof stored);
    return convert_vector<accumulator_t<scalar_t>>(stored);
  }
  FASTDL_DEVICE Values saved(const Problem&, const Columns&) const { return loaded(); }
  FASTDL_DEVICE Values residual(const Problem& p, const Columns& at) const {
    return p.epilogue.saved ? Base::residual(p, at) : loaded();
  }
};

// Sums in, values before rounding out; writes the preactivation. kFull = false: alpha and bias alone.
template <bool kFull, class scalar_t, int kCount, class Operands>
FASTDL_DEVICE void apply_epilogue(const Problem& p, const Columns& at, uint64_t seed,
                                  Vector<accumulator_t<scalar_t>, kCount>& value, const Operands& operands) {
  using acc_t = accumulator_t<scalar_t>;
  const Epilogue& e = p.epilogue;
  const acc_t alpha = acc_t(e.alpha);
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) value[j] *= alpha;
  if (e.bias) {
    const auto bias = operands.bias(p, at);
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) value[j] += bias[j];
  }
  if constexpr (kFull) {
    const int64_t index = at.index(p);
    if (e.preactivation) {
      store_columns<scalar_t, kCount>(static_cast<scalar_t*>(e.preactivation) + index, value, at.inside,
                                      e.aligned);
    }
    if (!e.saved) activate(value, e.activation);
    if (e.seed) {
      const uint32_t keep = keep_bits<kCount>(e.keep, seed, uint64_t(index));
      const acc_t scale = acc_t(e.keep_scale);
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) value[j] = keep >> j & 1 ? value[j] * scale : acc_t(0);
    }
    if (e.saved) {
      const auto saved = operands.saved(p, at);
      activate_backward(value, saved, e.activation);
    }
    if (e.residual) {
      const auto residual = operands.residual(p, at);
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) value[j] += residual[j];
    }
  }
}

template <bool kFull, class scalar_t, int kCount>
FASTDL_DEVICE void apply_epilogue(const Problem& p, const Columns& at, uint64_t seed,
                                  Vector<accumulator_t<scalar_t>, kCount>& value) {
  apply_epilogue<kFull, scalar_t>(p, at, seed, value, OperandsInMemory<scalar_t, kCount>{});
}

// apply_epilogue, then the output, which `value` holds afterwards as it was rounded.
template <bool kFull, class scalar_t, int kCount, class Operands>
FASTDL_DEVICE void finish(const Problem& p, const Columns& at, uint64_t seed,
                          Vector<accumulator_t<scalar_t>, kCount>& value, const Operands& operands) {
  apply_epilogue<kFull, scalar_t>(p, at, seed, value, operands);
  scalar_t* to =
      static_cast<scalar_t*>(p.output) + at.batch * p.output_batch + at.row * p.output_row + at.column;
  store_columns<scalar_t, kCount>(to, value, at.inside, p.epilogue.aligned);
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) value[j] = convert<accumulator_t<scalar_t>>(convert<scalar_t>(value[j]));
}

template <bool kFull, class scalar_t, int kCount>
FASTDL_DEVICE void finish(const Problem& p, const Columns& at, uint64_t seed,
                          Vector<accumulator_t<scalar_t>, kCount>& value) {
  finish<kFull, scalar_t>(p, at, seed, value, OperandsInMemory<scalar_t, kCount>{});
}

}  // namespace fastdl::gemm
