// One optimizer step over all parameters on CPU tensors: one pass over memory, two with gradient clipping.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include "optim/replay.h"
#include "optim/rounding.h"
#include "optim/rules.h"

#include <bit>

namespace fastdl::optim {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kChunk = 512;  // elements converted to T at a time: all operands fit the first-level cache
constexpr int64_t kGrain = 8;    // tiles a thread takes at least

// Defines `name` and, on x86, the same code for AVX2 and AVX-512; `name` picks what the machine has.
#if defined(__x86_64__)
const int kVectorLevel = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? 2
                         : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")       ? 1
                                                                                                 : 0;
#define FASTDL_VECTORISED(head, name, parameters, arguments)                                               \
  head __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prefer-vector-width=512"))) void \
      name##_avx512 parameters {                                                                           \
    name##_body arguments;                                                                                 \
  }                                                                                                        \
  head __attribute__((target("avx2,fma,f16c"))) void name##_avx2 parameters { name##_body arguments; }     \
  head void name##_portable parameters { name##_body arguments; }                                          \
  head void name parameters {                                                                              \
    if (kVectorLevel == 2) return name##_avx512 arguments;                                                 \
    if (kVectorLevel == 1) return name##_avx2 arguments;                                                   \
    name##_portable arguments;                                                                             \
  }
#else
#define FASTDL_VECTORISED(head, name, parameters, arguments) \
  head void name parameters { name##_body arguments; }
#endif
#define FASTDL_COMMA ,
#define FASTDL_INLINE inline __attribute__((always_inline))

// Memory offset of the logical element `index`, then of its successors in row-major order.
class Walk {
 public:
  Walk(const Record& r, const int64_t* strides, int64_t index) : r_(r), strides_(strides), place_(r.dim) {
    for (int64_t d = r.dim - 1; d >= 0; --d) {
      place_[d] = index % r.sizes[d];
      index /= r.sizes[d];
      offset_ += place_[d] * strides[d];
    }
  }
  int64_t next() {
    const int64_t offset = offset_;
    for (int64_t d = r_.dim - 1; d >= 0; --d) {
      offset_ += strides_[d];
      if (++place_[d] < r_.sizes[d]) break;
      offset_ -= place_[d] * strides_[d];
      place_[d] = 0;
    }
    return offset;
  }

 private:
  const Record& r_;
  const int64_t* strides_;
  std::vector<int64_t> place_;
  int64_t offset_ = 0;
};

template <class F>
void with_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

template <class From, class To>
FASTDL_INLINE void convert_body(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = To(from[i]);
}
FASTDL_VECTORISED(template <class From FASTDL_COMMA class To>, convert, (const From* from, To* to, int64_t n),
                  (from, to, n))

template <class T>
constexpr ScalarType kTypeOf = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// Elements [begin, begin + n) as T: the memory itself where it is that already, else converted into `buffer`.
template <class T>
T* load(const Record& r, const Operand& operand, int64_t begin, int64_t n, T* buffer) {
  if (operand.dtype == kTypeOf<T> && !operand.strides) return static_cast<T*>(operand.data) + begin;
  with_type(operand.dtype, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(operand.data);
    if (!operand.strides) return convert(data + begin, buffer, n);
    Walk walk(r, operand.strides, begin);
    for (int64_t i = 0; i < n; ++i) buffer[i] = T(data[walk.next()]);
  });
  return buffer;
}

// Writes back what `load` gave; nothing to do where that was the memory itself.
template <class T>
void store(const Record& r, const Operand& operand, int64_t begin, int64_t n, const T* values) {
  if (operand.dtype == kTypeOf<T> && !operand.strides) return;
  with_type(operand.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* data = static_cast<scalar_t*>(operand.data);
    if (!operand.strides) return convert(values, data + begin, n);
    Walk walk(r, operand.strides, begin);
    for (int64_t i = 0; i < n; ++i) data[walk.next()] = scalar_t(values[i]);
  });
}

