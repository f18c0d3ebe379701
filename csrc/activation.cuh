// Activations that kernels fuse, and their gradients.
#pragma once
#include "activation.h"
#include "simt.h"

namespace fastdl {

FASTDL_DEVICE float reciprocal(float x) { return __fdividef(1.0f, x); }
FASTDL_DEVICE double reciprocal(double x) { return 1.0 / x; }
FASTDL_DEVICE float sigmoid(float x) { return reciprocal(1.0f + __expf(-x)); }
FASTDL_DEVICE double sigmoid(double x) { return reciprocal(1.0 + exp(-x)); }

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
  // Phi(x), and bell = exp(-x^2 / 2), which its derivative shares. In float exp(z^2) erfc(z) is a polynomial
  // of 1 / (1 + 0.4 z), to 3e-8 over 0 <= z <= 9.5: the registers of erfcf are too many beside vectors.
  FASTDL_DEVICE static double distribution(double x, double& bell) {
    bell = exp(-0.5 * x * x);
    return 0.5 * erfc(x * -0.70710678118654752440);
  }
  FASTDL_DEVICE static float distribution(float x, float& bell) {
    const float z = fabsf(x) * 0.707106781f, t = reciprocal(1.0f + 0.4f * z);
    bell = __expf(-z * z);
    float y = 0.0272114147f;
    y = y * t - 0.0667921007f, y = y * t - 0.0821462423f, y = y * t + 0.300068229f;
    y = y * t - 0.0884797797f, y = y * t + 0.279177845f, y = y * t + 0.173822105f;
    y = y * t + 0.232115358f, y = y * t + 0.224992186f, y = y * t + 3.10059368e-05f;
    const float tail = 0.5f * y * bell;
    return x < 0 ? tail : 1 - tail;
  }
  template <class T>
  FASTDL_DEVICE static T value(T x) {
    T bell;
    return x * distribution(x, bell);
  }
  template <class T>
  FASTDL_DEVICE static T gradient(T grad, T x) {
    T bell;
    const T phi = distribution(x, bell);
    return grad * (phi + x * bell * T(0.39894228040143267794));
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
