// What every implementation of the dropout ops demands of its arguments, checked before anything is written.
#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>

#include "torch_glue.h"

namespace fastdl {

// `other` (named `name`) must agree with `input` in everything but strides.
inline void check_dropout_like(const char* name, const Tensor& other, const Tensor& input) {
  const auto a = input.sizes(), b = other.sizes();
  STD_TORCH_CHECK(a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()), "dropout: ", name,
                  " must have the input's shape; expand or reshape it first");
  STD_TORCH_CHECK(other.scalar_type() == input.scalar_type(), "dropout: ", name, " must be ",
                  dtype_name(input.scalar_type()), " like the input, got ", dtype_name(other.scalar_type()));
  STD_TORCH_CHECK(other.is_cuda() == input.is_cuda() && other.get_device() == input.get_device(),
                  "dropout: ", name, " must be on the input's device; move it with .to(input.device)");
}

inline void check_dropout(const Tensor& input, const Tensor& seed, double p, int64_t activation,
                          int64_t group) {
  STD_TORCH_CHECK(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  STD_TORCH_CHECK(activation >= 0 && activation < 6, "dropout: activation must be a code from 0 to 5, got ",
                  activation);
  STD_TORCH_CHECK(group >= 1, "dropout: group must be at least 1, got ", group);
  STD_TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long,
                  "dropout: seed must be one int64 value, got ", seed.numel(), " of ",
                  dtype_name(seed.scalar_type()));
  STD_TORCH_CHECK(seed.is_cuda() == input.is_cuda() && seed.get_device() == input.get_device(),
                  "dropout: seed must be on the input's device; move it with .to(input.device)");
}

// First and one past the last byte that a tensor's elements occupy.
inline std::pair<const char*, const char*> byte_range(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const char* first = static_cast<const char*>(tensor.const_data_ptr());
  return {first, tensor.numel() == 0 ? first : first + (last + 1) * int64_t(tensor.element_size())};
}

// In place: no two elements of `input` may share memory, and `residual` must be the same elements or others.
inline void check_dropout_in_place(const Tensor& input, const optional<Tensor>& residual) {
  for (int64_t d = 0; d < input.dim(); ++d) {
    STD_TORCH_CHECK(
        input.size(d) < 2 || input.stride(d) != 0 || input.numel() == 0,
        "unsupported operation: more than one element of the written-to tensor refers to a single "
        "memory location. Please clone() the tensor before performing the operation.");
  }
  if (!residual) return;
  const auto [begin, end] = byte_range(input);
  const auto [other_begin, other_end] = byte_range(*residual);
  const auto a = input.strides(), b = residual->strides();
  const bool same = begin == other_begin && std::equal(a.begin(), a.end(), b.begin(), b.end());
  STD_TORCH_CHECK(
      same || begin >= other_end || other_begin >= end,
      "unsupported operation: some elements of the input tensor and the written-to tensor refer to "
      "a single memory location. Please clone() the tensor before performing the operation.");
}

}  // namespace fastdl
