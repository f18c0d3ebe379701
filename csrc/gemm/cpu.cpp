// Linear with a fused epilogue on CPU tensors: torch's matrix product and transcendental activations, and one
// pass of ours for what torch does in several: ReLU or LeakyReLU, dropout, residual; backward with column
// sums.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <tuple>
#include <vector>
#include "philox.cuh"
#include "torch_glue.h"

// Lets the compiler turn the choices below into vector selects; GCC refuses for fear of floating-point traps.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math")
#endif

// One clone for machines with AVX2, chosen when the library is loaded.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FASTDL_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FASTDL_CLONES
#endif

namespace fastdl {
namespace {

enum Activation : int64_t {
  kNone,
  kRelu,
  kLeakyRelu,
  kSilu,
  kGelu,
  kGeluTanh
};  // fastdl/activation.py CODES

constexpr int kBlock = 256;          // elements whose mask is drawn at once; a multiple of 8
constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least: below it, waking threads costs more
constexpr int64_t kRowsPerPartial = 64;  // rows summed in sequence: fixed, so that sums know no thread count
constexpr double kLeakySlope = 0.01;

struct Dropout {
  uint64_t seed = 0;
  KeepRule rule{};
  double scale = 1;
  bool on = false;

  Dropout(const optional<Tensor>& seed_tensor, double p, const char* op) {
    if (!seed_tensor) return;
    STD_TORCH_CHECK(seed_tensor->numel() == 1 && seed_tensor->scalar_type() == ScalarType::Long, op,
                    ": seed must be one int64 value");
    on = true;
    seed = uint64_t(*seed_tensor->const_data_ptr<int64_t>());
    rule = KeepRule::of(p);
    scale = p >= 1 ? 0 : 1 / (1 - p);
  }
};

template <class scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// factor[i] = scale where element begin + i is kept, else 0. `begin` is a multiple of kBlock.
template <class acc_t>
FASTDL_CLONES void keep_factors(const Dropout& dropout, uint64_t begin, acc_t* factor) {
  const acc_t scale = acc_t(dropout.scale);
  if (dropout.rule.none) {
    std::fill(factor, factor + kBlock, acc_t(0));
    return;
  }
  constexpr int kCalls = kBlock / 8;
  const bool wide = dropout.rule.wide;
  const uint64_t call = begin / (wide ? 4 : 8);
  uint32_t word[kBlock];
  for (int i = 0; i < (wide ? 2 : 1) * kCalls; ++i) {
    const Philox4 r = philox(dropout.seed, call + i, wide ? kWideStream : 0);
    for (int j = 0; j < 4; ++j) word[4 * i + j] = r.word[j];
  }
  uint16_t half[kBlock];
  static_assert(std::endian::native == std::endian::little, "the low half of a word comes first");
  std::memcpy(half, word, sizeof(half));
  const uint32_t threshold = dropout.rule.threshold;
  if (wide) {
    for (int i = 0; i < kBlock; ++i) factor[i] = word[i] >= threshold ? scale : acc_t(0);
  } else {
    for (int i = 0; i < kBlock; ++i) factor[i] = half[i] >= threshold ? scale : acc_t(0);
  }
}

template <class acc_t>
inline acc_t times(acc_t value, acc_t factor) {
  const acc_t product = value * factor;  // before the choice: a vector instruction takes both
  return factor != 0 ? product : acc_t(0);
}

// output = factor * activation(input) + residual over one block; a zero factor gives zero whatever the input
// is.
template <Activation activation, bool has_residual, class scalar_t, class acc_t>
FASTDL_CLONES void forward_block(const scalar_t* input, const scalar_t* residual, const acc_t* factor,
                                 scalar_t* output, int n) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    acc_t value = acc_t(input[i]);
    const acc_t negative = activation == kLeakyRelu ? value * acc_t(kLeakySlope) : acc_t(0);
    if (activation != kNone) value = value < 0 ? negative : value;  // NaN passes
    value = times(value, factor[i]);
    if (has_residual) value += acc_t(residual[i]);
    output[i] = scalar_t(value);
  }
}

