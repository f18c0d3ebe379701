// A linear layer and the batch norm behind it on the device: the product leaves moments of its columns, so
// that its output is read once, to be normalized.
#include "batch_norm/glue.h"
#include "gemm/glue.h"

namespace fastdl::gemm {

// See fastdl/linear_batch_norm.py for the schema.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_batch_norm_forward(
    const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, const optional<Tensor>& residual,
    const optional<Tensor>& norm_weight, const optional<Tensor>& norm_bias,
    const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
    const optional<Tensor>& num_batches_tracked, const optional<Tensor>& seed, optional<double> momentum,
    double eps, int64_t activation, double p, bool save_mask, int64_t precision) {
  constexpr const char* kOp = "linear_batch_norm";
  STD_TORCH_CHECK(
      input.dim() == 2 && input.size(0) > 0 && weight.dim() == 2 && weight.size(0) > 0, kOp,
      ": input (N, in_features) and weight (out_features, in_features) must be matrices, not empty");
  const DeviceGuard guard(input);
  LinearCall linear(kOp, input, weight, bias, precision);
  batch_norm::ForwardCall norm(linear.output, residual, norm_weight, norm_bias, running_mean, running_var,
                               num_batches_tracked, seed, true, momentum, eps, activation, p, save_mask);
  Problem& product = linear.problem;
  optional<Tensor> moments;
  // One feature is one long row to batch norm, which takes its own statistics.
  if (norm.a.size.channels_last) {
    product.epilogue.mean = product.epilogue.m2 = &product;  // the plan asks whether, and says how many
    const Plan chosen = planned(product);
    const int64_t blocks = chosen.row_blocks(product.m), bytes = accumulator_size(product.dtype);
    moments = bytes_like(input, 2 * blocks * product.n * bytes);
    char* const mean = static_cast<char*>(moments->data_ptr());
    product.epilogue.mean = mean, product.epilogue.m2 = mean + blocks * product.n * bytes;
    norm.a.given = {mean, product.epilogue.m2, blocks, chosen.tile_m};
    run(kOp, product, chosen, input);
  } else {
    run(kOp, product, input);
  }
  norm.run(kOp, input);
  return {norm.output, linear.output, norm.save_mean, norm.save_invstd, norm.mask};
}

FASTDL_KERNEL_LIBRARY(m) { m.impl("linear_batch_norm_forward", TORCH_BOX(&linear_batch_norm_forward)); }

}  // namespace fastdl::gemm
