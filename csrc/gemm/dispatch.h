// From a dtype tag to a type.
#pragma once
#include "gemm/problem.h"
#include "simt.h"

namespace fastdl::gemm {

template <class F>
const char* with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case kFloat32:
      return f(float{});
    case kFloat64:
      return f(double{});
    case kFloat16:
      return f(half{});
    default:
      return f(bfloat16{});
  }
}

}  // namespace fastdl::gemm
