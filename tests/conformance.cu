// What every instruction computes, as hashes: built by nvcc and run on a GPU, built by g++ and run anywhere.
// The two answers must be equal line by line (tests/conformance.py compares them).
#include "conformance/harness.h"
#include "conformance/warps.cuh"
#include "conformance/ampere.cuh"
#include "conformance/hopper.cuh"
#include "conformance/matrices.cuh"
#include "conformance/rounding.cuh"

int main() {
  using namespace fastdl::conformance;
  const int capability = fastdl::device_properties().capability;
  warps();
  if (capability >= 80) ampere();
  if (capability >= 90) hopper();
  if (capability == 90) matrices();
  if (capability >= 80) rounding(capability);
  return 0;
}
