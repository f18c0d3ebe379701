// Batch norm on the device: sizes, pointers, stream.
#pragma once
#include <cstddef>

#include "batch_norm/problem.h"

namespace fastdl::batch_norm {

// `workspace`: device memory of at least the bytes named, aligned to 16, of any content. All return an error
// text, or null when every launch was accepted. Sizes are not empty.
size_t forward_workspace(const ForwardArguments& arguments);
size_t backward_workspace(const BackwardArguments& arguments);
const char* forward(const ForwardArguments& arguments, void* workspace, void* stream);
const char* backward(const BackwardArguments& arguments, void* workspace, void* stream);

}  // namespace fastdl::batch_norm
