// Channels last, and (N, C): the kernels.
#include "batch_norm/rows_backward.cuh"
#include "batch_norm/rows_forward.cuh"
#include "batch_norm/kernels.h"

namespace fastdl::batch_norm {

const char* merge_given(const ForwardArguments& a, void* merged, void* stream) {
  LaunchConfig config;
  config.grid = dim3(unsigned((a.size.c + kMergedChannels - 1) / kMergedChannels));
  config.block = dim3(kThreads), config.stream = stream;
  return with_dtype(a.dtype, [&](auto zero) {
    return launch(given_merge_kernel<decltype(zero)>, config, a, static_cast<double*>(merged));
  });
}

Kernels<ForwardArguments> row_forward_kernels(Dtype dtype) {
  return with_dtype(dtype, [](auto zero) -> Kernels<ForwardArguments> {
    using scalar_t = decltype(zero);
    return {{rows_forward_kernel<scalar_t>, rows_forward_kernel<scalar_t>},
            rows_moments_kernel<scalar_t>,
            rows_merge_kernel<ForwardArguments, Moments<double>, MergeRuns<accumulator_t<scalar_t>>>,
            {rows_apply_kernel<scalar_t>, rows_apply_kernel<scalar_t>}};
  });
}

Kernels<BackwardArguments> row_backward_kernels(Dtype dtype) {
  return with_dtype(dtype, [](auto zero) -> Kernels<BackwardArguments> {
    using scalar_t = decltype(zero);
    return {{rows_backward_kernel<scalar_t>, rows_backward_kernel<scalar_t>},
            rows_sums_kernel<scalar_t>,
            rows_merge_kernel<BackwardArguments, Sums, AddSums>,
            {rows_apply_backward_kernel<scalar_t>, rows_apply_backward_kernel<scalar_t>}};
  });
}

}  // namespace fastdl::batch_norm