// grad_input = grad_output * factor * activation'(saved); saved may be the output: it has the preactivation's
// sign.
template <Activation activation, class scalar_t, class acc_t>
FASTDL_CLONES void backward_block(const scalar_t* grad_output, const scalar_t* saved, const acc_t* factor,
                                  scalar_t* grad_input, int n) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    acc_t value = times(acc_t(grad_output[i]), factor[i]);
    const acc_t negative = activation == kLeakyRelu ? value * acc_t(kLeakySlope) : acc_t(0);
    if (activation != kNone) value = acc_t(saved[i]) <= 0 ? negative : value;
    grad_input[i] = scalar_t(value);
  }
}

template <class F>
void dispatch_activation(int64_t activation, F&& f) {
  if (activation == kRelu) return f(std::integral_constant<Activation, kRelu>{});
  if (activation == kLeakyRelu) return f(std::integral_constant<Activation, kLeakyRelu>{});
  f(std::integral_constant<Activation, kNone>{});
}

// Calls body(begin, n, factor) for aligned blocks of [0, numel) on torch's threads.
template <class acc_t, class F>
void for_blocks(int64_t numel, const Dropout& dropout, F&& body) {
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / kBlock),
                              [&](int64_t from, int64_t to) {
                                std::array<acc_t, kBlock> factor;
                                factor.fill(acc_t(1));
                                for (int64_t block = from; block < to; ++block) {
                                  const int64_t begin = block * kBlock;
                                  if (dropout.on) keep_factors(dropout, uint64_t(begin), factor.data());
                                  body(begin, int(std::min<int64_t>(kBlock, numel - begin)), factor.data());
                                }
                              });
}

// x (rows, columns) -> the sum of its rows (columns), by partial sums of kRowsPerPartial rows each.
template <class scalar_t>
FASTDL_CLONES void add_rows(const scalar_t* x, acc_of<scalar_t>* sum, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) sum[c] += acc_of<scalar_t>(x[r * columns + c]);
  }
}

