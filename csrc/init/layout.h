// Where the elements of a tensor lie in memory and in the whole tensor that it may be a part of; and the
// checks that both devices share.
#pragma once
#include <algorithm>
#include "init/rule.h"
#include "torch_glue.h"

namespace fastdl {

constexpr int64_t kParameters = 6;  // per tensor
constexpr int64_t kMaxDims = 8;

// A tensor as rows of its last dimension, neighbouring dimensions joined; element (i, j, ...) has global
// index offset + i steps[0] + j steps[1] + ...
struct Layout {
  int64_t dim = 0, rows = 1, width = 1;
  int64_t size[kMaxDims], stride[kMaxDims], step[kMaxDims];

  Layout(const Tensor& tensor, const int64_t* steps) {
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      const int64_t n = tensor.size(d);
      if (n == 1) continue;
      if (dim > 0 && stride[dim - 1] == n * tensor.stride(d) && step[dim - 1] == n * steps[d]) {
        size[dim - 1] *= n, stride[dim - 1] = tensor.stride(d), step[dim - 1] = steps[d];
      } else {
        size[dim] = n, stride[dim] = tensor.stride(d), step[dim] = steps[d], ++dim;
      }
    }
    if (dim == 0 || step[dim - 1] != 1) size[dim] = 1, stride[dim] = 1, step[dim] = 1, ++dim;
    width = size[dim - 1];
    for (int64_t d = 0; d < dim - 1; ++d) rows *= size[d];
  }

  // Calls f(memory offset, index offset, count) for the elements [begin, end) in logical order, row by row.
  template <class F>
  void for_each_run(int64_t begin, int64_t end, F&& f) const {
    while (begin < end) {
      int64_t row = begin / width, memory = begin % width * stride[dim - 1], index = begin % width;
      const int64_t count = std::min(end - begin, width - begin % width);
      for (int64_t d = dim - 2; d >= 0; --d) {
        memory += row % size[d] * stride[d], index += row % size[d] * step[d], row /= size[d];
      }
      f(memory, index, count);
      begin += count;
    }
  }
};

inline InitRule rule_of(int64_t distribution, const double* parameters) {
  InitRule rule{Distribution(distribution), {}};
  std::copy_n(parameters, kParameters, rule.parameter);
  return rule;
}

inline void check_lists(const std::vector<Tensor>& tensors, const std::vector<int64_t>& distributions,
                        const std::vector<double>& parameters, const std::vector<int64_t>& keys,
                        const std::vector<int64_t>& offsets, const std::vector<int64_t>& steps) {
  const size_t n = tensors.size();
  int64_t dims = 0;
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.dim() < kMaxDims, "init: tensors must have fewer than 8 dimensions, got ",
                    tensor.dim());
    dims += tensor.dim();
  }
  STD_TORCH_CHECK(
      distributions.size() == n && keys.size() == n && offsets.size() == n &&
          parameters.size() == n * kParameters && int64_t(steps.size()) == dims,
      "init: needs one distribution, key and offset and six parameters per tensor, one step per dimension");
}

}  // namespace fastdl
