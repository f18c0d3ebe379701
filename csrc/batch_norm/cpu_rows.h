// Inner loops of batch_norm on CPU tensors: rows in, rows or per-channel sums out; no torch.
// Statistics are short shifted sums, merged in double by Chan et al. (1983): the input is read once, and the
// result is as exact as Welford's. cpu.cpp includes this once for each instruction set.
#include "batch_norm/cpu_vector.h"

namespace fastdl::FASTDL_ISA {

constexpr int64_t kFlush = 1 << 12;  // elements of one shifted sum
constexpr int64_t kRows = 32;        // rows of one shifted sum, channels last
constexpr int64_t kStrip = 256;      // columns of it

FASTDL_LANES double sum_lanes(D v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

template <class scalar_t>
FASTDL_LANES auto load_row(const scalar_t* p, int n) {
  return n == kLanes ? load(p) : load_some(p, n, scalar_t(0));
}
template <class scalar_t, class V>
FASTDL_LANES void store_row(scalar_t* p, V values, int n) {
  if (n == kLanes) {
    store(p, values);
  } else {
    store_some(p, values, n);
  }
}

// Calls body(i, n) for eight lanes at a time; n is a compile-time 8 but for the last call.
template <class Body>
FASTDL_LANES void for_lanes(int64_t i, int64_t stop, Body&& body) {
  for (; i + kLanes <= stop; i += kLanes) body(i, std::integral_constant<int, kLanes>{});
  if (i < stop) body(i, int(stop - i));
}

// Calls body(first row, stop, first column, stop) for pieces of the rows [begin, end): few enough columns
// that what is kept of them stays in the first cache, long enough runs that memory is read in order.
template <class Body>
FASTDL_LANES void for_strips(const View& v, int64_t begin, int64_t end, Body&& body) {
  for (int64_t r = begin; r < end; r += kRows) {
    for (int64_t i = 0; i < v.length; i += kStrip)
      body(r, std::min(r + kRows, end), i, std::min(i + kStrip, v.length));
  }
}

// Elements [begin, end) of one channel, numbered over (N, S).
template <class scalar_t>
Moments channel_moments(const scalar_t* x, const View& v, int64_t c, int64_t begin, int64_t end) {
  Moments total;
  for (int64_t j = begin; j < end;) {
    const scalar_t first = x[(j / v.S * v.C + c) * v.S + j % v.S];
    const D shift = splat<D>(double(first));
    D s0 = {}, s1 = {}, q0 = {}, q1 = {};
    int64_t taken = 0;
    while (taken < kFlush && j < end) {  // one row, or what is left of it
      const int64_t at = j % v.S, n = std::min(std::min(v.S - at, end - j), kFlush - taken);
      const scalar_t* p = x + (j / v.S * v.C + c) * v.S + at;
      int64_t i = 0;
      for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        const D a = to_double(load(p + i)) - shift, b = to_double(load(p + i + kLanes)) - shift;
        s0 += a, q0 += a * a, s1 += b, q1 += b * b;
      }
      for (; i < n; i += kLanes) {
        const D a = to_double(i + kLanes <= n ? load(p + i) : load_some(p + i, int(n - i), first)) - shift;
        s0 += a, q0 += a * a;
      }
      taken += n, j += n;
    }
    const double sum = sum_lanes(s0 + s1), mean = sum / taken;
    total.merge(taken, shift[0] + mean, std::max(sum_lanes(q0 + q1) - sum * mean, 0.0));
  }
  return total;
}

// Sums over the rows [r, stop) of columns [i0, i1) less row r, and of their squares. Row r being one of them,
// however far it lies it costs the squares five of acc_t's bits at worst.
template <class acc_t>
struct StripSums {
  acc_t shift[kStrip], sum[kStrip], square[kStrip];

  template <class scalar_t>
  void take(const scalar_t* x, const View& v, int64_t r, int64_t stop, int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i)
      shift[i - i0] = acc_t(x[r * v.length + i]), sum[i - i0] = square[i - i0] = 0;
    for (int64_t row = r; row < stop; ++row) {
      for_lanes(i0, i1, [&](int64_t i, auto n) __attribute__((always_inline)) {
        const int64_t j = i - i0;
        const Vec<acc_t> value = __builtin_convertvector(load_row(x + row * v.length + i, n), Vec<acc_t>);
        const Vec<acc_t> a = value - load_row(shift + j, n);
        store_row(sum + j, load_row(sum + j, n) + a, n);
        store_row(square + j, load_row(square + j, n) + a * a, n);
      });
    }
  }
  // Whether no square left float's range; columns of one value have none.
  bool in_range(int64_t columns) const {
    bool all = true;
    for (int64_t j = 0; j < columns; ++j)
      all &= (square[j] > 1e-20 && square[j] < 1e30) || (square[j] == 0 && sum[j] == 0);
    return all;
  }
  // Joins n rows to the moments of those before (Chan et al.).
  void merge(double n, double before, int64_t columns, double* mean, double* m2) const {
    const double share = n / (before + n);
    for (int64_t j = 0; j < columns; ++j) {
      const double local = double(sum[j]) / n;
      const double spread = std::max(double(square[j]) - double(sum[j]) * local, 0.0);
      const double delta = double(shift[j]) + local - mean[j];
      mean[j] += delta * share, m2[j] += spread + delta * delta * (before * share);
    }
  }
};

