// Dropout on the device: pointers, sizes, dtype tag, stream.
#pragma once
#include <cstdint>
#include <vector>

namespace fastdl::dropout {

enum class Dtype { kFloat, kDouble, kHalf, kBfloat16 };

// The tensors of a call. `other` may be absent: forward it is the residual, backward the activation's input.
enum Operand { kInput, kOther, kOutput, kOperands };

// A dimension of all operands; strides in elements.
struct Dimension {
  int64_t size, stride[kOperands];
};

struct Arguments {
  const void* input;             // backward: grad_output
  const void* other;             // or null
  void* output;                  // may be the input, or the residual
  std::vector<Dimension> shape;  // outermost first; none empty
  const int64_t* seed;           // on the device
  double p;
  int64_t activation;  // a code of fastdl/activation.py
  int64_t group;       // consecutive elements, in row-major order, that share a decision
  bool backward;
};

// forward:  output = mask / (1 - p) * activation(input) + other
// backward: output = mask / (1 - p) * input * activation'(other)
// Returns an error text, or null when the launch was accepted.
const char* dropout(const Arguments& arguments, Dtype dtype, void* stream);

}  // namespace fastdl::dropout
