// What the batch_norm kernels are told of a call: plain structs, shared by both layouts.
#pragma once
#include <cstdint>

#include "activation.h"
#include "philox.cuh"

namespace fastdl::batch_norm {

constexpr int kOctet = 8;  // elements of a byte of mask, and of a Philox call

enum class Dtype : int32_t { kFloat32, kFloat64, kFloat16, kBfloat16 };

// Element (n, c, s) of outputs lies at (n * C + c) * S + s, channels last at (n * S + s) * C + c; its logical
// index, which names its random bits, is (n * C + c) * S + s in both.
struct Sizes {
  int64_t n, c, s;
  bool channels_last;
  FASTDL_HOST_DEVICE int64_t count() const { return n * s; }  // values of a channel
};

// An operand that is read: element (n, c, s) lies at n * stride_n + c * stride_c + s * stride_s.
struct Operand {
  const void* data;  // null: there is none
  int64_t stride_n, stride_c, stride_s;
};

// (C,) values of any floating dtype, `stride` elements apart.
struct Channels {
  void* data;  // null: there are none
  Dtype dtype;
  int64_t stride;
};

// What follows normalization: + residual, activation, dropout.
struct Epilogue {
  Activation activation;
  const int64_t* seed;  // null: no dropout
  KeepRule keep;
  double keep_scale;  // of a kept element
};

// Rows of the memory order: N * C of S elements, channels last N * S of C. The mask has a bit an element: set
// where ReLU passes (not v <= 0), LeakyReLU has slope 1 (v > 0). Bit and byte of element i of row r, of
// `length`: e = r * length + i, bit e % 8 of byte e / 8 + (length % 8 ? r : 0), so that rows share no byte;
// channels last bit i % 8 of byte r * ceil(length / 8) + i / 8.
inline int64_t mask_bytes(int64_t rows, int64_t length) {
  return rows * ((length + 7) / 8 + (length % 8 ? 1 : 0));
}

// Moments of blocks of `rows` rows (the last may have fewer) of an (N, C) input, by whoever wrote it.
struct GivenMoments {
  const void *mean, *m2;  // (blocks, C) each, of the accumulator's type; null: none
  int64_t blocks, rows;
};

struct ForwardArguments {
  Dtype dtype;  // of input, residual, output
  Sizes size;
  bool training;
  double eps, momentum;
  bool cumulative;  // the factor is 1 / num_batches_tracked instead of momentum
  Operand input, residual;
  void* output;
  uint8_t* mask;  // null: not wanted
  Channels weight, bias, running_mean, running_var;
  int64_t* num_batches_tracked;  // null: none. Training increments it.
  double *save_mean, *save_invstd;
  Epilogue epilogue;
  GivenMoments given;  // training: instead of reading the input twice
};

// grad_input is (g - mean(g) - normalized * mean(g * normalized)) * invstd * weight, in evaluation without
// the means; g is grad_output through dropout and activation, grad_bias its sum, grad_weight that of
// g * normalized.
struct BackwardArguments {
  Dtype dtype;
  Sizes size;
  bool training;
  Operand grad_output, input, residual;
  const uint8_t* mask;               // null: the activation's branch is recomputed
  void *grad_input, *grad_residual;  // null: not wanted
  Channels weight, bias;
  const double *save_mean, *save_invstd;
  Channels grad_weight, grad_bias;
  Epilogue epilogue;
};

}  // namespace fastdl::batch_norm
