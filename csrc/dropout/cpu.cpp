// dropout on CPU tensors: activations are torch's own, then one vectorised pass masks, scales and adds.
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

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

// What a pass reads and writes: contiguous tensors of one dtype, input and output may be the same. Where
// `sign` is not above 0 the input counts `slope` times: relu and leaky relu, whose gradient has another sign
// than input.
struct Work {
  const void *input, *sign, *residual;
  void* output;
  double slope, scale;
  uint64_t seed;
  KeepRule rule;
  int64_t group;
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

// Elements [begin, end); bits_t is what one decision consumes.
template <class bits_t, class elements_t>
inline void dropout_range(const Work& work, int64_t begin, int64_t end) {
  constexpr int64_t kPerCall = 16 / sizeof(bits_t), kBlock = kCalls * kPerCall;
  const elements_t elements(work);
  const bits_t threshold = bits_t(work.rule.threshold);
  bits_t bits[kBlock] = {};  // p = 0 keeps all of them as they are
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    if (threshold > 0) random_bits(work.seed, block / kPerCall, bits);
    const int64_t first = block < begin ? begin : block, last = block + kBlock < end ? block + kBlock : end;
    for (int64_t i = first; i < last; ++i) elements.finish(i, bits[i - block] >= threshold);
  }
}

// One decision for `group` consecutive elements: whole channels are kept or dropped.
template <class elements_t>
inline void dropout_groups(const Work& work, int64_t begin, int64_t end) {
  const elements_t elements(work);
  for (int64_t i = begin; i < end;) {
    const int64_t channel = i / work.group, next = (channel + 1) * work.group, last = next < end ? next : end;
    const bool keep = keep_element(work.seed, channel, work.rule);
    for (; i < last; ++i) elements.finish(i, keep);
  }
}

template <class elements_t>
FASTDL_VECTOR_CLONES void run_range(const Work& work, int64_t begin, int64_t end) {
  if (work.group > 1 || work.rule.none) {
    dropout_groups<elements_t>(work, begin, end);
  } else if (work.rule.wide) {
    dropout_range<uint32_t, elements_t>(work, begin, end);
  } else {
    dropout_range<uint16_t, elements_t>(work, begin, end);
  }
}

// output = mask · scale · input + residual. Strided tensors go through row-major copies.
void run(Work work, const Tensor& input, const optional<Tensor>& sign, const optional<Tensor>& residual,
         Tensor& output) {
  const auto contiguous = [](const optional<Tensor>& t) {
    return t ? optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
  };
  const optional<Tensor> in = contiguous(input), gate = contiguous(sign), res = contiguous(residual);
  Tensor out = output.is_contiguous() ? output : torch::stable::contiguous(output);
  work.input = in->const_data_ptr();
  work.sign = gate ? gate->const_data_ptr() : nullptr;
  work.residual = res ? res->const_data_ptr() : nullptr;
  work.output = out.mutable_data_ptr();
  dispatch_floating("dropout", input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    torch::stable::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
      if (gate) {
        res ? run_range<Elements<scalar_t, true, true>>(work, begin, end)
            : run_range<Elements<scalar_t, true, false>>(work, begin, end);
      } else {
        res ? run_range<Elements<scalar_t, false, true>>(work, begin, end)
            : run_range<Elements<scalar_t, false, false>>(work, begin, end);
      }
    });
  });
  if (!output.is_contiguous()) torch::stable::copy_(output, out);
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
