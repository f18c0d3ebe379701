// How batch_norm sees a tensor: (N, C, S) with S contiguous, or channels last (N * S, C). Shared by the CPU
// op and the kernels' op.
#pragma once
#include "torch_glue.h"

namespace fastdl {

struct BatchNormLayout {
  int64_t N, C, S = 1;
  bool channels_last;  // element (n, c, s) lies at (n * S + s) * C + c, otherwise at (n * C + c) * S + s
  torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous;

  explicit BatchNormLayout(const Tensor& input) : N(input.size(0)), C(input.size(1)) {
    for (int64_t i = 2; i < input.dim(); ++i) S *= input.size(i);
    channels_last = is_channels_last(input);
    if (channels_last) {
      format = channels_last_format(input);
    }
    if (S == 1) channels_last = true;  // both at once; rows of C are longer than rows of 1
    if (C == 1) {
      channels_last = false, S *= N, N = 1;
    }
  }
};

}  // namespace fastdl