// Random words of n elements from `begin` on, a multiple of 4; `words` holds kChunk.
FASTDL_INLINE void draw_body(RoundingKey key, int64_t begin, uint32_t stream, int64_t n, uint32_t* words) {
  const int64_t calls = (n + 63) / 64 * 16;  // whole vectors: none is left to scalar code
  for (int64_t i = 0; i < calls; ++i) {
    const Philox4 r = rounding_words(key, uint64_t(begin + 4 * i), stream);
    for (int w = 0; w < 4; ++w) words[4 * i + w] = r.word[w];
  }
}
FASTDL_VECTORISED(, draw, (RoundingKey key, int64_t begin, uint32_t stream, int64_t n, uint32_t* words),
                  (key, begin, stream, n, words))

// Rounds values in place to numbers that float16 or bfloat16 holds exactly, infinities and NaN excepted.
template <class T, bool kHalf>
FASTDL_INLINE void dither_body(std::bool_constant<kHalf>, T* values, const uint32_t* words, int slot,
                               int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = float(values[i]);
    const uint32_t bits = rounding_half(words[i], slot);
    const float rounded = kHalf ? round_to_float16(value, bits)
                                : std::bit_cast<float>(uint32_t(round_to_bfloat16(value, bits)) << 16);
    const bool is_finite = (std::bit_cast<uint32_t>(value) & 0x7F800000u) != 0x7F800000u;
    values[i] = is_finite ? T(rounded) : values[i];
  }
}
FASTDL_VECTORISED(template <class T FASTDL_COMMA bool kHalf>, dither,
                  (std::bool_constant<kHalf> half, T* values, const uint32_t* words, int slot, int64_t n),
                  (half, values, words, slot, n))

// Stochastic rounding of a chunk's operands. Two slots share the words of a stream (rounding.h): in the order
// of slots, each stream is drawn once.
class Rounding {
 public:
  Rounding(const Record& r, double step, int64_t begin, int64_t n)
      : r_(r), key_{uint64_t(r.options->rounding_seed), uint64_t(step)}, begin_(begin), n_(n) {}

  template <class T>
  void operator()(const Operand& operand, int slot, T* values) {
    if (r_.options->stochastic_rounding == 0 || !is_low_precision(operand.dtype)) return;
    if (slot / 2 != drawn_) draw(key_, begin_, rounding_stream(r_.ordinal, slot), n_, words_);
    drawn_ = slot / 2;
    operand.dtype == ScalarType::Half ? dither(std::true_type{}, values, words_, slot, n_)
                                      : dither(std::false_type{}, values, words_, slot, n_);
  }

 private:
  const Record& r_;
  RoundingKey key_;
  int64_t begin_, n_;
  int drawn_ = -1;
  uint32_t words_[kChunk];
};

template <class T, class SharedRule, class Rule>
FASTDL_INLINE void apply_body(const SharedRule& shared, const Rule& rule, T* p, const T* g, T* const* states,
                              int64_t n) {
  constexpr int kStates = Rule::kStates;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T state[kStates + 1];
    for (int k = 0; k < kStates; ++k) state[k] = states[k][i];
    shared(rule, p[i], g[i], state);
    for (int k = 0; k < kStates; ++k) states[k][i] = state[k];
  }
}
FASTDL_VECTORISED(template <class T FASTDL_COMMA class SharedRule FASTDL_COMMA class Rule>, apply,
                  (const SharedRule& shared, const Rule& rule, T* p, const T* g, T* const* states, int64_t n),
                  (shared, rule, p, g, states, n))

template <class T>
FASTDL_INLINE void average_body(T* ema, const T* p, T weight, int64_t n) {
  for (int64_t i = 0; i < n; ++i) ema[i] = lerp(ema[i], p[i], weight);
}
FASTDL_VECTORISED(template <class T>, average, (T * ema, const T* p, T weight, int64_t n),
                  (ema, p, weight, n))

// The gradient's elements, once read.
void zero_grad(const Record& r, int64_t begin, int64_t n) {
  with_type(r.grad.dtype, [&](auto zero) {
    auto* grad = static_cast<decltype(zero)*>(r.grad.data);
    if (!r.grad.strides) return std::fill_n(grad + begin, n, zero), void();
    Walk walk(r, r.grad.strides, begin);
    for (int64_t i = 0; i < n; ++i) grad[walk.next()] = zero;
  });
}

