// Initialization on the device. Returns an error text, or null when the launch was accepted.
#pragma once
#include "init/rule.h"

namespace fastdl::init {

enum Dtype : int32_t { kFloat32, kFloat64, kFloat16, kBfloat16 };

constexpr int kDims = 8;

// One tensor as the kernel reads it, from device memory. Of its last dimension the global index moves by one.
struct Record {
  void* data;
  InitRule rule;
  uint64_t key, offset;
  int64_t numel, first_tile;
  Dtype dtype;
  int32_t dim;
  int64_t size[kDims], stride[kDims], step[kDims];  // elements
};

constexpr int64_t kTile = 4096;  // elements of a block

const char* launch_init(const Record* records, int count, int64_t tiles, void* stream);

}  // namespace fastdl::init
