// What every batch_norm kernel does with elements and with finished statistics, whatever its layout: a vector
// at a time forward and backward, statistics of a run in registers, and the end of a channel.
#pragma once
#include "activation.cuh"
#include "batch_norm/problem.h"
#include "keep_mask.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace fastdl::batch_norm {

// Channel values -------------------------------------------------------------------------------------------

FASTDL_DEVICE double read_channel(const Channels& values, int64_t c, double missing) {
  if (!values.data) return missing;
  const int64_t at = c * values.stride;
  switch (values.dtype) {
    case Dtype::kFloat32:
      return double(static_cast<const float*>(values.data)[at]);
    case Dtype::kFloat64:
      return static_cast<const double*>(values.data)[at];
    case Dtype::kFloat16:
      return double(convert<float>(static_cast<const half*>(values.data)[at]));
    default:
      return double(convert<float>(static_cast<const bfloat16*>(values.data)[at]));
  }
}

FASTDL_DEVICE void write_channel(const Channels& values, int64_t c, double value) {
  if (!values.data) return;
  const int64_t at = c * values.stride;
  switch (values.dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(values.data)[at] = float(value);
      break;
    case Dtype::kFloat64:
      static_cast<double*>(values.data)[at] = value;
      break;
    case Dtype::kFloat16:
      static_cast<half*>(values.data)[at] = convert<half>(value);
      break;
    default:
      static_cast<bfloat16*>(values.data)[at] = convert<bfloat16>(value);
  }
}

// What normalization needs of a channel, in the type it is computed in. mean = hi + lo keeps what acc_t lacks
// where |mean| >> std; lo goes into the bias. Forward and backward recompute the same bits.
template <class acc_t>
struct Constants {
  acc_t hi, scale, bias;

  FASTDL_DEVICE static Constants of(double mean, double invstd, double weight, double bias) {
    const double scale = invstd * weight;
    return {acc_t(mean), acc_t(scale), acc_t(bias - low_part(mean) * scale)};
  }
  FASTDL_DEVICE static double low_part(double mean) {
    const double lo = mean - double(acc_t(mean));
    return isfinite(lo) ? lo : 0;
  }
  FASTDL_DEVICE acc_t centered(acc_t x) const { return x - hi; }
  // normalized * weight + bias of a centered value
  FASTDL_DEVICE acc_t affine(acc_t centered) const { return centered * scale + bias; }
};

// The end of a channel -------------------------------------------------------------------------------------

FASTDL_DEVICE double batch_invstd(const ForwardArguments& a, double m2) {
  const double count = double(a.size.count());
  return rsqrt((count > 0 ? m2 / count : 1) + a.eps);
}

// The constants of a channel with these statistics.
template <class acc_t>
FASTDL_DEVICE Constants<acc_t> batch_constants(const ForwardArguments& a, double mean, double m2,
                                               double weight, double bias) {
  return Constants<acc_t>::of(mean, batch_invstd(a, m2), weight, bias);
}

// Saves the statistics for the backward and moves the running ones; one thread a channel. The batch counter
// is only read: see advance_counter.
FASTDL_DEVICE void keep_statistics(const ForwardArguments& a, int64_t c, double mean, double m2) {
  const double count = double(a.size.count());
  if (a.running_mean.data && count > 0) {
    const double factor = a.cumulative ? 1 / double(*a.num_batches_tracked + 1) : a.momentum;
    write_channel(a.running_mean, c, (1 - factor) * read_channel(a.running_mean, c, 0) + factor * mean);
    write_channel(a.running_var, c,
                  (1 - factor) * read_channel(a.running_var, c, 1) + factor * (m2 / (count - 1)));
  }
  a.save_mean[c] = mean, a.save_invstd[c] = batch_invstd(a, m2);
}

// Both, where `writes`.
template <class acc_t>
FASTDL_DEVICE Constants<acc_t> finish_forward(const ForwardArguments& a, int64_t c, double mean, double m2,
                                              bool writes = true) {
  if (writes) keep_statistics(a, c, mean, m2);
  return batch_constants<acc_t>(a, mean, m2, read_channel(a.weight, c, 1), read_channel(a.bias, c, 0));
}

// The constants in evaluation, from the running statistics; where `writes`, saves these for the backward.
template <class acc_t>
FASTDL_DEVICE Constants<acc_t> evaluation_constants(const ForwardArguments& a, int64_t c, bool writes) {
  const double mean = read_channel(a.running_mean, c, 0);
  const double invstd = rsqrt(read_channel(a.running_var, c, 1) + a.eps);
  if (writes) a.save_mean[c] = mean, a.save_invstd[c] = invstd;
  return Constants<acc_t>::of(mean, invstd, read_channel(a.weight, c, 1), read_channel(a.bias, c, 0));
}

