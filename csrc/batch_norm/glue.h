// From tensors to what the kernels are told: shared by batch norm's ops, and by the op that puts a product
// before it.
#pragma once
#include <tuple>

#include "batch_norm/api.h"
#include "batch_norm/layout.h"

namespace fastdl::batch_norm {

inline Dtype tag(ScalarType dtype) {
  Dtype found = Dtype::kFloat32;
  dispatch_floating("batch_norm", dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    if (std::is_same_v<scalar_t, double>) found = Dtype::kFloat64;
    if (std::is_same_v<scalar_t, torch::headeronly::Half>) found = Dtype::kFloat16;
    if (std::is_same_v<scalar_t, torch::headeronly::BFloat16>) found = Dtype::kBfloat16;
  });
  return found;
}

inline Tensor new_values(const Tensor& input, int64_t count, ScalarType dtype) {
  return torch::stable::new_empty(input, {&count, 1}, dtype);
}

// (C,) values, read or written in place.
inline Channels channels_of(const optional<Tensor>& t, const Tensor& input, const char* name) {
  if (!t) return {nullptr, Dtype::kFloat32, 0};
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == input.size(1), "batch_norm: ", name,
                  " must have shape (C,) = (", input.size(1), ",), got ", t->dim(), " dimensions and ",
                  t->numel(), " elements; C is input.size(1)");
  STD_TORCH_CHECK(t->get_device_index() == input.get_device_index(), "batch_norm: ", name,
                  " must be on the input's device");
  return {t->data_ptr(), tag(t->scalar_type()), t->stride(0)};
}

// The kernels take operands of any strides whose spatial dimensions are one; others are copied, which costs a
// pass.
class Operands {
 public:
  Operands(const Tensor& input, const BatchNormLayout& layout) : input_(input), layout_(layout) {}

  Operand operator()(const optional<Tensor>& t, const char* name) {
    if (!t) return {nullptr, 0, 0, 0};
    STD_TORCH_CHECK(t->sizes().equals(input_.sizes()) && t->scalar_type() == input_.scalar_type(),
                    "batch_norm: ", name, " must have the input's shape and dtype");
    STD_TORCH_CHECK(t->get_device_index() == input_.get_device_index(), "batch_norm: ", name,
                    " must be on the input's device");
    if (is_one(*t)) return strides(*t);
    copies_.push_back(torch::stable::contiguous(*t, layout_.format));
    return strides(copies_.back());
  }

 private:
  // Whether positions (and, where the layout folds them in, images) are evenly spaced.
  bool is_one(const Tensor& t) const {
    int64_t next = 0, size = 1;
    for (int64_t i = t.dim() - 1; i >= 0; --i) {
      if (i == 1 || (i == 0 && layout_.N > 1) || t.size(i) == 1) continue;
      if (size > 1 && t.stride(i) != next) return false;
      size *= t.size(i), next = t.stride(i) * t.size(i);
    }
    return true;
  }
  Operand strides(const Tensor& t) const {
    int64_t position = 1;
    for (int64_t i = 0; i < t.dim(); ++i) {
      if (i != 1 && (i > 0 || layout_.N == 1) && t.size(i) > 1) position = t.stride(i);
    }
    const int64_t image = layout_.N > 1 ? t.stride(0) : position * layout_.S;
    const int64_t channel = layout_.C > 1 ? t.stride(1) : position * layout_.S;
    return {t.data_ptr(), image, channel, position};
  }

  const Tensor& input_;
  const BatchNormLayout& layout_;
  std::vector<Tensor> copies_;  // alive until the launch
};

inline Epilogue epilogue_of(int64_t activation, const optional<Tensor>& seed, double p) {
  Epilogue e{Activation(activation), nullptr, KeepRule::of(p), KeepRule::scale(p)};
  if (!seed || p == 0) return e;
  STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long,
                  "batch_norm: seed must be one int64 value");
  e.seed = seed->const_data_ptr<int64_t>();
  return e;
}

inline Tensor new_output(const Tensor& input, const BatchNormLayout& layout) {
  return torch::stable::empty(input.sizes(), input.scalar_type(), std::nullopt, input.device(), std::nullopt,
                              layout.format);
}

inline Sizes sizes_of(const BatchNormLayout& layout) {
  return {layout.N, layout.C, layout.S, layout.channels_last};
}

// A forward: checks, and what must live until the launch. See fastdl/batch_norm.py for the schema.
struct ForwardCall {
  BatchNormLayout layout;
  Operands operands;
  DeviceGuard guard;
  ForwardArguments a{};
  Tensor output, save_mean, save_invstd, mask;

  ForwardCall(const Tensor& input, const optional<Tensor>& residual, const optional<Tensor>& weight,
              const optional<Tensor>& bias, const optional<Tensor>& running_mean,
              const optional<Tensor>& running_var, const optional<Tensor>& num_batches_tracked,
              const optional<Tensor>& seed, bool training, optional<double> momentum, double eps,
              int64_t activation, double p, bool save_mask)
      : layout(input), operands(input, layout), guard(input) {
    STD_TORCH_CHECK(training || (running_mean && running_var),
                    "batch_norm: evaluation needs running statistics");
    STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                    "batch_norm: one running statistic is missing");
    STD_TORCH_CHECK(momentum || !running_mean || !training || num_batches_tracked,
                    "batch_norm: momentum None needs num_batches_tracked");
    STD_TORCH_CHECK(!num_batches_tracked || (num_batches_tracked->numel() == 1 &&
                                             num_batches_tracked->scalar_type() == ScalarType::Long),
                    "batch_norm: num_batches_tracked must be one int64 value");
    STD_TORCH_CHECK(!save_mask || Activation(activation) == Activation::kRelu ||
                        Activation(activation) == Activation::kLeakyRelu,
                    "batch_norm: save_mask needs relu or leaky_relu, got activation ", activation);
    a.dtype = tag(input.scalar_type()), a.size = sizes_of(layout);
    a.training = training, a.eps = eps, a.momentum = momentum.value_or(0), a.cumulative = !momentum;
    a.input = operands(input, "input"), a.residual = operands(residual, "residual");
    a.weight = channels_of(weight, input, "weight"), a.bias = channels_of(bias, input, "bias");
    a.running_mean = channels_of(running_mean, input, "running_mean");
    a.running_var = channels_of(running_var, input, "running_var");
    if (num_batches_tracked) a.num_batches_tracked = num_batches_tracked->mutable_data_ptr<int64_t>();
    a.epilogue = epilogue_of(activation, seed, p);
    output = new_output(input, layout);
    save_mean = new_values(input, layout.C, ScalarType::Double);
    save_invstd = new_values(input, layout.C, ScalarType::Double);
    const bool last = layout.channels_last;
    const int64_t rows = layout.N * (last ? layout.S : layout.C), length = last ? layout.C : layout.S;
    mask = new_values(input, save_mask ? mask_bytes(rows, length) : 0, ScalarType::Byte);
    a.output = output.data_ptr(), a.mask = save_mask ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
    a.save_mean = save_mean.mutable_data_ptr<double>(),
    a.save_invstd = save_invstd.mutable_data_ptr<double>();
  }

  void run(const char* op, const Tensor& input) const {
    const Tensor workspace = new_values(input, int64_t(forward_workspace(a)), ScalarType::Byte);
    check_launch(forward(a, workspace.data_ptr(), current_stream(input)), op);
  }
};

}  // namespace fastdl::batch_norm
