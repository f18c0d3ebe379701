// What a kernel may use beyond CUDA's own spelling, the same under nvcc and under g++ (tests/emulator), and
// how host code launches it. The one header that knows which compiler reads it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// FASTDL_SHARED(partial, float[32]); declares a shared variable, FASTDL_DYNAMIC_SHARED(bytes); the launch's
// dynamic shared memory as unsigned char*, aligned to 1024 bytes.
#define FASTDL_SHARED(name, ...) __shared__::std::type_identity_t<__VA_ARGS__> name
#define FASTDL_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define FASTDL_UNROLL _Pragma("unroll")

namespace fastdl {
using half = __half;
using bfloat16 = __nv_bfloat16;
}  // namespace fastdl
#else
#include "emulator/cuda.h"
#define FASTDL_SHARED(name, ...)                                                                  \
  static char name##_key;                                                                         \
  auto& name = *static_cast<::std::type_identity_t<__VA_ARGS__>*>(                                \
      ::fastdl::emulator::static_shared(&name##_key, sizeof(::std::type_identity_t<__VA_ARGS__>), \
                                        alignof(::std::type_identity_t<__VA_ARGS__>), #name))
#define FASTDL_DYNAMIC_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(::fastdl::emulator::dynamic_shared())
#define FASTDL_UNROLL
#endif
#define FASTDL_DEVICE __device__ __forceinline__

namespace fastdl {

// Where a 16-bit or 32-bit value is accumulated: float; a double: double.
template <class scalar_t>
using accumulator_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

struct LaunchConfig {
  dim3 grid{1}, block{1};
  size_t shared_bytes = 0;
  void* stream = nullptr;  // a cudaStream_t
  dim3 cluster{1};
  bool cooperative = false;
};

// The device that host code sizes a launch for.
struct DeviceProperties {
  int multiprocessors;
  int shared_bytes_per_block;  // with opt-in
  int capability;              // 10 * major + minor
  bool has_clusters() const { return capability >= 90; }
};

#if defined(__CUDACC__)
inline const char* error_text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Starts a kernel. Returns null, or why the launch was refused.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const LaunchConfig& config, Arguments&&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (config.shared_bytes > kWithoutOptIn) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
    if (error != cudaSuccess) return error_text(error);
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {config.cluster.x, config.cluster.y, config.cluster.z};
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = static_cast<cudaStream_t>(config.stream);
  launch_config.attrs = attributes;
  launch_config.numAttrs = count;
  return error_text(cudaLaunchKernelEx(&launch_config, kernel, static_cast<Parameters>(arguments)...));
}

inline DeviceProperties device_properties() {
  int device = 0, major = 0, minor = 0;
  DeviceProperties p{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&p.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  p.capability = 10 * major + minor;
  return p;
}

// How many blocks of the kernel fit on the device at once: the largest grid of a cooperative launch.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, size_t, int>, int> known;  // asking costs microseconds
  int device = 0, each = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  int& blocks = known[{reinterpret_cast<const void*>(kernel), threads, shared_bytes, device}];
  if (blocks) return blocks;
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  }
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes);
  return blocks = each * device_properties().multiprocessors;
}

// Bytes of arguments that a launch takes on the current device.
inline int argument_bytes_limit() {
  static const int driver = [] {
    int version = 0;
    cudaDriverGetVersion(&version);
    return version;
  }();
  return CUDART_VERSION >= 12010 && driver >= 12010 && device_properties().capability >= 70 ? 32764 : 4096;
}

// Zeroes device memory in stream order.
inline const char* fill_zero(void* memory, size_t bytes, void* stream) {
  return error_text(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// Makes a device the current one; returns the one before.
inline int exchange_device(int device) {
  int before = 0;
  cudaGetDevice(&before);
  if (before != device) cudaSetDevice(device);
  return before;
}

// Copies in stream order. The pinned source is read until a mark set behind the copy has passed.
inline const char* copy_to_device(void* target, const void* pinned, size_t bytes, void* stream) {
  return error_text(
      cudaMemcpyAsync(target, pinned, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
}

inline bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

// A place in a stream, so that the host can ask without waiting whether the device has come by.
class StreamMark {
 public:
  StreamMark() = default;
  StreamMark(const StreamMark&) = delete;
  ~StreamMark() {
    if (event_) cudaEventDestroy(event_);
  }
  const char* set(void* stream) {
    if (!event_) {
      const cudaError_t error = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
      if (error != cudaSuccess) return error_text(error);
    }
    return error_text(cudaEventRecord(event_, static_cast<cudaStream_t>(stream)));
  }
  bool has_passed() const { return !event_ || cudaEventQuery(event_) == cudaSuccess; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Waits until every block of a cooperative launch has arrived.
FASTDL_DEVICE void grid_sync() { cooperative_groups::this_grid().sync(); }

// A value that other blocks change with atomics. What they wrote before a fence of theirs is seen after one
// here.
FASTDL_DEVICE unsigned load_atomic(const unsigned* address) {
  return *static_cast<const volatile unsigned*>(address);
}

// Spins until f() holds; f reads with an atomic or load_atomic.
template <class F>
FASTDL_DEVICE void spin_until(F f) {
  while (!f()) __nanosleep(20);
}
#else
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const LaunchConfig& config, Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> arguments;
  } call{kernel, {static_cast<std::decay_t<Parameters>>(arguments)...}};
  emulator::Launch l{config.grid,        config.block,
                     config.cluster,     config.shared_bytes,
                     config.cooperative, emulator::kernel_name(reinterpret_cast<const void*>(kernel)),
                     sizeof call};
  const auto entry = [](const void* memory) {
    const Call& c = *static_cast<const Call*>(memory);
    std::apply(c.kernel, c.arguments);
  };
  return emulator::run(l, entry, &call);
}

inline DeviceProperties device_properties() {
  const emulator::Device& d = emulator::device();
  return {d.multiprocessors, d.shared_bytes_per_block, d.capability};
}

template <class... Parameters>
int resident_blocks(void (*)(Parameters...), int threads, size_t shared_bytes) {
  return emulator::resident_blocks(unsigned(threads), shared_bytes) * emulator::device().multiprocessors;
}

inline int argument_bytes_limit() { return emulator::argument_bytes_limit(); }

inline const char* fill_zero(void* memory, size_t bytes, void*) {
  memset(memory, 0, bytes);
  return nullptr;
}

inline int exchange_device(int) { return 0; }

inline const char* copy_to_device(void* target, const void* pinned, size_t bytes, void*) {
  return emulator::copy_to_device(target, pinned, bytes);
}

inline bool is_capturing(void*) { return emulator::is_capturing(); }

class StreamMark {
 public:
  const char* set(void*) {
    place_ = emulator::stream_place();
    return nullptr;
  }
  bool has_passed() const { return emulator::has_passed(place_); }

 private:
  uint64_t place_ = 0;
};

inline void grid_sync(FASTDL_SITE) { emulator::grid_barrier(site); }

inline unsigned load_atomic(const unsigned* address, FASTDL_SITE) {
  return emulator::atomic_update(const_cast<unsigned*>(address), [](unsigned value) { return value; }, site);
}

template <class F>
inline void spin_until(F f, FASTDL_SITE) {
  while (!f()) emulator::yield(site);
}
#endif

}  // namespace fastdl
