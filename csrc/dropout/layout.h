// How the elements of a call lie in memory, in as few dimensions as they allow.
#pragma once
#include <algorithm>
#include "dropout/api.h"

namespace fastdl::dropout {

// Without dimensions of one element, and with neighbours joined wherever every operand steps through both as
// through one. At least one dimension is left.
inline std::vector<Dimension> joined(const std::vector<Dimension>& shape) {
  std::vector<Dimension> result;
  for (const Dimension& inner : shape) {
    if (inner.size == 1) continue;
    bool continues = !result.empty();
    for (int k = 0; continues && k < kOperands; ++k) {
      continues = result.back().stride[k] == inner.stride[k] * inner.size;
    }
    if (continues) {
      const int64_t outer = result.back().size;
      result.back() = inner;
      result.back().size *= outer;
    } else {
      result.push_back(inner);
    }
  }
  if (result.empty()) result.push_back({1, {1, 1, 1}});
  return result;
}

inline bool has_stride(const Dimension& dimension, int64_t stride) {
  return std::all_of(dimension.stride, dimension.stride + kOperands, [&](int64_t s) { return s == stride; });
}

// Row-major without gaps: an element's offset is its index.
inline bool is_linear(const std::vector<Dimension>& joined_shape) {
  return joined_shape.size() == 1 && has_stride(joined_shape[0], 1);
}

// (batch, rows, columns) with neighbouring rows side by side in memory: channels_last and transposed tensors.
inline bool is_transposed(const std::vector<Dimension>& joined_shape) {
  const size_t n = joined_shape.size();
  return (n == 2 || n == 3) && has_stride(joined_shape[n - 2], 1);
}

}  // namespace fastdl::dropout