// Rows [begin, end) channels last: partial (mean, m2) of each of `length` columns.
template <class scalar_t>
void row_moments(const scalar_t* x, const View& v, int64_t begin, int64_t end, double* mean, double* m2) {
  std::fill(mean, mean + v.length, 0.0);
  std::fill(m2, m2 + v.length, 0.0);
  StripSums<acc_of<scalar_t>> fast;
  StripSums<double> wide;
  for_strips(v, begin, end, [&](int64_t r, int64_t stop, int64_t i0, int64_t i1) {
    const double n = double(stop - r), before = double(r - begin);
    fast.take(x, v, r, stop, i0, i1);
    if (fast.in_range(i1 - i0)) return fast.merge(n, before, i1 - i0, mean + i0, m2 + i0);
    wide.take(x, v, r, stop, i0, i1);
    wide.merge(n, before, i1 - i0, mean + i0, m2 + i0);
  });
}

template <class acc_t>
struct Lanes {
  Vec<acc_t> hi, lo, invstd, scale, bias;
};
template <class acc_t>
FASTDL_LANES Lanes<acc_t> splat_constants(const Constants<acc_t>& k, int64_t c) {
  using V = Vec<acc_t>;
  return {splat<V>(k.hi[c]), splat<V>(k.lo[c]), splat<V>(k.invstd[c]), splat<V>(k.scale[c]),
          splat<V>(k.bias[c])};
}
template <class acc_t>
FASTDL_LANES Lanes<acc_t> load_constants(const Constants<acc_t>& k, int64_t i, int n) {
  return {load_row(k.hi.data() + i, n), load_row(k.lo.data() + i, n), load_row(k.invstd.data() + i, n),
          load_row(k.scale.data() + i, n), load_row(k.bias.data() + i, n)};
}

// Zero where dropout drops one of eight neighbours of a row.
template <class V>
FASTDL_LANES V drop(V values, const Keep& keep, const View& v, int64_t row, int64_t i, int n) {
  for (int k = 0; k < kLanes; ++k) {
    const bool kept = k < n && keep_element(keep.seed, uint64_t(v.logical(row, i + k)), keep.rule);
    values[k] = kept ? values[k] * decltype(values[0] + 0)(keep.scale) : 0;
  }
  return values;
}

template <Form kForm, class scalar_t, class K>
FASTDL_LANES auto forward_lanes(const Operands<scalar_t>& o, const View& v, const K& k, int64_t row,
                                int64_t i, int n) {
  const int64_t at = row * v.length + i;
  auto y = ((load_row(o.x + at, n) - k.hi) - k.lo) * k.scale + k.bias;
  if constexpr (kForm == Form::kRelu) y = activate(y, Activation::kRelu);
  if constexpr (kForm == Form::kGeneral) {
    if (o.residual) y += load_row(o.residual + at, n);
    y = activate(y, o.activation);
    if (o.keep.on) y = drop(y, o.keep, v, row, i, n);
  }
  return y;
}

// The gradient at the normalized value plus residual; *normalized is (x - mean) * invstd.
template <Form kForm, class scalar_t, class K, class V>
FASTDL_LANES V backward_lanes(const Operands<scalar_t>& o, const View& v, const K& k, int64_t row, int64_t i,
                              int n, V* normalized) {
  const int64_t at = row * v.length + i;
  const V centered = (load_row(o.x + at, n) - k.hi) - k.lo;
  *normalized = centered * k.invstd;
  V g = load_row(o.grad + at, n);
  if constexpr (kForm == Form::kRelu) {
    g = activation_backward(g, centered * k.scale + k.bias, Activation::kRelu);
  } else if constexpr (kForm == Form::kGeneral) {
    if (o.keep.on) g = drop(g, o.keep, v, row, i, n);
    if (o.activation != Activation::kNone) {
      V y = centered * k.scale + k.bias;
      if (o.residual) y += load_row(o.residual + at, n);
      g = activation_backward(g, y, o.activation);
    }
  }
  return g;
}

// output of the elements [begin, end) in memory order.
template <bool kLast, Form kForm, class scalar_t>
void forward_range(const Operands<scalar_t>& o, const View& v, scalar_t* output, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end;) {
    const int64_t row = e / v.length, first = e % v.length, stop = std::min(v.length, first + end - e);
    auto k = splat_constants(o.constants, kLast ? 0 : row % v.C);
    for_lanes(first, stop, [&](int64_t i, auto n) __attribute__((always_inline)) {
      if constexpr (kLast) k = load_constants(o.constants, i, n);
      store_row(output + row * v.length + i, forward_lanes<kForm>(o, v, k, row, i, n), n);
    });
    e += stop - first;
  }
}

