// Contiguous: the kernels.
#include "batch_norm/channels_backward.cuh"
#include "batch_norm/channels_forward.cuh"
#include "batch_norm/kernels.h"

namespace fastdl::batch_norm {

Kernels<ForwardArguments> channel_forward_kernels(Dtype dtype) {
  return with_dtype(dtype, [](auto zero) -> Kernels<ForwardArguments> {
    using scalar_t = decltype(zero);
    return {{channel_forward_kernel<scalar_t, false>, channel_forward_kernel<scalar_t, true>},
            channel_moments_kernel<scalar_t>,
            nullptr,
            {channel_apply_kernel<scalar_t, false>, channel_apply_kernel<scalar_t, true>}};
  });
}

Kernels<BackwardArguments> channel_backward_kernels(Dtype dtype) {
  return with_dtype(dtype, [](auto zero) -> Kernels<BackwardArguments> {
    using scalar_t = decltype(zero);
    return {{channel_backward_kernel<scalar_t, false>, channel_backward_kernel<scalar_t, true>},
            channel_sums_kernel<scalar_t>,
            nullptr,
            {channel_apply_backward_kernel<scalar_t, false>, channel_apply_backward_kernel<scalar_t, true>}};
  });
}

}  // namespace fastdl::batch_norm
