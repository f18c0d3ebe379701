// Gradients of linear layers on the device.
#include <tuple>
#include "gemm/glue.h"

namespace fastdl::gemm {
namespace {

// What a layer saved for the gradient of its activation, of grad's shape.
optional<Tensor> packed_saved(const char* op, const optional<Tensor>& saved, int64_t activation,
                              const Tensor& like, int64_t count) {
  STD_TORCH_CHECK(saved || activation == 0, op, ": an activation needs what was saved");
  if (!saved || activation == 0) return std::nullopt;
  check_like(op, "saved", *saved, like);
  STD_TORCH_CHECK(saved->numel() == count, op, ": saved must have the gradient's ", count, " elements, got ",
                  saved->numel());
  return torch::stable::contiguous(*saved);
}

}  // namespace

// grad_output (*, N), saved (*, N): the preactivation, or for relu and leaky_relu without residual the
// output, seed (1) int64 -> grad_preactivation (*, N), grad_bias (N), or (0) unless `bias`.
std::tuple<Tensor, Tensor> linear_backward(const Tensor& grad_output, const optional<Tensor>& saved,
                                           const optional<Tensor>& seed, int64_t activation, double p,
                                           bool bias) {
  constexpr const char* kOp = "linear_backward";
  STD_TORCH_CHECK(grad_output.dim() >= 1, "linear_backward: grad_output must have a dimension of features");
  const Dropout dropout(kOp, seed, p, grad_output);
  const DeviceGuard guard(grad_output);
  const Tensor rows = as_packed_rows(grad_output);
  std::vector<int64_t> shape(grad_output.sizes().begin(), grad_output.sizes().end());
  Tensor grad = torch::stable::new_empty(grad_output, shape);
  const int64_t n = rows.size(1);
  Tensor grad_bias = torch::stable::new_empty(grad_output, {bias ? n : 0});
  ActivationBackward b{};
  b.rows = rows.size(0), b.n = n, b.dtype = tag(kOp, grad_output.scalar_type());
  b.activation = int32_t(activation);
  b.grad_output = rows.const_data_ptr(), b.grad_row = rows.stride(0);
  const optional<Tensor> kept = packed_saved(kOp, saved, activation, grad_output, grad_output.numel());
  if (kept) b.saved = kept->const_data_ptr();
  b.seed = dropout.seed, b.keep = dropout.keep, b.keep_scale = dropout.scale;
  b.grad_input = grad.mutable_data_ptr();
  if (bias) b.column_sums = grad_bias.mutable_data_ptr();
  if (b.rows == 0 || n == 0) {
    if (bias) torch::stable::zero_(grad_bias);
    return {grad, grad_bias};
  }
  b.aligned = ((b.grad_row | n) * size_of(b.dtype)) % 16 == 0 && is_aligned(b.grad_output) &&
              is_aligned(b.saved) && is_aligned(b.grad_input);
  const int64_t bytes = activation_backward_workspace_bytes(b);
  optional<Tensor> workspace;
  if (bytes > 0) workspace = bytes_like(grad_output, bytes);
  check_launch(
      launch_activation_backward(b, workspace ? workspace->data_ptr() : nullptr, current_stream(grad_output)),
      kOp);
  return {grad, grad_bias};
}

// grad_output (M, N) and input (M, K), K > 0 -> grad_weight (N, K) = grad_output^T input, and grad_bias (N),
// whose sums are taken beside the product: grad_output is read once.
std::tuple<Tensor, Tensor> linear_grad_weight(const Tensor& grad_output, const Tensor& input,
                                              int64_t precision) {
  constexpr const char* kOp = "linear_grad_weight";
  STD_TORCH_CHECK(grad_output.dim() == 2 && input.dim() == 2 && grad_output.size(0) == input.size(0), kOp,
                  ": grad_output and input must be matrices of as many rows");
  check_like(kOp, "input", input, grad_output);
  const int64_t n = grad_output.size(1), k = input.size(1);
  STD_TORCH_CHECK(k > 0, kOp, ": input must have columns, got shape (", input.size(0), ", 0)");
  const DeviceGuard guard(input);
  Tensor grad_weight = torch::stable::new_empty(input, {n, k});
  Tensor grad_bias = torch::stable::new_empty(input, {n});
  Problem p = problem_of(kOp, grad_weight, matrix(grad_output).transposed(), matrix(input), n, k,
                         input.size(0), precision);
  p.a_sums = grad_bias.mutable_data_ptr();
  run(kOp, p, input);
  return {grad_weight, grad_bias};
}

// grad_output (M, N), weight (N, K), and of the layer before, whose output was dropout(activation(.)) (M, K):
// saved, seed, activation and p as in linear_backward -> the gradient at that layer's preactivation (M, K),
// and with `bias` the sums of its columns (K), else (0).
std::tuple<Tensor, Tensor> linear_grad_input(const Tensor& grad_output, const Tensor& weight,
                                             const optional<Tensor>& saved, const optional<Tensor>& seed,
                                             int64_t activation, double p, bool bias, int64_t precision) {
  constexpr const char* kOp = "linear_grad_input";
  STD_TORCH_CHECK(grad_output.dim() == 2 && weight.dim() == 2 && grad_output.size(1) == weight.size(0), kOp,
                  ": grad_output (M, N) and weight (N, K) must be matrices");
  check_like(kOp, "weight", weight, grad_output);
  const Dropout dropout(kOp, seed, p, grad_output);
  const DeviceGuard guard(grad_output);
  const int64_t m = grad_output.size(0), n = weight.size(1);
  Tensor grad = torch::stable::new_empty(grad_output, {m, n});
  Tensor grad_bias = torch::stable::new_empty(grad_output, {bias ? n : 0});
  if (m == 0 || n == 0) {
    if (bias) torch::stable::zero_(grad_bias);
    return {grad, grad_bias};
  }
  Problem problem =
      problem_of(kOp, grad, matrix(grad_output), matrix(weight), m, n, weight.size(0), precision);
  Epilogue& e = problem.epilogue;
  const optional<Tensor> kept = packed_saved(kOp, saved, activation, grad_output, m * n);
  if (kept) e.activation = int32_t(activation), e.saved = kept->const_data_ptr();
  e.seed = dropout.seed, e.keep = dropout.keep, e.keep_scale = dropout.scale;
  if (bias) e.column_sums = &e;  // the plan asks whether, and says how many
  const Plan chosen = planned(problem);
  optional<Tensor> partial;
  if (bias) {
    partial = bytes_like(grad, chosen.row_blocks(m) * n * accumulator_size(problem.dtype));
    e.column_sums = partial->data_ptr();
  }
  run(kOp, problem, chosen, grad);
  if (bias) {
    check_launch(launch_sum_partials(problem.dtype, e.column_sums, grad_bias.mutable_data_ptr(),
                                     chosen.row_blocks(m), n, current_stream(grad)),
                 kOp);
  }
  return {grad, grad_bias};
}

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("linear_grad_weight", TORCH_BOX(&linear_grad_weight));
  m.impl("linear_grad_input", TORCH_BOX(&linear_grad_input));
}

}  // namespace fastdl::gemm
