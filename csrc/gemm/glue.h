// From tensors to problems: what every op of matrix products shares.
#pragma once
#include "gemm/api.h"
#include "gemm/tuned.h"
#include "torch_glue.h"

namespace fastdl::gemm {

inline Dtype tag(const char* op, ScalarType dtype) {
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

inline void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": ", name,
                  " must have the input's dtype ", dtype_name(input.scalar_type()), ", got ",
                  dtype_name(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " must be on the input's device");
}

inline Matrix matrix(const Tensor& t) {
  const int64_t d = t.dim();
  return {t.const_data_ptr(), t.stride(d - 2), t.stride(d - 1), d > 2 ? t.stride(0) : 0};
}

// (*, N) as (rows, N): a view where strides allow.
inline Tensor as_rows(const Tensor& t) {
  const int64_t columns = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
  return t.dim() == 2 ? t : torch::stable::reshape(t, {rows, columns});
}

// The same with adjacent columns.
inline Tensor as_packed_rows(const Tensor& t) {
  const Tensor rows = as_rows(t);
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : torch::stable::contiguous(rows);
}

inline Tensor bytes_like(const Tensor& like, int64_t bytes) {
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

// The plan of a product on this device: measured, or else estimated.
inline Plan planned(Problem& p) {
  align(p);
  const Machine device = machine();
  return cached_plan(p, device, TunedPlans::get().generation(), [&] {
    const auto tuned = TunedPlans::get().find(p, device);
    return tuned ? *tuned : plan(p, device);
  });
}

inline void run(const char* op, const Problem& p, const Plan& chosen, const Tensor& like) {
  optional<Tensor> workspace;
  if (chosen.workspace_bytes > 0) workspace = bytes_like(like, chosen.workspace_bytes);
  check_launch(launch_product(p, chosen, workspace ? workspace->data_ptr() : nullptr, current_stream(like)),
               op);
}

// Runs the product unless its output is empty.
inline void run(const char* op, Problem& p, const Tensor& like) {
  if (p.m > 0 && p.n > 0 && p.batch > 0) run(op, p, planned(p), like);
}

inline Precision checked(const char* op, int64_t precision) {
  STD_TORCH_CHECK(precision >= kHighest && precision <= kAlwaysEmulated, op,
                  ": precision must be 0 to 3, got ", precision);
  return Precision(precision);
}

// output (m, n), contiguous, = a (m, k) b (k, n). precision: of float32.
inline Problem problem_of(const char* op, Tensor& output, const Matrix& a, const Matrix& b, int64_t m,
                          int64_t n, int64_t k, int64_t precision) {
  Problem p{};
  p.m = m, p.n = n, p.k = k, p.batch = 1;
  p.dtype = tag(op, output.scalar_type()), p.precision = checked(op, precision);
  p.a = a, p.b = b;
  p.output = output.mutable_data_ptr(), p.output_row = n, p.output_batch = m * n;
  return p;
}

// The product of two matrices or of two equal batches of them, to a contiguous output that is yet to come.
inline Problem product_of(const char* op, const Tensor& a, const Tensor& b, int64_t precision) {
  const int64_t d = a.dim();
  STD_TORCH_CHECK((d == 2 || d == 3) && b.dim() == d, op,
                  ": a and b must be two matrices or two batches, got ", d, " and ", b.dim(), " dimensions");
  STD_TORCH_CHECK(a.size(d - 1) == b.size(d - 2) && (d == 2 || a.size(0) == b.size(0)), op,
                  ": a's columns must be b's rows, of equal batches, got ", a.size(d - 1), " and ",
                  b.size(d - 2));
  check_like(op, "b", b, a);
  Problem p{};
  p.m = a.size(d - 2), p.n = b.size(d - 1), p.k = a.size(d - 1), p.batch = d == 3 ? a.size(0) : 1;
  p.dtype = tag(op, a.scalar_type()), p.precision = checked(op, precision);
  p.a = matrix(a), p.b = matrix(b);
  p.output_row = p.n, p.output_batch = p.m * p.n;
  return p;
}

// input (*, K) weight^T (K, N) + bias (N) -> output (*, N): checks, and what lives until the launch.
struct LinearCall {
  std::vector<int64_t> shape;  // of the output
  Tensor rows, output;
  optional<Tensor> bias;
  Problem problem;

  LinearCall(const char* op, const Tensor& input, const Tensor& weight, const optional<Tensor>& given_bias,
             int64_t precision) {
    STD_TORCH_CHECK(input.dim() >= 1 && weight.dim() == 2 && input.size(input.dim() - 1) == weight.size(1),
                    op, ": weight must have shape (out_features, input.size(-1))");
    const int64_t n = weight.size(0);
    check_like(op, "weight", weight, input);
    if (given_bias) {
      check_like(op, "bias", *given_bias, input);
      STD_TORCH_CHECK(given_bias->dim() == 1 && given_bias->size(0) == n, op,
                      ": bias must have shape (out_features,) = (", n, ",)");
      bias = torch::stable::contiguous(*given_bias);
    }
    shape.assign(input.sizes().begin(), input.sizes().end());
    shape.back() = n;
    rows = as_rows(input), output = torch::stable::new_empty(input, shape);
    problem = problem_of(op, output, matrix(rows), matrix(weight).transposed(), rows.size(0), n, rows.size(1),
                         precision);
    if (bias) problem.epilogue.bias = bias->const_data_ptr();
  }
};

}  // namespace fastdl::gemm
