// The update rules, one functor each, shared by the CPU op and the CUDA kernel. Plain C++.
// A rule sees one element: parameter p, gradient g (after clip, L1 and L2), and its kStates states in the
// order of fastdl/optim/<rule>.py. T is the arithmetic type: float, or double for float64 parameters. The
// operations and their order are those of torch's for-loop implementation, fused multiply-adds included.
#pragma once
#include <cmath>
#include "optim/options.h"
#include "philox.cuh"  // FASTDL_HOST_DEVICE

namespace fastdl::optim {

template <class T>
FASTDL_HOST_DEVICE T lerp(T a, T b, T weight) {  // as torch.lerp: exact at both ends
  return weight < T(0.5) ? std::fma(weight, b - a, a) : std::fma(weight - T(1), b - a, b);
}

FASTDL_HOST_DEVICE double power(double base,
                                double exponent) {  // of whole exponents; the same bits everywhere
  double result = 1;
  for (uint64_t e = uint64_t(exponent); e != 0; e >>= 1, base *= base)
    result = e & 1 ? result * base : result;
  return result;
}

// Stochastic gradient descent; Sutskever et al. 2013, in torch's form: b = mu b + (1 - dampening) g, p -= lr
// b.
template <class T, bool kMomentum>
struct Sgd {
  static constexpr int kStates = kMomentum;     // momentum_buffer
  T minus_lr, momentum, gain, nesterov, first;  // no bools: their loads would be branches, which stay scalar

  FASTDL_HOST_DEVICE Sgd(const Options& o, double lr, double)
      : minus_lr(-lr), momentum(o.momentum), gain(1 - o.dampening), nesterov(o.nesterov), first(o.first) {}

  FASTDL_HOST_DEVICE void operator()(T& p, T g, T* state) const {
    if constexpr (kMomentum) {
      T& buffer = state[0];
      // Both values, then a choice: vector instructions have no branches.
      const T moved = std::fma(g, gain, buffer * momentum);
      buffer = first != 0 ? g : moved;
      const T ahead = std::fma(buffer, momentum, g);
      g = nesterov != 0 ? ahead : buffer;
    }
    p = std::fma(g, minus_lr, p);
  }
};

// Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018); AdamW differs in Shared::keep alone.
template <class T, bool kAmsgrad>
struct Adam {
  static constexpr int kStates = 2 + kAmsgrad;  // exp_avg, exp_avg_sq, max_exp_avg_sq
  T weight1, beta2, weight2, minus_step_size, root_correction2, eps;

  FASTDL_HOST_DEVICE Adam(const Options& o, double lr, double step)
      : weight1(1 - o.beta1),
        beta2(o.beta2),
        weight2(1 - o.beta2),
        minus_step_size(-lr / (1 - power(o.beta1, step))),
        root_correction2(std::sqrt(1 - power(o.beta2, step))),
        eps(o.eps) {}

  FASTDL_HOST_DEVICE void operator()(T& p, T g, T* state) const {
    const T m = state[0] = lerp(state[0], g, weight1);
    T v = state[1] = std::fma(weight2 * g, g, state[1] * beta2);
    if constexpr (kAmsgrad) v = state[2] = v < state[2] ? state[2] : v;  // NaN in v stays
    p += minus_step_size * m / (std::sqrt(v) / root_correction2 + eps);
  }
};

// RMSprop (Hinton 2012), centered as in Graves 2013: the root of the variance instead of the raw second
// moment.
template <class T, bool kCentered, bool kMomentum>
struct RmsProp {
  static constexpr int kStates = 1 + kCentered + kMomentum;  // square_avg, grad_avg, momentum_buffer
  T alpha, weight, eps, momentum, minus_lr;

  FASTDL_HOST_DEVICE RmsProp(const Options& o, double lr, double)
      : alpha(o.alpha), weight(1 - o.alpha), eps(o.eps), momentum(o.momentum), minus_lr(-lr) {}

