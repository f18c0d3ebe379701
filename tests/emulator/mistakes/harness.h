// Correct kernels that can be told, at run time, to make one mistake. A case prepares data, launches and
// compares.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>
#include "reduce.cuh"
#include "vector.cuh"

namespace fastdl::mistakes {

extern int seeded;  // the mistake's number, 0 for none
inline bool mistake(int number) { return seeded == number; }

// Global memory of exactly n elements, aligned as cudaMalloc aligns, NaN at first.
template <class T>
struct Buffer {
  explicit Buffer(size_t n) : size(n) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 256, n * sizeof(T) + (n == 0))) abort();
    memset(static_cast<void*>(data), 0xFF, n * sizeof(T));
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  T& operator[](size_t i) { return data[i]; }
  template <class F>
  Buffer& fill(F&& f) {
    for (size_t i = 0; i < size; ++i) data[i] = T(f(i));
    return *this;
  }
  T* data;
  size_t size;
};

// Small integers: their sums are exact.
inline float value(size_t i) { return float(int((i * 2654435761u >> 7) % 13) - 6); }

inline void expect(bool correct, const std::string& what) {
  if (!correct) throw std::runtime_error("wrong result: " + what);
}
inline void expect_close(double got, double want, double tolerance, const std::string& what) {
  expect(std::fabs(got - want) <= tolerance,
         what + " is " + std::to_string(got) + ", expected " + std::to_string(want));
}
inline void accepted(const char* error) {
  if (error) throw std::runtime_error(std::string("launch refused: ") + error);
}

struct Case {
  const char* name;
  void (*run)();
};
std::vector<Case>& cases();
struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};
#define FASTDL_CASE(name)                                                          \
  static void name##_case();                                                       \
  static const ::fastdl::mistakes::Register name##_registered{#name, name##_case}; \
  static void name##_case()

}  // namespace fastdl::mistakes