// The gradients where they do not depend on sums: in evaluation.
template <class scalar_t, class V, class N>
FASTDL_LANES void store_in_evaluation(const Gradients<scalar_t>& to, int64_t at, V g, V scale, N n) {
  if (to.residual) store_row(to.residual + at, g, n);
  if (to.input) store_row(to.input + at, g * scale, n);
}

// sum(g) and sum(g * normalized) of the elements [begin, end) of one channel; kStore: and their gradients.
template <Form kForm, bool kStore, class scalar_t>
void channel_sums(const Operands<scalar_t>& o, const View& v, const Gradients<scalar_t>& to, int64_t c,
                  int64_t begin, int64_t end, double* sum, double* dot) {
  using V = Vec<acc_of<scalar_t>>;
  const auto k = splat_constants(o.constants, c);
  D s = {}, d = {};
  for (int64_t j = begin; j < end;) {
    const int64_t row = j / v.S * v.C + c, first = j % v.S, stop = std::min(v.S, first + end - j);
    for_lanes(first, stop, [&](int64_t i, auto n) __attribute__((always_inline)) {
      V normalized, g = backward_lanes<kForm>(o, v, k, row, i, n, &normalized), product = g * normalized;
      if (kStore) store_in_evaluation(to, row * v.S + i, g, k.scale, n);
      for (int lane = n; lane < kLanes; ++lane) g[lane] = product[lane] = 0;  // no element: may be NaN
      s += to_double(g), d += to_double(product);
    });
    j += stop - first;
  }
  *sum = sum_lanes(s), *dot = sum_lanes(d);
}

// The same for the rows [begin, end) channels last, `length` columns; kRows terms are added as they are.
template <Form kForm, bool kStore, class scalar_t>
void row_sums(const Operands<scalar_t>& o, const View& v, const Gradients<scalar_t>& to, int64_t begin,
              int64_t end, double* sum, double* dot) {
  using acc_t = acc_of<scalar_t>;
  std::fill(sum, sum + v.length, 0.0);
  std::fill(dot, dot + v.length, 0.0);
  acc_t s[kStrip], d[kStrip];
  for_strips(v, begin, end, [&](int64_t r, int64_t stop, int64_t i0, int64_t i1) {
    std::fill(s, s + (i1 - i0), acc_t(0));
    std::fill(d, d + (i1 - i0), acc_t(0));
    for (int64_t row = r; row < stop; ++row) {
      for_lanes(i0, i1, [&](int64_t i, auto n) __attribute__((always_inline)) {
        const auto k = load_constants(o.constants, i, n);
        Vec<acc_t> normalized, g = backward_lanes<kForm>(o, v, k, row, i, n, &normalized);
        if (kStore) store_in_evaluation(to, row * v.length + i, g, k.scale, n);
        store_row(s + (i - i0), load_row(s + (i - i0), n) + g, n);
        store_row(d + (i - i0), load_row(d + (i - i0), n) + g * normalized, n);
      });
    }
    for (int64_t i = i0; i < i1; ++i) sum[i] += double(s[i - i0]), dot[i] += double(d[i - i0]);
  });
}

template <bool kLast, Form kForm, class scalar_t>
void backward_range(const Operands<scalar_t>& o, const View& v, const Gradients<scalar_t>& to, int64_t begin,
                    int64_t end) {
  using V = Vec<acc_of<scalar_t>>;
  for (int64_t e = begin; e < end;) {
    const int64_t row = e / v.length, first = e % v.length, stop = std::min(v.length, first + end - e);
    const int64_t c = kLast ? 0 : row % v.C, base = row * v.length;
    auto k = splat_constants(o.constants, c);
    V a = splat<V>(to.a[c]), b = splat<V>(to.b[c]), normalized;
    for_lanes(first, stop, [&](int64_t i, auto n) __attribute__((always_inline)) {
      if constexpr (kLast) {
        k = load_constants(o.constants, i, n);
        a = load_row(to.a.data() + i, n), b = load_row(to.b.data() + i, n);
      }
      const V g = backward_lanes<kForm>(o, v, k, row, i, n, &normalized);
      if (to.residual) store_row(to.residual + base + i, g, n);
      if (to.input) store_row(to.input + base + i, (g - a - normalized * b) * k.scale, n);
    });
    e += stop - first;
  }
}

template <class scalar_t, Form kForm>
Loops<scalar_t> loops() {
  return {{forward_range<false, kForm, scalar_t>, forward_range<true, kForm, scalar_t>},
          {channel_sums<kForm, false, scalar_t>, channel_sums<kForm, true, scalar_t>},
          {row_sums<kForm, false, scalar_t>, row_sums<kForm, true, scalar_t>},
          {backward_range<false, kForm, scalar_t>, backward_range<true, kForm, scalar_t>}};
}

template <class scalar_t>
Rows<scalar_t> rows() {
  return {
      channel_moments<scalar_t>,
      row_moments<scalar_t>,
      {loops<scalar_t, Form::kGeneral>(), loops<scalar_t, Form::kPlain>(), loops<scalar_t, Form::kRelu>()}};
}

}  // namespace fastdl::FASTDL_ISA
