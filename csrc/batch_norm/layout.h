// How batch_norm sees a tensor: (N, C, S) with S contiguous, or channels last (N * S, C). Shared by the CPU
// op and the kernels' op.
#pragma once
#include "torch_glue.h"

namespace fastdl {

// torch's own rule for the memory format of an output, ambiguous strides included.
inline bool is_channels_last(const Tensor& t) {
  const int64_t d = t.dim();
  if ((d != 4 && d != 5) || t.stride(1) == 0) return false;
  int64_t least = 0;
  std::vector<int64_t> order = {1};
  for (int64_t i = d - 1; i >= 2; --i) order.push_back(i);
  order.push_back(0);
  for (int64_t i : order) {
    if (t.size(i) == 0 || t.stride(i) < least) return false;
    if (i == 0 && least == t.stride(1)) return false;  // (N, 1, 1, 1) and N111 strides: contiguous
    least = t.stride(i) * (t.size(i) > 1 ? t.size(i) : 1);
  }
  return true;
}

struct BatchNormLayout {
  int64_t N, C, S = 1;
  bool channels_last;  // element (n, c, s) lies at (n * S + s) * C + c, otherwise at (n * C + c) * S + s
  torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous;

  explicit BatchNormLayout(const Tensor& input) : N(input.size(0)), C(input.size(1)) {
    for (int64_t i = 2; i < input.dim(); ++i) S *= input.size(i);
    channels_last = is_channels_last(input);
    if (channels_last) {
      format = input.dim() == 4 ? torch::headeronly::MemoryFormat::ChannelsLast
                                : torch::headeronly::MemoryFormat::ChannelsLast3d;
    }
    if (S == 1) channels_last = true;  // both at once; rows of C are longer than rows of 1
    if (C == 1) {
      channels_last = false, S *= N, N = 1;
    }
  }
};

}  // namespace fastdl
