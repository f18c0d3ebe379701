// What an op needs of torch, and nothing more: tensors, checks, device guard, stream, dtype dispatch.
// Stable ABI only (target 2.10): a library built against one torch runs on every later one.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <cstdint>
#include <optional>
#include <vector>

// Ops of the GPU build register on CUDA tensors; the CPU execution of the same kernels registers on CPU
// tensors under a name of its own, so that a test can hold one against the other in one process.
#if defined(FASTDL_EMULATED)
#define FASTDL_KERNEL_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastdl_emulated, CPU, m)
#else
#define FASTDL_KERNEL_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastdl, CUDA, m)
#endif
#define FASTDL_CPU_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastdl, CPU, m)

#if defined(FASTDL_CUDA)
#include <cuda_runtime_api.h>
// Weak: CPU-only torch lacks it, and the library must load there too.
#pragma weak aoti_torch_get_current_cuda_stream
#endif

namespace fastdl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
template <class T>
using optional = std::optional<T>;

// Selects the tensor's device for the scope; on CPU tensors it does nothing.
class DeviceGuard {
 public:
  explicit DeviceGuard([[maybe_unused]] const Tensor& tensor) {
#if defined(FASTDL_CUDA)
    if (tensor.is_cuda()) guard_.emplace(tensor.get_device_index());
#endif
  }

 private:
#if defined(FASTDL_CUDA)
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
};

// The current CUDA stream of the tensor's device as an opaque pointer; null on CPU tensors.
inline void* current_stream([[maybe_unused]] const Tensor& tensor) {
  void* stream = nullptr;
#if defined(FASTDL_CUDA)
  if (tensor.is_cuda()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  }
#endif
  return stream;
}

// Kernel interfaces return an error text, or null when the launch was accepted.
inline void check_launch(const char* error, const char* op) {
  STD_TORCH_CHECK(error == nullptr, op, ": the kernel could not be launched: ", error);
}

// Brings host memory to the device in stream order; the host may reuse it at once.
inline void upload(Tensor target, void* source, int64_t bytes) {
  const int64_t stride = 1;
  const Tensor host =
      torch::stable::from_blob(source, {&bytes, 1}, {&stride, 1},
                               torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte);
  torch::stable::copy_(target, host, true);
}

// torch's own rule for the memory format of an output, ambiguous strides included.
inline bool is_channels_last(const Tensor& t) {
  const int64_t d = t.dim();
  if ((d != 4 && d != 5) || t.stride(1) == 0) return false;
  int64_t least = 0;
  std::vector<int64_t> order = {1};
  for (int64_t i = d - 1; i >= 2; --i) order.push_back(i);
  order.push_back(0);
  for (int64_t i : order) {
    if (t.size(i) == 0 || t.stride(i) < least) return false;
    if (i == 0 && least == t.stride(1)) return false;  // (N, 1, 1, 1) and N111 strides: contiguous
    least = t.stride(i) * (t.size(i) > 1 ? t.size(i) : 1);
  }
  return true;
}

inline torch::headeronly::MemoryFormat channels_last_format(const Tensor& t) {
  return t.dim() == 4 ? torch::headeronly::MemoryFormat::ChannelsLast
                      : torch::headeronly::MemoryFormat::ChannelsLast3d;
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Byte:
      return "uint8";
    default:
      return "another dtype";
  }
}

// Calls f with a value of the C++ type of a floating dtype: dispatch_floating("dropout", dtype, [&](auto
// zero) {...}).
template <class F>
inline void dispatch_floating(const char* op, ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": input must be float32, float64, float16 or bfloat16, got ",
                      dtype_name(dtype));
  }
}

}  // namespace fastdl