// The step for elements [begin, end) of a parameter. grad_factor: unscale and clip.
template <class T, class Rule>
void update(const Record& r, double grad_factor, double step, int64_t begin, int64_t end) {
  constexpr int kStates = Rule::kStates;
  const Options& o = *r.options;
  const Rule rule(o, o.lr, step);
  const Operand& truth = r.master.data ? r.master : r.param;
  T buffers[3 + kStates][kChunk];
  const auto is_direct = [](const Operand& x) { return !x.data || (x.dtype == kTypeOf<T> && !x.strides); };
  bool direct = is_direct(r.param) && is_direct(r.grad) && is_direct(r.master) && is_direct(r.ema);
  for (int k = 0; k < kStates; ++k) direct = direct && is_direct(r.state[k]);
  const int64_t chunk = direct ? end - begin : kChunk;
  for (; begin < end; begin += chunk) {
    const int64_t n = std::min(chunk, end - begin);
    T* p = load(r, truth, begin, n, buffers[0]);
    const T* g = load(r, r.grad, begin, n, buffers[1]);
    T* states[kStates + 1];
    for (int k = 0; k < kStates; ++k) states[k] = load(r, r.state[k], begin, n, buffers[2 + k]);
    if (o.l1 != 0) {
      apply(Shared<T, true>(o, o.lr, grad_factor), rule, p, g, states, n);
    } else {
      apply(Shared<T, false>(o, o.lr, grad_factor), rule, p, g, states, n);
    }
    Rounding round(r, step, begin, n);
    round(truth, 0, p);
    for (int k = 0; k < kStates; ++k) {
      round(r.state[k], 1 + k, states[k]);
      store(r, r.state[k], begin, n, states[k]);
    }
    store(r, truth, begin, n, p);
    if (r.master.data) store(r, r.param, begin, n, p);
    if (r.ema.data) {
      T* ema = load(r, r.ema, begin, n, buffers[2 + kStates]);
      average(ema, load(r, truth, begin, n, p), T(1 - o.ema_decay), n);  // of the parameter as rounded
      store(r, r.ema, begin, n, ema);
    }
    if (o.zero_grad != 0) zero_grad(r, begin, n);
  }
}

// Adds the squares of n gradients to sums: eight partial sums in double, always in the same order.
FASTDL_INLINE void add_squares_body(const double* g, int64_t n, double* sums) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += g[i + k] * g[i + k];
  }
  for (; i < n; ++i) sums[i % 8] += g[i] * g[i];
}
FASTDL_VECTORISED(, add_squares, (const double* g, int64_t n, double* sums), (g, n, sums))

double square_sum(const Record& r, double inv_scale, int64_t begin, int64_t end) {
  double sums[8] = {}, buffer[kChunk];
  for (; begin < end; begin += kChunk) {
    const int64_t n = std::min(kChunk, end - begin);
    add_squares(load(r, r.grad, begin, n, buffer), n, sums);
  }
  double sum = 0;
  for (double s : sums) sum += s;
  return sum * inv_scale * inv_scale;
}

// Calls f(record, begin, end, tile) for every tile of every parameter, on all threads.
template <class F>
void for_each_tile(const std::vector<Record>& records, int64_t tiles, F&& f) {
  torch::stable::parallel_for(0, tiles, kGrain, [&](int64_t tile, int64_t end) {
    auto r = std::upper_bound(records.begin(), records.end(), tile,
                              [](int64_t t, const Record& record) { return t < record.first_tile; }) -
             1;
    for (; tile < end; ++r) {
      const int64_t last = r + 1 == records.end() ? tiles : r[1].first_tile;
      for (; tile < std::min(last, end); ++tile) {
        const int64_t begin = (tile - r->first_tile) * kTile;
        f(*r, begin, std::min(begin + kTile, r->numel), tile);
      }
    }
  });
}

double step_of(const Record& r) {
  if (!r.step.data) return 0;
  return r.step.dtype == ScalarType::Double ? *static_cast<double*>(r.step.data)
                                            : *static_cast<float*>(r.step.data);
}

void advance_step(const Record& r) {
  if (!r.step.data) return;
  with_type(r.step.dtype,
            [&](auto zero) { *static_cast<decltype(zero)*>(r.step.data) += decltype(zero)(1.f); });
}

