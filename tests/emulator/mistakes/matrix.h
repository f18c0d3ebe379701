// Operands of the matrix products: small integers, so that every partial sum is exact.
#pragma once
#include "harness.h"

namespace fastdl::mistakes {

struct Shape {
  int M, N, K;
};

struct Matrices {
  Matrices(int M, int N, int K)
      : M(M), N(N), K(K), A(size_t(M) * size_t(K)), B(size_t(N) * size_t(K)), C(size_t(M) * size_t(N)) {
    A.fill([](size_t i) { return value(i) / 4; });
    B.fill([](size_t i) { return value(i + 7) / 4; });
  }
  void check() {
    for (int i = 0; i < M; ++i) {
      for (int j = 0; j < N; ++j) {
        float sum = 0;
        for (int k = 0; k < K; ++k) sum += float(A[size_t(i * K + k)]) * float(B[size_t(j * K + k)]);
        const float got = float(C[size_t(i * N + j)]);
        expect(got == float(bfloat16(sum)), "C(" + std::to_string(i) + "," + std::to_string(j) + ")");
      }
    }
  }
  int M, N, K;
  Buffer<bfloat16> A, B, C;
};

}  // namespace fastdl::mistakes
