// Matrix products and Linear on the device: checks, memory, launches.
#include <tuple>
#include "gemm/api.h"
#include "gemm/plan.h"
#include "torch_glue.h"

namespace fastdl::gemm {
namespace {

Dtype tag(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::BFloat16:
      return kBfloat16;
    default:
      STD_TORCH_CHECK(false, op, ": input must be float32, float64, float16 or bfloat16, got ",
                      dtype_name(dtype));
  }
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": ", name,
                  " must have the input's dtype ", dtype_name(input.scalar_type()), ", got ",
                  dtype_name(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " must be on the input's device");
}

Matrix matrix(const Tensor& t) {
  const int64_t d = t.dim();
  return {t.const_data_ptr(), t.stride(d - 2), t.stride(d - 1), d > 2 ? t.stride(0) : 0};
}

// (*, N) as (rows, N): a view where strides allow.
Tensor as_rows(const Tensor& t) {
  const int64_t columns = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
  return t.dim() == 2 ? t : torch::stable::reshape(t, {rows, columns});
}

// The same with adjacent columns.
Tensor as_packed_rows(const Tensor& t) {
  const Tensor rows = as_rows(t);
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : torch::stable::contiguous(rows);
}

Tensor bytes_like(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {&bytes, 1}, ScalarType::Byte);
}

struct Dropout {
  const int64_t* seed = nullptr;
  KeepRule keep{};
  double scale = 1;

  Dropout(const char* op, const optional<Tensor>& tensor, double p, const Tensor& input) {
    if (!tensor) return;
    STD_TORCH_CHECK(tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Long, op,
                    ": seed must be one int64 value");
    STD_TORCH_CHECK(tensor->device() == input.device(), op, ": seed must be on the input's device");
    seed = tensor->const_data_ptr<int64_t>();
    keep = KeepRule::of(p);
    scale = KeepRule::scale(p);
  }
};

// Runs the product unless its output is empty.
void run(const char* op, Problem& p, const Tensor& like) {
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  align(p);
  const Plan chosen = plan(p, machine());
  optional<Tensor> workspace;
  if (chosen.workspace_bytes > 0) workspace = bytes_like(like, chosen.workspace_bytes);
  check_launch(launch_product(p, chosen, workspace ? workspace->data_ptr() : nullptr, current_stream(like)),
               op);
}

Problem problem_of(const char* op, const Tensor& a, const Tensor& b, const Matrix& b_matrix, int64_t n,
                   Tensor& output) {
  const int64_t d = a.dim();
  Problem p{};
  p.m = a.size(d - 2), p.n = n, p.k = a.size(d - 1), p.batch = d > 2 ? a.size(0) : 1;
  p.dtype = tag(op, a.scalar_type());
  p.a = matrix(a), p.b = b_matrix;
  p.output = output.mutable_data_ptr(), p.output_row = n, p.output_batch = p.m * n;
  return p;
}

}  // namespace

// a (M, K) or (B, M, K), b (K, N) or (B, K, N), any strides -> (M, N) or (B, M, N). precision: of float32.
Tensor gemm(const Tensor& a, const Tensor& b, int64_t precision) {
  const int64_t d = a.dim();
  STD_TORCH_CHECK((d == 2 || d == 3) && b.dim() == d,
                  "gemm: a and b must be two matrices or two batches, got ", d, " and ", b.dim(),
                  " dimensions");
  STD_TORCH_CHECK(a.size(d - 1) == b.size(d - 2) && (d == 2 || a.size(0) == b.size(0)),
                  "gemm: a's columns must be b's rows, of equal batches, got ", a.size(d - 1), " and ",
                  b.size(d - 2));
  check_like("gemm", "b", b, a);
  const DeviceGuard guard(a);
  std::vector<int64_t> shape = {a.size(d - 2), b.size(d - 1)};
  if (d == 3) shape.insert(shape.begin(), a.size(0));
  Tensor output = torch::stable::new_empty(a, shape);
  Problem p = problem_of("gemm", a, b, matrix(b), b.size(d - 1), output);
  p.precision = Precision(precision);
  run("gemm", p, a);
  return output;
}

// input (*, K), weight (N, K), bias (N), residual (*, N), seed (1) int64
// -> output (*, N) = dropout(activation(input weight^T + bias)) + residual, preactivation (*, N), or (0)
// unless `save`.
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight,
                                          const optional<Tensor>& bias, const optional<Tensor>& residual,
                                          const optional<Tensor>& seed, int64_t activation, double p,
                                          bool save, int64_t precision) {
  constexpr const char* kOp = "linear";
  STD_TORCH_CHECK(input.dim() >= 1 && weight.dim() == 2 && input.size(input.dim() - 1) == weight.size(1),
                  "linear: weight must have shape (out_features, input.size(-1))");
  const int64_t n = weight.size(0);
  check_like(kOp, "weight", weight, input);
  if (bias) {
    check_like(kOp, "bias", *bias, input);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == n,
                    "linear: bias must have shape (out_features,) = (", n, ",)");
  }
  const Dropout dropout(kOp, seed, p, input);
  const DeviceGuard guard(input);
  std::vector<int64_t> shape(input.sizes().begin(), input.sizes().end());
  shape.back() = n;
  Tensor output = torch::stable::new_empty(input, shape);
  Tensor preactivation = save ? torch::stable::new_empty(input, shape) : torch::stable::new_empty(input, {0});
  const Tensor rows = as_rows(input);
  Problem problem = problem_of(kOp, rows, weight, matrix(weight).transposed(), n, output);
  problem.precision = Precision(precision);
  Epilogue& e = problem.epilogue;
  e.activation = int32_t(activation);
  optional<Tensor> packed_bias, packed_residual;
  if (bias) {
    packed_bias = torch::stable::contiguous(*bias);
    e.bias = packed_bias->const_data_ptr();
  }
  if (residual) {
    check_like(kOp, "residual", *residual, input);
    STD_TORCH_CHECK(
        std::equal(shape.begin(), shape.end(), residual->sizes().begin(), residual->sizes().end()),
        "linear: residual must have the output's shape");
    packed_residual = as_packed_rows(*residual);
    e.residual = packed_residual->const_data_ptr(), e.residual_row = packed_residual->stride(0);
  }
  if (save) e.preactivation = preactivation.mutable_data_ptr();
  e.seed = dropout.seed, e.keep = dropout.keep, e.keep_scale = dropout.scale;
  run(kOp, problem, input);
  return {output, preactivation};
}

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
  optional<Tensor> packed_saved;
  if (saved && b.activation != 0) {
    check_like(kOp, "saved", *saved, grad_output);
    STD_TORCH_CHECK(saved->numel() == grad_output.numel(),
                    "linear_backward: saved must have grad_output's shape");
    packed_saved = torch::stable::contiguous(*saved);
    b.saved = packed_saved->const_data_ptr();
  }
  STD_TORCH_CHECK(saved || b.activation == 0, "linear_backward: an activation needs what was saved");
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

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("gemm", TORCH_BOX(&gemm));
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace fastdl::gemm