optional<double> read_optional(const optional<Tensor>& t) {
  return t ? optional<double>(read_scalar(*t)) : std::nullopt;
}

}  // namespace

// The step for all records.
void run_step(RuleName rule, std::vector<Record>& records, const Scalars& given) {
  const int64_t tiles = number_tiles(records);
  const auto skip = [&] {
    for_each_tile(records, tiles, [](const Record& r, int64_t begin, int64_t end, int64_t) {
      if (r.options->zero_grad != 0) zero_grad(r, begin, end - begin);
    });
  };
  if (given.found_inf.value_or(0) != 0) return skip();
  double factor = given.grad_scale ? double(float(1 / *given.grad_scale)) : 1.0;  // unscale and clip
  if (given.max_grad_norm) {
    double norm = given.grad_norm.value_or(0);
    if (!given.grad_norm) {
      std::vector<double> sums(static_cast<size_t>(tiles));  // added in order: bits do not depend on threads
      for_each_tile(records, tiles, [&](const Record& r, int64_t begin, int64_t end, int64_t tile) {
        sums[size_t(tile)] = square_sum(r, factor, begin, end);
      });
      for (double s : sums) norm += s;
      norm = std::sqrt(norm);
    }
    if (given.found_inf && !std::isfinite(norm)) return skip();
    const double clip = *given.max_grad_norm / (norm + 1e-6);
    factor *= clip > 1 ? 1 : clip;  // a NaN stays: without a GradScaler it must show
  }
  for_each_tile(records, tiles, [&](const Record& r, int64_t begin, int64_t end, int64_t) {
    const double step = step_of(r) + 1;
    auto run = [&]<class T>(T) {
      with_rule<T>(rule, *r.options, [&]<class Rule>() { update<T, Rule>(r, factor, step, begin, end); });
    };
    r.param.dtype == ScalarType::Double ? run(double{}) : run(float{});
  });
  for (const Record& r : records) advance_step(r);
}

// See fastdl/optim/_step.py for the arguments.
void optim_step_cpu(int64_t rule, std::vector<Tensor> params, std::vector<Tensor> grads,
                    std::vector<Tensor> states, std::vector<Tensor> lrs, std::vector<int64_t> counts,
                    std::vector<double> options, optional<Tensor> grad_scale, optional<Tensor> found_inf,
                    optional<double> max_grad_norm, optional<Tensor> grad_norm, std::vector<int64_t> ordinals,
                    std::vector<Tensor>) {
  std::vector<Options> rows = read_options(options);
  for (Options& o : rows) {
    if (o.lr_index >= 0) o.lr = read_scalar(lrs.at(size_t(o.lr_index)));
  }
  const Lists lists{params, grads, states, counts, ordinals};
  check_lists(lists, rows.size());
  std::vector<Record> records = RecordReader(RuleName(rule), lists).read(rows);
  run_step(RuleName(rule), records,
           {read_optional(grad_scale), read_optional(found_inf), max_grad_norm, read_optional(grad_norm)});
}

FASTDL_CPU_LIBRARY(m) { m.impl("optim_step_", TORCH_BOX(&optim_step_cpu)); }

}  // namespace fastdl::optim

void bind_optim(pybind11::module_& m) {
  using fastdl::optim::Replay;
  pybind11::class_<Replay>(m, "OptimReplay", "A checked step, to be taken again")
      .def(pybind11::init<int64_t, pybind11::list, pybind11::dict, std::optional<double>, pybind11::object,
                          int64_t, pybind11::object, pybind11::object>())
      .def("step", &Replay::step)
      .def_property_readonly("is_captured", &Replay::is_captured)
      .def_property_readonly("pinned_slots", &Replay::pinned_slots);
  m.def(
      "optim_look_inside",
      [](bool on) {
        auto* exchange = fastdl::optim::Exchange::get();
        return exchange && exchange->look_inside(on);
      },
      pybind11::arg("on"), "Whether a walk looks into tensor objects, for tests; returns what was");
  m.def("optim_workspace_bytes", &fastdl::optim::workspace_bytes, pybind11::arg("parameters"),
        pybind11::arg("groups"), "Bytes of device memory that the optimizer kernel keeps for so many");
}