// The constants of a backward.
template <class acc_t>
FASTDL_DEVICE Constants<acc_t> saved_constants(const BackwardArguments& a, int64_t c) {
  return Constants<acc_t>::of(a.save_mean[c], a.save_invstd[c], read_channel(a.weight, c, 1),
                              read_channel(a.bias, c, 0));
}

// One thread of the grid, in a launch where nobody reads the counter (cumulative: in a launch of its own).
FASTDL_DEVICE void advance_counter(const ForwardArguments& a) {
  if (a.training && a.num_batches_tracked) ++*a.num_batches_tracked;
}

// The sums of a channel's backward: of g, and of g times the centered input.
struct Sums {
  double g, dot;
  FASTDL_DEVICE static Sums none() { return {0, 0}; }
};

// g - mean(g) - normalized * mean(g * normalized) = g + centered * slope + offset.
template <class acc_t>
struct Correction {
  acc_t slope, offset;
};

// Where `writes`, which is one thread a channel, writes the parameters' gradients.
template <class acc_t>
FASTDL_DEVICE Correction<acc_t> finish_backward(const BackwardArguments& a, int64_t c, const Sums& sums,
                                                bool writes = true) {
  const double invstd = a.save_invstd[c], lo = Constants<acc_t>::low_part(a.save_mean[c]);
  const double dot = (sums.dot - lo * sums.g) * invstd, count = double(a.size.count());
  if (writes) write_channel(a.grad_bias, c, sums.g), write_channel(a.grad_weight, c, dot);
  const double slope = -invstd * dot / count;
  return {acc_t(slope), acc_t(-sums.g / count - lo * slope)};
}

// Statistics of a run --------------------------------------------------------------------------------------

// Two parts joined; either may be empty. As MergeMoments, without its division of doubles: the weight of a
// difference need not be more exact than the values.
template <class acc_t>
struct MergeRuns {
  FASTDL_DEVICE Moments<double> operator()(const Moments<double>& a, const Moments<double>& b) const {
    if (a.count == 0) return b;
    if (b.count == 0) return a;
    const double count = a.count + b.count, delta = b.mean - a.mean;
    const double weight = double(acc_t(b.count) * reciprocal(acc_t(count)));
    return {count, a.mean + delta * weight, a.m2 + b.m2 + delta * delta * a.count * weight};
  }
};

// Joins the values x(0) ... x(kCount - 1), in registers, whose bit in `valid` is set. They are shifted by the
// mean so far, at first by one of them: a large mean costs no digits, squares exceed those about the mean by
// a small factor, and a constant is exact. Where squares overflow, again at 2^-70 the size.
template <class acc_t, int kCount, class F>
FASTDL_DEVICE void add_run(Moments<double>& total, F x, uint32_t valid) {
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0);
  constexpr uint32_t kAll = uint32_t((uint64_t(1) << kCount) - 1);
  valid &= kAll;
  if (valid == 0) return;
  acc_t shift = acc_t(total.mean), sum = 0, squares = 0, share = acc_t(1.0 / kCount);
  if (total.count == 0) {
    FASTDL_UNROLL
    for (int i = 0; i < kCount; ++i) shift = valid >> i & 1 ? x(i) : shift;
  }
  double count = kCount, size = 1;
  if (valid == kAll) {
    FASTDL_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const acc_t d = x(i) - shift;
      sum += d, squares += d * d;
    }
  } else {
    count = __popc(valid), share = reciprocal(acc_t(count));
    FASTDL_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const acc_t d = valid >> i & 1 ? x(i) - shift : acc_t(0);
      sum += d, squares += d * d;
    }
  }
  if (!isfinite(squares)) {
    sum = squares = 0, size = 0x1p70;
    FASTDL_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const acc_t d = valid >> i & 1 ? x(i) * acc_t(0x1p-70) - shift * acc_t(0x1p-70) : acc_t(0);
      sum += d, squares += d * d;
    }
  }
  const double mean = double(shift) + double(sum * share) * size;
  const double m2 = double(squares - sum * sum * share) * size * size;
  const Moments<double> run{count, mean, m2 < 0 ? 0 : m2};  // NaN stays
  total = MergeRuns<acc_t>()(total, run);
}

// Vectors --------------------------------------------------------------------------------------------------

// Calls f(j) for the elements of a vector.
template <int kCount, class F>
FASTDL_DEVICE void for_each(F f) {
  FASTDL_UNROLL
  for (int j = 0; j < kCount; ++j) f(j);
}

// The mask's bits at the preactivations v: see mask_bytes.
template <class acc_t, int kCount>
FASTDL_DEVICE uint32_t branch_bits(const Vector<acc_t, kCount>& v, Activation activation) {
  uint32_t bits = 0;
  for_each<kCount>(
      [&](int j) { bits |= uint32_t(activation == Activation::kRelu ? !(v[j] <= 0) : v[j] > 0) << j; });
  return bits;
}

