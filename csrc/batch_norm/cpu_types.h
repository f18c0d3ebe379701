// What the CPU op's inner loops work on, and their table: one a data type and instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "batch_norm/problem.h"

namespace fastdl {

// The type that a dtype is computed in.
template <class scalar_t>
struct AccType {
  using type = float;
};
template <>
struct AccType<double> {
  using type = double;
};
template <class scalar_t>
using acc_of = typename AccType<scalar_t>::type;

// Rows of `length` contiguous elements. Channels last: element i of a row is channel i % C (short rows are
// taken `fold` at a time). Otherwise row r is channel r % C.
struct View {
  int64_t N, C, S, rows, length, fold = 1;
  bool last;

  View(int64_t n, int64_t c, int64_t s, bool channels_last)
      : N(n), C(c), S(s), rows(n * c), length(s), last(channels_last) {
    if (!last) return;
    rows = N * S;
    while (C * fold < 32 && rows % (fold * 2) == 0) fold *= 2;
    rows /= fold;
    length = C * fold;
  }
  int64_t count() const { return N * S; }
  int64_t logical(int64_t row,
                  int64_t i) const {  // the row-major index of an element, which names its random bits
    if (!last) return row * S + i;
    const int64_t position = row * fold + i / C;
    return (position / S * C + i % C) * S + position % S;
  }
};

struct Moments {
  double count = 0, mean = 0, m2 = 0;
  void merge(double n, double other_mean, double other_m2) {
    if (n == 0) return;
    const double total = count + n, delta = other_mean - mean;
    mean += delta * (n / total);
    m2 += other_m2 + delta * delta * (count * n / total);
    count = total;
  }
};

// What normalization needs of each channel, in the type it is computed in, as arrays of one value a channel
// (channels last: repeated for a folded row). mean = hi + lo keeps what acc_t lacks when |mean| >> std.
template <class acc_t>
struct Constants {
  std::vector<acc_t> hi, lo, invstd, scale, bias;

  Constants(const View& v, const double* mean, const double* rstd, const std::vector<double>& weight,
            const std::vector<double>& shift) {
    const int64_t n = v.last ? v.length : v.C;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = i % v.C;
      hi.push_back(acc_t(mean[c]));
      const double rest = mean[c] - double(hi[i]);
      lo.push_back(std::isfinite(rest) ? acc_t(rest) : acc_t(0));
      invstd.push_back(acc_t(rstd[c]));
      scale.push_back(acc_t(rstd[c] * weight[c]));
      bias.push_back(acc_t(shift[c]));
    }
  }
};
// Dropout's decision and scale; off: everything stays.
struct Keep {
  bool on = false;
  uint64_t seed = 0;
  KeepRule rule{};
  double scale = 1;
};

// What follows normalization, where loops are compiled for it: nothing, relu alone, or anything.
enum class Form { kGeneral, kPlain, kRelu };

template <class scalar_t>
struct Operands {
  const scalar_t *x, *residual, *grad;
  const Constants<acc_of<scalar_t>>& constants;
  Activation activation;
  Keep keep;

  Form form() const {
    if (residual || keep.on) return Form::kGeneral;
    if (activation == Activation::kRelu) return Form::kRelu;
    return activation == Activation::kNone ? Form::kPlain : Form::kGeneral;
  }
};

// Where the gradients of the elements [begin, end) go; null: not wanted. grad_input is
// (g - a - normalized * b) * scale, with the means a of g and b of g * normalized (zero in evaluation).
template <class scalar_t>
struct Gradients {
  scalar_t *input, *residual;
  std::vector<acc_of<scalar_t>> a, b;
};
// The loops of cpu_rows.h for one form; by channels last, or by whether sums store the gradients as well.
template <class scalar_t>
struct Loops {
  using Range = void (*)(const Operands<scalar_t>&, const View&, scalar_t*, int64_t, int64_t);
  using BackwardRange = void (*)(const Operands<scalar_t>&, const View&, const Gradients<scalar_t>&, int64_t,
                                 int64_t);
  Range forward[2];
  void (*channel_sums[2])(const Operands<scalar_t>&, const View&, const Gradients<scalar_t>&, int64_t,
                          int64_t, int64_t, double*, double*);
  void (*row_sums[2])(const Operands<scalar_t>&, const View&, const Gradients<scalar_t>&, int64_t, int64_t,
                      double*, double*);
  BackwardRange backward[2];
};
// All of one instruction set.
template <class scalar_t>
struct Rows {
  Moments (*channel_moments)(const scalar_t*, const View&, int64_t, int64_t, int64_t);
  void (*row_moments)(const scalar_t*, const View&, int64_t, int64_t, double*, double*);
  Loops<scalar_t> of_form[3];

  const Loops<scalar_t>& loops(const Operands<scalar_t>& o) const { return of_form[int(o.form())]; }
};

}  // namespace fastdl
