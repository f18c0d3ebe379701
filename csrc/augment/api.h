// Augmentation on the device: pointers, sizes, dtype tags, stream.
#pragma once
#include "augment/rule.cuh"

namespace fastdl::augment {

constexpr int kMaxChannels = 64;  // whose constants travel as kernel parameters

enum class OutputType { kFloat, kHalf, kBfloat16, kByte };

struct Arguments {
  Plan plan;
  const void* images;  // uint8 or float
  int64_t stride[4];   // elements: image, channel, row, pixel
  int64_t count;       // images that there are
  const int64_t* index;
  int64_t n;  // samples
  void* output;
  int32_t* boxes;  // (n, copies, 5)
  uint64_t seed, counter;
  int32_t channels;
  Channel channel[kMaxChannels];
};

// Returns an error text, or null when the one launch was accepted. An index outside of [0, count) gives NaN
// (uint8: 0) and a box of -1.
const char* augment(const Arguments& arguments, bool from_float, OutputType to, bool channels_last,
                    void* stream);

}  // namespace fastdl::augment
