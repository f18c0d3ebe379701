// Names of the activations that ops fuse: the codes of fastdl/activation.py.
#pragma once
#include <cstdint>

namespace fastdl {

enum class Activation : int32_t { kNone, kRelu, kLeakyRelu, kSilu, kGelu, kGeluTanh };

}  // namespace fastdl