// The gradient through ReLU or LeakyReLU, from the branch's bits.
template <class acc_t, int kCount>
FASTDL_DEVICE void branch_backward(Vector<acc_t, kCount>& g, uint32_t bits, Activation activation) {
  for_each<kCount>([&](int j) {
    const acc_t other = activation == Activation::kRelu ? acc_t(0) : LeakyRelu::gradient(g[j], acc_t(0));
    g[j] = bits >> j & 1 ? g[j] : other;
  });
}

// Which elements stay. `index` is the logical one, a multiple of kCount.
struct Dropout {
  bool on;
  uint64_t seed;
  KeepRule rule;

  FASTDL_DEVICE explicit Dropout(const Epilogue& e)
      : on(e.seed != nullptr), seed(e.seed ? uint64_t(*e.seed) : 0), rule(e.keep) {}

  template <int kCount>
  FASTDL_DEVICE uint32_t bits(int64_t index) const {
    return on ? keep_bits<kCount>(seed, uint64_t(index), rule) : 0;
  }
};

template <class acc_t, int kCount>
FASTDL_DEVICE void drop(Vector<acc_t, kCount>& v, uint32_t keep, acc_t scale) {
  for_each<kCount>([&](int j) { v[j] = keep >> j & 1 ? v[j] * scale : acc_t(0); });
}

// x in place to dropout(activation(normalized * weight + bias + z)). k(j): the constants of element j;
// z: the residual, read where the call has one; keep: bits, read where it has dropout. Returns the mask's
// bits, where it has a mask.
template <class acc_t, int kCount, class K>
FASTDL_DEVICE uint32_t forward_vector(const ForwardArguments& a, Vector<acc_t, kCount>& x, K k,
                                      const Vector<acc_t, kCount>& z, uint32_t keep) {
  for_each<kCount>([&](int j) { x[j] = k(j).affine(k(j).centered(x[j])); });
  if (a.residual.data) for_each<kCount>([&](int j) { x[j] += z[j]; });
  const uint32_t bits = a.mask ? branch_bits(x, a.epilogue.activation) : 0;
  with_activation(a.epilogue.activation,
                  [&](auto activation) { for_each<kCount>([&](int j) { x[j] = activation.value(x[j]); }); });
  if (a.epilogue.seed) drop(x, keep, acc_t(a.epilogue.keep_scale));
  return bits;
}

FASTDL_DEVICE bool needs_residual(const BackwardArguments& a) {
  return a.residual.data && !a.mask && a.epilogue.activation != Activation::kNone;
}

// grad in place to g, the gradient at normalized * weight + bias + z; x in place to centered. z: the
// residual, read where needs_residual; branch: the mask's bits where there is one.
template <class acc_t, int kCount, class K>
FASTDL_DEVICE void backward_vector(const BackwardArguments& a, Vector<acc_t, kCount>& grad,
                                   Vector<acc_t, kCount>& x, K k, const Vector<acc_t, kCount>& z,
                                   uint32_t keep, uint32_t branch) {
  if (a.epilogue.seed) drop(grad, keep, acc_t(a.epilogue.keep_scale));
  for_each<kCount>([&](int j) { x[j] = k(j).centered(x[j]); });
  if (a.mask) {
    branch_backward(grad, branch, a.epilogue.activation);
  } else if (a.epilogue.activation != Activation::kNone) {
    Vector<acc_t, kCount> v;
    for_each<kCount>([&](int j) { v[j] = k(j).affine(x[j]); });
    if (a.residual.data) for_each<kCount>([&](int j) { v[j] += z[j]; });
    with_activation(a.epilogue.activation, [&](auto activation) {
      for_each<kCount>([&](int j) { grad[j] = activation.gradient(grad[j], v[j]); });
    });
  }
}

// Whether grad_input or the parameters' gradients depend on the input's elements.
FASTDL_DEVICE bool needs_input(const BackwardArguments& a) {
  return a.training || a.grad_weight.data || (a.epilogue.activation != Activation::kNone && !a.mask);
}

// g and centered, as backward_vector leaves them, to grad_input in place of g.
template <class acc_t, int kCount, class K, class M>
FASTDL_DEVICE void input_gradient(const BackwardArguments& a, Vector<acc_t, kCount>& g,
                                  const Vector<acc_t, kCount>& centered, K k, M correction) {
  if (a.training) {
    for_each<kCount>([&](int j) { g[j] += centered[j] * correction(j).slope + correction(j).offset; });
  }
  for_each<kCount>([&](int j) { g[j] *= k(j).scale; });
}

}  // namespace fastdl::batch_norm
