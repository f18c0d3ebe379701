// The ops dropout, dropout_ and dropout_backward on the device.
#include "dropout/api.h"
#include "dropout/check.h"

namespace fastdl::dropout {
namespace {

Dtype tag(ScalarType dtype) {
  if (dtype == ScalarType::Double) return Dtype::kDouble;
  if (dtype == ScalarType::Half) return Dtype::kHalf;
  return dtype == ScalarType::BFloat16 ? Dtype::kBfloat16 : Dtype::kFloat;
}

// The shape that all operands share; an absent one takes the output's strides.
std::vector<Dimension> shape_of(const Tensor& input, const optional<Tensor>& other, const Tensor& output) {
  std::vector<Dimension> shape;
  for (int64_t d = 0; d < input.dim(); ++d) {
    shape.push_back(
        {input.size(d), {input.stride(d), (other ? *other : output).stride(d), output.stride(d)}});
  }
  return shape;
}

struct Options {
  const Tensor& seed;
  double p;
  int64_t activation, group;
};

void run(const Tensor& input, const optional<Tensor>& other, const Options& options, bool backward,
         Tensor& output) {
  if (input.numel() == 0) return;
  Arguments a{};
  a.input = input.const_data_ptr();
  a.other = other ? other->const_data_ptr() : nullptr;
  a.output = output.mutable_data_ptr();
  a.shape = shape_of(input, other, output);
  a.seed = options.seed.const_data_ptr<int64_t>();
  a.p = options.p, a.activation = options.activation, a.group = options.group, a.backward = backward;
  check_launch(dropout(a, tag(input.scalar_type()), current_stream(input)), "dropout");
}

void check(const Tensor& input, const Options& options) {
  check_dropout(input, options.seed, options.p, options.activation, options.group);
  dispatch_floating("dropout", input.scalar_type(), [](auto) {});
}

}  // namespace

// input (any shape and strides), residual like input, seed (1) int64 -> output like input.
Tensor forward(const Tensor& input, const optional<Tensor>& residual, const Tensor& seed, double p,
               int64_t activation, int64_t group) {
  const Options options{seed, p, activation, group};
  check(input, options);
  if (residual) check_dropout_like("residual", *residual, input);
  const DeviceGuard guard(input);
  Tensor output = torch::stable::empty_like(input);
  run(input, residual, options, false, output);
  return output;
}

void in_place(Tensor input, const optional<Tensor>& residual, const Tensor& seed, double p,
              int64_t activation, int64_t group) {
  const Options options{seed, p, activation, group};
  check(input, options);
  if (residual) check_dropout_like("residual", *residual, input);
  check_dropout_in_place(input, residual);
  const DeviceGuard guard(input);
  run(input, residual, options, false, input);
}

// grad_output like input -> grad_input like input: the activation's derivative at input under the same mask.
Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& seed, double p,
                int64_t activation, int64_t group) {
  const Options options{seed, p, activation, group};
  check(input, options);
  check_dropout_like("grad_output", grad_output, input);
  const DeviceGuard guard(input);
  Tensor grad_input = torch::stable::empty_like(input);
  run(grad_output, input, options, true, grad_input);
  return grad_input;
}

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("dropout", TORCH_BOX(&forward));
  m.impl("dropout_", TORCH_BOX(&in_place));
  m.impl("dropout_backward", TORCH_BOX(&backward));
}

}  // namespace fastdl::dropout
