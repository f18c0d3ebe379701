// dropout on CPU tensors: the mask of csrc/philox.cuh at memory speed.
#include "philox.cuh"
#include "torch_glue.h"

namespace fastdl {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least: below it, waking threads costs more

template <class scalar_t>
void dropout_range(const scalar_t* input, scalar_t* output, int64_t begin, int64_t end, uint64_t seed,
                   const KeepRule& rule, float scale) {
  for (int64_t i = begin; i < end; ++i) {
    output[i] = keep_element(seed, i, rule) ? scalar_t(float(input[i]) * scale) : scalar_t(0);
  }
}

}  // namespace

// input (any shape, contiguous), seed (1) int64 -> output like input.
Tensor dropout_cpu(const Tensor& input, const Tensor& seed, double p) {
  STD_TORCH_CHECK(input.is_contiguous(), "dropout: input must be contiguous; call .contiguous() first");
  STD_TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long,
                  "dropout: seed must be one int64 value");
  Tensor output = torch::stable::empty_like(input);
  const uint64_t key = uint64_t(*seed.const_data_ptr<int64_t>());
  const KeepRule rule = KeepRule::of(p);
  const float scale = p >= 1 ? 0.f : float(1 / (1 - p));
  dispatch_floating("dropout", input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
      dropout_range(in, out, begin, end, key, rule, scale);
    });
  });
  return output;
}

FASTDL_CPU_LIBRARY(m) { m.impl("dropout", TORCH_BOX(&dropout_cpu)); }

}  // namespace fastdl
