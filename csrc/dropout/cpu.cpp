// dropout on CPU tensors: activations are torch's own, then one vectorised pass masks, scales and adds.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "dropout/check.h"
#include "philox.cuh"
#include "torch_glue.h"

// One body, compiled for several vector units and chosen when the library loads: AVX-512 draws the mask 12
// times as fast as torch's Bernoulli generator (AMD EPYC, one core).
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTDL_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define FASTDL_VECTOR_CLONES
#endif

namespace fastdl {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least: below it, waking threads costs more
constexpr int64_t kCalls = 64;       // Philox calls at a time: whole vectors on any machine, 1 KB of bits

// What a pass reads and writes: dense tensors of one dtype and layout, input and output may be the same.
// Where `sign` is not above 0 the input counts `slope` times: relu and leaky relu, whose gradient has another
// sign than input.
struct Work {
  const void *input, *sign, *residual;
  void* output;
  double slope, scale;
  uint64_t seed;
  KeepRule rule;
  int64_t group;
  int64_t channels = 0;  // that lie next to each other, `group` rows of them an image; 0: row-major
};

// The same with types, for one element at a time.
template <class scalar_t, bool kRectify, bool kResidual>
struct Elements {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const scalar_t *input, *sign, *residual;
  scalar_t* output;
  acc_t slope, scale;

  explicit Elements(const Work& work)
      : input(static_cast<const scalar_t*>(work.input)),
        sign(static_cast<const scalar_t*>(work.sign)),
        residual(static_cast<const scalar_t*>(work.residual)),
        output(static_cast<scalar_t*>(work.output)),
        slope(acc_t(work.slope)),
        scale(acc_t(work.scale)) {}

  void finish(int64_t i, bool keep) const {
    acc_t value = acc_t(input[i]);
    if constexpr (kRectify) {
      const acc_t below = slope == 0 ? acc_t(0) : value * slope;  // relu(-inf) is 0
      value = acc_t(sign[i]) <= 0 ? below : value;
    }
    value = keep ? value * scale : acc_t(0);
    if constexpr (kResidual) value += acc_t(residual[i]);
    output[i] = scalar_t(value);
  }
};

// The bits of kCalls consecutive counters, in element order.
template <class bits_t>
inline void random_bits(uint64_t seed, uint64_t counter, bits_t* bits) {
  uint32_t words[4 * kCalls];
  philox_words(seed, counter, sizeof(bits_t) == 4 ? kWideStream : 0, kCalls, words);
  std::memcpy(bits, words, sizeof(words));
}

// f(first, last, keep) for consecutive decisions of [begin, end), keep[0] being that of `first`; bits_t is
// what one decision consumes.
template <class bits_t, class F>
inline void for_decisions(const Work& work, int64_t begin, int64_t end, F f) {
  constexpr int64_t kPerCall = 16 / sizeof(bits_t), kBlock = kCalls * kPerCall;
  const bool draws = work.rule.threshold > 0 && !work.rule.none;
  const bits_t threshold = work.rule.none ? bits_t(1) : bits_t(work.rule.threshold);
  bits_t bits[kBlock] = {};  // where nothing is drawn
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    if (draws) random_bits(work.seed, block / kPerCall, bits);
    const int64_t first = block < begin ? begin : block, last = block + kBlock < end ? block + kBlock : end;
    f(first, last, [&](int64_t i) { return bits[i - block] >= threshold; });
  }
}

// One decision for `group` consecutive elements: whole channels are kept or dropped.
template <class bits_t, class elements_t>
inline void dropout_groups(const Work& work, int64_t begin, int64_t end) {
  const elements_t elements(work);
  const int64_t group = work.group;
  for_decisions<bits_t>(
      work, begin / group, (end + group - 1) / group, [&](int64_t first, int64_t last, auto keeps) {
        for (int64_t channel = first; channel < last; ++channel) {
          const bool keep = keeps(channel);
          const int64_t from = std::max(begin, channel * group), to = std::min(end, (channel + 1) * group);
          for (int64_t i = from; i < to; ++i) elements.finish(i, keep);
        }
      });
}

// The same where channels lie next to each other: elements of the rows [begin, end), `group` of them an
// image.
template <class bits_t, class elements_t>
inline void dropout_channels_last(const Work& work, int64_t begin, int64_t end) {
  const elements_t elements(work);
  const int64_t channels = work.channels;
  std::vector<uint8_t> keep(channels);
  for (int64_t row = begin; row < end;) {
    const int64_t image = row / work.group, stop = std::min(end, (image + 1) * work.group);
    for_decisions<bits_t>(work, image * channels, (image + 1) * channels,
                          [&](int64_t first, int64_t last, auto keeps) {
                            for (int64_t i = first; i < last; ++i) keep[i - image * channels] = keeps(i);
                          });
    for (; row < stop; ++row) {
      for (int64_t c = 0; c < channels; ++c) elements.finish(row * channels + c, keep[c] != 0);
    }
  }
}

template <class bits_t, class elements_t>
inline void dropout_range(const Work& work, int64_t begin, int64_t end) {
  if (work.channels > 0) return dropout_channels_last<bits_t, elements_t>(work, begin, end);
  if (work.group > 1) return dropout_groups<bits_t, elements_t>(work, begin, end);
  const elements_t elements(work);
  for_decisions<bits_t>(work, begin, end, [&](int64_t first, int64_t last, auto keeps) {
    for (int64_t i = first; i < last; ++i) elements.finish(i, keeps(i));
  });
}