  FASTDL_HOST_DEVICE void operator()(T& p, T g, T* state) const {
    T v = state[0] = std::fma(weight * g, g, state[0] * alpha);
    if constexpr (kCentered) {
      const T mean = state[1] = lerp(state[1], g, weight);
      v = std::fma(-mean, mean, v);
    }
    const T root = std::sqrt(v) + eps;
    if constexpr (kMomentum) {
      T& buffer = state[1 + kCentered];
      buffer = buffer * momentum + g / root;
      p = std::fma(buffer, minus_lr, p);
    } else {
      p += minus_lr * g / root;
    }
  }
};

// Adagrad (Duchi et al. 2011), with torch's decay of the learning rate.
template <class T>
struct Adagrad {
  static constexpr int kStates = 1;  // sum
  T minus_lr, eps;

  FASTDL_HOST_DEVICE Adagrad(const Options& o, double lr, double step)
      : minus_lr(-lr / (1 + (step - 1) * o.lr_decay)), eps(o.eps) {}

  FASTDL_HOST_DEVICE void operator()(T& p, T g, T* state) const {
    const T sum = state[0] = std::fma(g, g, state[0]);
    p += minus_lr * g / (std::sqrt(sum) + eps);
  }
};

// What every rule shares, before and after it. kL1: may have an L1 penalty, a quarter of the instructions.
template <class T, bool kL1 = true>
struct Shared {
  T scale, l1, l2, keep, threshold;  // scale: unscale, clip and sign (maximize) in one factor

  FASTDL_HOST_DEVICE Shared(const Options& o, double lr, double grad_factor)
      : scale(o.maximize ? -grad_factor : grad_factor),
        l1(o.proximal ? 0 : o.l1),
        l2(o.decoupled ? 0 : o.weight_decay),
        keep(o.decoupled ? 1 - lr * o.weight_decay : 1),
        threshold(o.proximal ? lr * o.l1 : 0) {}
  FASTDL_HOST_DEVICE explicit Shared(const Shared<T, !kL1>& s)
      : scale(s.scale), l1(s.l1), l2(s.l2), keep(s.keep), threshold(s.threshold) {}
  FASTDL_HOST_DEVICE bool has_l1() const { return l1 != 0 || threshold != 0; }

  template <class Rule>
  FASTDL_HOST_DEVICE void operator()(const Rule& rule, T& p, T g, T* state) const {
    g *= scale;
    if constexpr (kL1) g += l1 * T((p > 0) - (p < 0));
    const T decayed = std::fma(p, l2, g);
    g = l2 != 0 ? decayed : g;  // 0 * inf is not 0
    p *= keep;
    rule(p, g, state);
    if constexpr (kL1) {
      const T shrunk = std::fabs(p) - threshold;  // soft threshold: the proximal map of threshold * |p|
      p = std::copysign(shrunk < 0 ? T(0) : shrunk, p);
    }
  }
};

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
// Calls f with the rule's type for these options: with_rule<float>(kAdam, options, [&]<class Rule>() {...}).
template <class T, class F>
FASTDL_HOST_DEVICE void with_rule(RuleName name, const Options& o, F&& f) {
  switch (name) {
    case kSgd:
      return o.momentum != 0 ? f.template operator()<Sgd<T, true>>() : f.template operator()<Sgd<T, false>>();
    case kAdam:
      return o.amsgrad ? f.template operator()<Adam<T, true>>() : f.template operator()<Adam<T, false>>();
    case kRmsProp:
      if (o.centered) {
        return o.momentum > 0 ? f.template operator()<RmsProp<T, true, true>>()
                              : f.template operator()<RmsProp<T, true, false>>();
      }
      return o.momentum > 0 ? f.template operator()<RmsProp<T, false, true>>()
                            : f.template operator()<RmsProp<T, false, false>>();
    case kAdagrad:
      return f.template operator()<Adagrad<T>>();
  }
}

}  // namespace fastdl::optim
