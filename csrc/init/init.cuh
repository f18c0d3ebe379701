// One launch fills all parameters of a model: each block takes a tile of one tensor, each thread four
// elements at a time, which share a Philox call where their global index allows.
#pragma once
#include "init/api.h"
#include "vector.cuh"

namespace fastdl::init {

constexpr int kThreads = 256, kCount = 4;

// Memory offset and global index of a logical element.
FASTDL_DEVICE void locate(const Record& r, int64_t i, int64_t& memory, uint64_t& index) {
  memory = 0, index = r.offset;
  for (int d = r.dim - 1; d >= 0; --d) {
    const int64_t outer = d > 0 ? i / r.size[d] : 0, position = i - outer * r.size[d];
    memory += position * r.stride[d], index += uint64_t(position * r.step[d]);
    i = outer;
  }
}

template <class acc_t>
FASTDL_DEVICE acc_t value_of(uint32_t word, const InitRule& rule) {
  switch (rule.distribution) {
    case Distribution::kUniform:
      return init_value<Distribution::kUniform, acc_t>(word, rule);
    case Distribution::kNormal:
      return init_value<Distribution::kNormal, acc_t>(word, rule);
    case Distribution::kTruncatedNormal:
      return init_value<Distribution::kTruncatedNormal, acc_t>(word, rule);
    default:
      return init_value<Distribution::kConstant, acc_t>(word, rule);
  }
}

template <class scalar_t>
FASTDL_DEVICE void fill(const Record& r, int64_t begin, int64_t end) {
  using acc_t = accumulator_t<scalar_t>;
  scalar_t* data = static_cast<scalar_t*>(r.data);
  constexpr int kEach = kCount < kVectorSize<scalar_t> ? kCount : kVectorSize<scalar_t>;  // of a store
  const bool dense = r.dim == 1 && r.stride[0] == 1 && is_aligned<kEach>(data);
  for (int64_t i = begin + int64_t(threadIdx.x) * kCount; i < end; i += kThreads * kCount) {
    Vector<scalar_t, kEach> values[kCount / kEach];
    Philox4 words{};
    uint64_t drawn = ~uint64_t(0);  // the call that words come from
    int64_t memory = 0;
#pragma unroll 1
    for (int j = 0; j < kCount && i + j < end; ++j) {
      uint64_t index;
      locate(r, i + j, memory, index);
      if (index / 4 != drawn) {
        drawn = index / 4;
        words = philox(r.key, drawn, kInitStream);
      }
      const uint32_t low = index & 1 ? words.word[1] : words.word[0];
      const uint32_t high = index & 1 ? words.word[3] : words.word[2];
      const scalar_t value = convert<scalar_t>(value_of<acc_t>(index & 2 ? high : low, r.rule));
      if (!dense || i + kCount > end) store(data + memory, value);
      FASTDL_UNROLL
      for (int k = 0; k < kCount; ++k) {
        scalar_t& place = values[k / kEach][k % kEach];
        place = k == j ? value : place;
      }
    }
    if (!dense || i + kCount > end) continue;
    FASTDL_UNROLL
    for (int k = 0; k < kCount; k += kEach) store_vector(data + i + k, values[k / kEach]);
  }
}

// Grid: tiles of kTile elements, tensor by tensor.
__global__ void __launch_bounds__(kThreads) init_kernel(const Record* records, int count) {
  const int64_t tile = blockIdx.x;
  int low = 0, high = count - 1;  // the last tensor that begins at this tile or before
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (records[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const Record& r = records[low];
  const int64_t begin = (tile - r.first_tile) * kTile,
                end = begin + kTile < r.numel ? begin + kTile : r.numel;
  switch (r.dtype) {
    case kFloat32:
      return fill<float>(r, begin, end);
    case kFloat64:
      return fill<double>(r, begin, end);
    case kFloat16:
      return fill<half>(r, begin, end);
    case kBfloat16:
      return fill<bfloat16>(r, begin, end);
  }
}

}  // namespace fastdl::init
