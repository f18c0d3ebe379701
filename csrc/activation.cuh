// Activations that kernels fuse, and their gradients; codes as in fastdl/activation.py.
#pragma once
#include "simt.h"

namespace fastdl {

enum class Activation : int32_t { kNone, kRelu, kLeakyRelu, kSilu, kGelu, kGeluTanh };

FASTDL_DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
FASTDL_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// Each has value(x) and gradient(grad, x): grad times the derivative at x. T is float or double.
struct Identity {
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x;
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T) {
    return grad;
  }
};

// As torch does, NaN passes: it is not <= 0.
struct Relu {
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x <= 0 ? T(0) : x;
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    return x <= 0 ? T(0) : grad;
  }
};

struct LeakyRelu {
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x > 0 ? x : x * T(0.01);
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    return x > 0 ? grad : grad * T(0.01);
  }
};

// x sigmoid(x)
struct Silu {
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x * sigmoid(x);
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    const T s = sigmoid(x);
    return grad * s * (1 + x * (1 - s));
  }
};

// x Phi(x), Phi the standard normal distribution (Hendrycks and Gimpel 2016)
struct Gelu {
  template <class T>
  FASTDL_DEVICE static T distribution(T x) {
    return T(0.5) * (1 + erf(x * T(0.70710678118654752440)));
  }
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x * distribution(x);
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    const T density = T(0.39894228040143267794) * exp(T(-0.5) * x * x);
    return grad * (distribution(x) + x * density);
  }
};

// Its approximation by tanh. (1 + tanh(u)) / 2 = sigmoid(2 u), which does not cancel.
struct GeluTanh {
  static constexpr double kTwice = 1.59576912160573071176, kCubic = 0.044715;  // 2 sqrt(2 / pi)
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    return x * sigmoid(T(kTwice) * (x + T(kCubic) * x * x * x));
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    const T s = sigmoid(T(kTwice) * (x + T(kCubic) * x * x * x));
    return grad * s * (1 + x * (1 - s) * T(kTwice) * (1 + T(3 * kCubic) * x * x));
  }
};

// Calls f with the activation's type; loops belong inside f, so that the choice is made once.
template <class F>
FASTDL_DEVICE void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kNone:
      return f(Identity());
    case Activation::kRelu:
      return f(Relu());
    case Activation::kLeakyRelu:
      return f(LeakyRelu());
    case Activation::kSilu:
      return f(Silu());
    case Activation::kGelu:
      return f(Gelu());
    case Activation::kGeluTanh:
      return f(GeluTanh());
  }
}

}  // namespace fastdl
