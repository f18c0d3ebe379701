// One line per instruction and variant: its name and a hash of what it computed. Inputs are small integers,
// so that results are exact and must be equal on every machine.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>
#include "ptx.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace fastdl::conformance {

inline void require(bool holds, const std::string& what) {
  if (holds) return;
  printf("FAILED: %s\n", what.c_str());
  exit(1);
}
inline void accepted(const char* error) { require(!error, error ? error : ""); }

inline void* allocate(size_t bytes) {
  void* memory = nullptr;
#if defined(__CUDACC__)
  accepted(error_text(cudaMalloc(&memory, bytes)));
#else
  require(posix_memalign(&memory, 256, bytes) == 0, "memory");
#endif
  return memory;
}
inline void copy_bytes(void* to, const void* from, size_t bytes) {
#if defined(__CUDACC__)
  accepted(error_text(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)));
#else
  memcpy(to, from, bytes);
#endif
}

// An array on the device and its copy on the host; elements -6 to 6 unless filled otherwise.
template <class T>
struct Array {
  explicit Array(size_t n) : host(n), device(static_cast<T*>(allocate(n * sizeof(T)))) {
    fill([](size_t i) { return int((i * 2654435761u >> 7) % 13) - 6; });
  }
  template <class F>
  Array& fill(F&& f) {
    for (size_t i = 0; i < host.size(); ++i) host[i] = T(float(f(i)));
    copy_bytes(device, host.data(), host.size() * sizeof(T));
    return *this;
  }
  Array& clear() {
    memset(static_cast<void*>(host.data()), 0, host.size() * sizeof(T));
    copy_bytes(device, host.data(), host.size() * sizeof(T));
    return *this;
  }
  void fetch() { copy_bytes(host.data(), device, host.size() * sizeof(T)); }
  void print(const std::string& name) {  // FNV-1a
    fetch();
    uint64_t hash = 1469598103934665603ull;
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(host.data());
    for (size_t i = 0; i < host.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 1099511628211ull;
    printf("%-44s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash));
    fflush(stdout);
  }
  std::vector<T> host;
  T* device;
};

void warps();
void ampere();
void hopper();
void matrices();
void rounding(int capability);

}  // namespace fastdl::conformance
