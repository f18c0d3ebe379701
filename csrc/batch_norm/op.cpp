// The ops batch_norm_forward and batch_norm_backward on the device.
#include "batch_norm/glue.h"

namespace fastdl::batch_norm {

// See fastdl/batch_norm.py for the schemas.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward(
    const Tensor& input, const optional<Tensor>& residual, const optional<Tensor>& weight,
    const optional<Tensor>& bias, const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
    const optional<Tensor>& num_batches_tracked, const optional<Tensor>& seed, bool training,
    optional<double> momentum, double eps, int64_t activation, double p, bool save_mask) {
  const ForwardCall call(input, residual, weight, bias, running_mean, running_var, num_batches_tracked, seed,
                         training, momentum, eps, activation, p, save_mask);
  call.run("batch_norm", input);
  return {call.output, call.save_mean, call.save_invstd, call.mask};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(
    const Tensor& grad_output, const Tensor& input, const optional<Tensor>& residual,
    const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& save_mean,
    const Tensor& save_invstd, const optional<Tensor>& mask, const optional<Tensor>& seed, bool training,
    double /*eps*/, int64_t activation, double p, bool need_input, bool need_residual, bool need_params) {
  const BatchNormLayout layout(input);
  Operands operands(input, layout);
  BackwardArguments a{};
  a.dtype = tag(input.scalar_type()), a.size = sizes_of(layout), a.training = training;
  STD_TORCH_CHECK(save_mean.is_contiguous() && save_invstd.is_contiguous() && save_mean.numel() == layout.C &&
                      save_invstd.numel() == layout.C,
                  "batch_norm: the saved statistics must be contiguous, of shape (C,)");
  const DeviceGuard guard(input);
  a.grad_output = operands(grad_output, "grad_output"), a.input = operands(input, "input");
  a.residual = operands(residual, "residual");
  a.weight = channels_of(weight, input, "weight"), a.bias = channels_of(bias, input, "bias");
  a.save_mean = save_mean.const_data_ptr<double>(), a.save_invstd = save_invstd.const_data_ptr<double>();
  if (mask && mask->numel() > 0) a.mask = mask->const_data_ptr<uint8_t>();
  a.epilogue = epilogue_of(activation, seed, p);
  const ScalarType parameter = weight ? weight->scalar_type()
                               : bias ? bias->scalar_type()
                                      : input.scalar_type();
  const Tensor grad_input =
      need_input ? new_output(input, layout) : new_values(input, 0, input.scalar_type());
  const Tensor grad_residual =
      need_residual ? new_output(input, layout) : new_values(input, 0, input.scalar_type());
  const Tensor grad_weight = new_values(input, need_params ? layout.C : 0, parameter);
  const Tensor grad_bias = new_values(input, need_params ? layout.C : 0, parameter);
  if (need_input) a.grad_input = grad_input.data_ptr();
  if (need_residual) a.grad_residual = grad_residual.data_ptr();
  if (need_params) {
    a.grad_weight = channels_of(grad_weight, input, "grad_weight");
    a.grad_bias = channels_of(grad_bias, input, "grad_bias");
  }
  const Tensor workspace = new_values(input, int64_t(backward_workspace(a)), ScalarType::Byte);
  check_launch(backward(a, workspace.data_ptr(), current_stream(input)), "batch_norm");
  return {grad_input, grad_residual, grad_weight, grad_bias};
}

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace fastdl::batch_norm