// Elements [begin, end) in memory order, or rows of channels.
template <class elements_t>
FASTDL_VECTOR_CLONES void run_range(const Work& work, int64_t begin, int64_t end) {
  work.rule.wide ? dropout_range<uint32_t, elements_t>(work, begin, end)
                 : dropout_range<uint16_t, elements_t>(work, begin, end);
}

// output = mask · scale · input + residual. Tensors of other strides go through copies.
void run(Work work, const Tensor& input, const optional<Tensor>& sign, const optional<Tensor>& residual,
         Tensor& output) {
  auto format = torch::headeronly::MemoryFormat::Contiguous;
  if (work.group > 1 && is_channels_last(input) &&
      work.group * input.size(0) * input.size(1) == input.numel()) {
    format = channels_last_format(input);
    work.channels = input.size(1);
  }
  const auto dense = [&](const optional<Tensor>& t) {
    return t ? optional<Tensor>(torch::stable::contiguous(*t, format)) : std::nullopt;
  };
  const optional<Tensor> in = dense(input), gate = dense(sign), res = dense(residual);
  Tensor out = torch::stable::contiguous(output, format);
  work.input = in->const_data_ptr();
  work.sign = gate ? gate->const_data_ptr() : nullptr;
  work.residual = res ? res->const_data_ptr() : nullptr;
  work.output = out.mutable_data_ptr();
  const int64_t each = std::max<int64_t>(1, work.channels), count = input.numel() / each;
  dispatch_floating("dropout", input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / each),
                                [&](int64_t begin, int64_t end) {
                                  if (gate) {
                                    res ? run_range<Elements<scalar_t, true, true>>(work, begin, end)
                                        : run_range<Elements<scalar_t, true, false>>(work, begin, end);
                                  } else {
                                    res ? run_range<Elements<scalar_t, false, true>>(work, begin, end)
                                        : run_range<Elements<scalar_t, false, false>>(work, begin, end);
                                  }
                                });
  });
  if (out.const_data_ptr() != output.const_data_ptr()) torch::stable::copy_(output, out);
}

template <class... Args>
Tensor call(const char* op, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Smooth activations are torch's, by their code (fastdl/activation.py). Detached: gradients belong to the
// caller.
Tensor activate(const Tensor& input, int64_t activation) {
  const Tensor x = call("aten::detach", input);
  if (activation == 3) return call("aten::silu", x);
  if (activation >= 4) return call("aten::gelu", x, std::string(activation == 4 ? "none" : "tanh"));
  return x;
}

Tensor activation_backward(const Tensor& grad_output, const Tensor& input, int64_t activation) {
  const Tensor grad = call("aten::detach", grad_output), x = call("aten::detach", input);
  if (activation == 3) return call("aten::silu_backward", grad, x);
  if (activation >= 4) {
    return call("aten::gelu_backward", grad, x, std::string(activation == 4 ? "none" : "tanh"));
  }
  return grad;
}

bool rectifies(int64_t activation) { return activation == 1 || activation == 2; }

Work work_of(const Tensor& seed, double p, int64_t activation, int64_t group) {
  Work work{};
  work.slope = activation == 2 ? 0.01 : 0.0;
  work.scale = KeepRule::scale(p);
  work.seed = uint64_t(*seed.const_data_ptr<int64_t>());
  work.rule = KeepRule::of(p);
  work.group = group;
  return work;
}

void run_forward(const Tensor& input, const optional<Tensor>& residual, const Tensor& seed, double p,
                 int64_t activation, int64_t group, Tensor& output) {
  const Tensor activated = activate(input, activation);
  const optional<Tensor> sign = rectifies(activation) ? optional<Tensor>(activated) : std::nullopt;
  run(work_of(seed, p, activation, group), activated, sign, residual, output);
}

}  // namespace

// input (any shape and strides), residual like input, seed (1) int64 -> output like input.
Tensor dropout_cpu(const Tensor& input, const optional<Tensor>& residual, const Tensor& seed, double p,
                   int64_t activation, int64_t group) {
  check_dropout(input, seed, p, activation, group);
  if (residual) check_dropout_like("residual", *residual, input);
  Tensor output = torch::stable::empty_like(input);
  run_forward(input, residual, seed, p, activation, group, output);
  return output;
}

void dropout_in_place_cpu(Tensor input, const optional<Tensor>& residual, const Tensor& seed, double p,
                          int64_t activation, int64_t group) {
  check_dropout(input, seed, p, activation, group);
  if (residual) check_dropout_like("residual", *residual, input);
  check_dropout_in_place(input, residual);
  run_forward(input, residual, seed, p, activation, group, input);
}

// grad_output like input -> grad_input like input: the activation's derivative at input under the same mask.
Tensor dropout_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& seed, double p,
                            int64_t activation, int64_t group) {
  check_dropout(input, seed, p, activation, group);
  check_dropout_like("grad_output", grad_output, input);
  Tensor grad_input = torch::stable::empty_like(input);
  const Tensor grad = activation_backward(grad_output, input, activation);
  const optional<Tensor> sign = rectifies(activation) ? optional<Tensor>(input) : std::nullopt;
  run(work_of(seed, p, activation, group), grad, sign, std::nullopt, grad_input);
  return grad_input;
}

FASTDL_CPU_LIBRARY(m) {
  m.impl("dropout", TORCH_BOX(&dropout_cpu));
  m.impl("dropout_", TORCH_BOX(&dropout_in_place_cpu));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward_cpu));
}

}  // namespace fastdl
