// Matrix products and Linear's forward on the device: checks, memory, launches.
#include <tuple>
#include "gemm/glue.h"

namespace fastdl::gemm {

// a (M, K) or (B, M, K), b (K, N) or (B, K, N), any strides -> (M, N) or (B, M, N), scaled.
// precision: of float32.
Tensor gemm(const Tensor& a, const Tensor& b, int64_t precision, double scale) {
  Problem p = product_of("gemm", a, b, precision);
  const DeviceGuard guard(a);
  std::vector<int64_t> shape = {p.m, p.n};
  if (a.dim() == 3) shape.insert(shape.begin(), p.batch);
  Tensor output = torch::stable::new_empty(a, shape);
  p.output = output.mutable_data_ptr();
  p.epilogue.alpha = scale;
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
  const Dropout dropout(kOp, seed, p, input);
  const DeviceGuard guard(input);
  LinearCall call(kOp, input, weight, bias, precision);
  Tensor preactivation =
      save ? torch::stable::new_empty(input, call.shape) : torch::stable::new_empty(input, {0});
  Epilogue& e = call.problem.epilogue;
  e.activation = int32_t(activation);
  optional<Tensor> packed_residual;
  if (residual) {
    check_like(kOp, "residual", *residual, input);
    STD_TORCH_CHECK(
        std::equal(call.shape.begin(), call.shape.end(), residual->sizes().begin(), residual->sizes().end()),
        "linear: residual must have the output's shape");
    packed_residual = as_packed_rows(*residual);
    e.residual = packed_residual->const_data_ptr(), e.residual_row = packed_residual->stride(0);
  }
  if (save) e.preactivation = preactivation.mutable_data_ptr();
  e.seed = dropout.seed, e.keep = dropout.keep, e.keep_scale = dropout.scale;
  run(kOp, call.problem, input);
  return {call.output, preactivation};
}

FASTDL_KERNEL_LIBRARY(m) {
  m.impl("gemm", TORCH_BOX(&gemm));
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
}

}  // namespace fastdl::gemm
