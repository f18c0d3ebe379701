// The part of DLPack's C interface (version 1.3, a stable ABI) that a walk over tensors reads. torch's copy
// of the header is closed to builds for its stable ABI. Source: https://github.com/dmlc/dlpack.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastdl::dlpack {

constexpr int32_t kCpu = 1, kCuda = 2;                    // DLDevice::type
constexpr uint8_t kFloat = 2, kBfloat = 4;                // DLDataType::code
constexpr uint32_t kMajorVersion = 1, kMinorVersion = 3;  // the first with DLPackExchangeAPI

struct Device {
  int32_t type, index;
  bool operator==(const Device&) const = default;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const DataType&) const = default;
};

struct Tensor {
  void* data;
  Device device;
  int32_t dim;
  DataType dtype;
  int64_t *sizes, *strides;  // in elements
  uint64_t byte_offset;

  void* address() const { return static_cast<char*>(data) + byte_offset; }
  bool is(const Tensor& other) const {  // of the same elements in the same order
    return address() == other.address() && device == other.device && dtype == other.dtype &&
           dim == other.dim && std::equal(sizes, sizes + dim, other.sizes) &&
           std::equal(strides, strides + dim, other.strides);
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < dim; ++d) n *= sizes[d];
    return n;
  }
};

struct ExchangeApi {
  uint32_t major_version, minor_version;
  const void* previous;
  void* unused[3];                                // functions for tensors that own their memory
  int (*describe)(void* py_object, Tensor* out);  // -1: a Python exception is set
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

}  // namespace fastdl::dlpack
