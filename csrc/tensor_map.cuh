// Host: describing tensors in global memory to TMA. Included by ptx.cuh.
#pragma once

namespace fastdl::ptx {

// A float32 that TMA rounds to tf32 as it loads it: to nearest, ties to even, infinities and NaN kept (seen
// on a GPU by the test of triton-lang/triton#11751).
struct RoundedToTf32 {
  float value;
};

// Describes a global tensor and the box that one TMA instruction moves. Sizes and box in elements,
// innermost first; strides in bytes of dimensions 1 and up. Returns null or an error text.
template <class scalar_t>
inline const char* make_tensor_map(TensorMap* map, const scalar_t* base, int rank, const uint64_t* size,
                                   const uint64_t* stride_bytes, const uint32_t* box, Swizzle swizzle) {
#if defined(__CUDACC__)
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (!encode) return "tensor map: the driver has no cuTensorMapEncodeTiled";
  constexpr CUtensorMapDataType kType = std::is_same_v<scalar_t, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : std::is_same_v<scalar_t, half>   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                        : std::is_same_v<scalar_t, float>  ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                        : std::is_same_v<scalar_t, RoundedToTf32>
                                            ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                                            : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const CUtensorMapSwizzle mode = swizzle == Swizzle::k128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                  : swizzle == Swizzle::k64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                  : swizzle == Swizzle::k32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                            : CU_TENSOR_MAP_SWIZZLE_NONE;
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = encode(map, kType, cuuint32_t(rank), const_cast<scalar_t*>(base), size,
                                 stride_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, mode,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "tensor map: cuTensorMapEncodeTiled refused it";
#else
  return emulator::encode_tensor_map(map, sizeof(scalar_t), base, rank, size, stride_bytes, box, int(swizzle),
                                     std::is_same_v<scalar_t, RoundedToTf32>);
#endif
}

}  // namespace fastdl::ptx