template <class scalar_t>
void column_sums(const scalar_t* x, scalar_t* sum, int64_t rows, int64_t columns) {
  using acc_t = acc_of<scalar_t>;
  const int64_t partials = (rows + kRowsPerPartial - 1) / kRowsPerPartial;
  std::vector<acc_t> partial(size_t(partials * columns), acc_t(0));
  const int64_t grain = std::max<int64_t>(1, kGrain / (kRowsPerPartial * std::max<int64_t>(1, columns)));
  torch::stable::parallel_for(0, partials, grain, [&](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) {
      const int64_t row = k * kRowsPerPartial;
      add_rows(x + row * columns, partial.data() + k * columns, std::min(kRowsPerPartial, rows - row),
               columns);
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    double total = 0;
    for (int64_t k = 0; k < partials; ++k) total += double(partial[size_t(k * columns + c)]);
    sum[c] = scalar_t(acc_t(total));
  }
}

bool is_transcendental(int64_t activation) { return activation >= kSilu; }

template <size_t n>
Tensor call_torch(const char* name, const char* overload, std::array<StableIValue, n>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

using torch::stable::detail::from;

Tensor torch_linear(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{from(input), from(weight), from(bias)};
  return call_torch("aten::linear", "", stack);
}

Tensor torch_activation(const Tensor& x, int64_t activation) {
  if (activation == kSilu) {
    std::array<StableIValue, 1> stack{from(x)};
    return call_torch("aten::silu", "", stack);
  }
  std::array<StableIValue, 2> stack{from(x), from(std::string(activation == kGelu ? "none" : "tanh"))};
  return call_torch("aten::gelu", "", stack);
}

Tensor torch_activation_backward(const Tensor& grad, const Tensor& x, int64_t activation) {
  if (activation == kSilu) {
    std::array<StableIValue, 2> stack{from(grad), from(x)};
    return call_torch("aten::silu_backward", "", stack);
  }
  std::array<StableIValue, 3> stack{from(grad), from(x),
                                    from(std::string(activation == kGelu ? "none" : "tanh"))};
  return call_torch("aten::gelu_backward", "", stack);
}

}  // namespace

// input (*, K), weight (N, K), bias (N), residual (*, N), seed (1) int64
// -> output (*, N) = dropout(activation(input weight^T + bias)) + residual, preactivation (*, N), or (0)
// unless `save`.
std::tuple<Tensor, Tensor> linear_forward_cpu(const Tensor& input, const Tensor& weight,
                                              const optional<Tensor>& bias, const optional<Tensor>& residual,
                                              const optional<Tensor>& seed, int64_t activation, double p,
                                              bool save) {
  const Dropout dropout(seed, p, "linear");
  Tensor preactivation = torch::stable::contiguous(torch_linear(input, weight, bias));
  Tensor source = is_transcendental(activation) ? torch_activation(preactivation, activation) : preactivation;
  if (is_transcendental(activation)) activation = kNone;
  const bool in_place = !save || source.data_ptr() != preactivation.data_ptr();
  Tensor output = in_place ? source : torch::stable::empty_like(source);
  if (activation != kNone || dropout.on || residual) {
    optional<Tensor> addend;
    if (residual) addend = torch::stable::contiguous(*residual);
    dispatch_floating("linear", output.scalar_type(), [&](auto zero) {
      using scalar_t = decltype(zero);
      using acc_t = acc_of<scalar_t>;
      const scalar_t* in = source.const_data_ptr<scalar_t>();
      const scalar_t* add = addend ? addend->const_data_ptr<scalar_t>() : nullptr;
      scalar_t* out = output.mutable_data_ptr<scalar_t>();
      dispatch_activation(activation, [&](auto code) {
        for_blocks<acc_t>(output.numel(), dropout, [&](int64_t i, int n, const acc_t* factor) {
          if (add) {
            forward_block<code(), true>(in + i, add + i, factor, out + i, n);
          } else {
            forward_block<code(), false>(in + i, in, factor, out + i, n);
          }
        });
      });
    });
  }
  return {output, save ? preactivation : torch::stable::new_empty(input, {0})};
}

// grad_output (*, N), saved (*, N): the preactivation, or for relu and leaky_relu without residual the
// output, seed (1) int64 -> grad_preactivation (*, N), grad_bias (N), or (0) unless `bias`.
std::tuple<Tensor, Tensor> linear_backward_cpu(const Tensor& grad_output, const optional<Tensor>& saved,
                                               const optional<Tensor>& seed, int64_t activation, double p,
                                               bool bias) {
  const Dropout dropout(seed, p, "linear");
  Tensor grad = torch::stable::contiguous(grad_output);
  const bool transcendental = is_transcendental(activation);
  optional<Tensor> signs;
  if (activation != kNone && !transcendental) signs = torch::stable::contiguous(*saved);
  const int64_t columns = grad.size(grad.dim() - 1), rows = columns ? grad.numel() / columns : 0;
  Tensor result = torch::stable::empty_like(grad);
  Tensor grad_bias = torch::stable::new_empty(grad, {bias ? columns : 0});
  dispatch_floating("linear", grad.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = acc_of<scalar_t>;
    const scalar_t* in = grad.const_data_ptr<scalar_t>();
    const scalar_t* sign = signs ? signs->const_data_ptr<scalar_t>() : nullptr;
    if (dropout.on || !transcendental) {
      scalar_t* out = result.mutable_data_ptr<scalar_t>();
      dispatch_activation(activation, [&](auto code) {
        for_blocks<acc_t>(grad.numel(), dropout, [&](int64_t i, int n, const acc_t* factor) {
          backward_block<code()>(in + i, sign ? sign + i : in, factor, out + i, n);
        });
      });
    }
    if (transcendental) result = torch_activation_backward(dropout.on ? result : grad, *saved, activation);
    if (bias) {
      column_sums(result.const_data_ptr<scalar_t>(), grad_bias.mutable_data_ptr<scalar_t>(), rows, columns);
    }
  });
  return {result, grad_bias};
}

FASTDL_CPU_LIBRARY(m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward_cpu));
  m.impl("linear_backward", TORCH_BOX(&linear_backward_cpu));
}

}  // namespace fastdl
