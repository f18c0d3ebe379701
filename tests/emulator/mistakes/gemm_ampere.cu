// C (M, N) = A (M, K) B (N, K)^T in bfloat16: cp.async in two stages, ldmatrix, mma.sync.
#include "harness.h"
#include "matrix.h"

namespace fastdl::mistakes {

constexpr int kTile = 64, kStep = 32, kRowBytes = kStep * 2, kStageBytes = kTile * kRowBytes;

// 16-byte chunk c of row r: rows of 64 bytes, chunks exchanged so that 8 rows hit all banks.
FASTDL_DEVICE uint32_t chunk(int r, int c) { return uint32_t(r * kRowBytes + ((c ^ (r / 2 & 3)) * 16)); }

FASTDL_DEVICE void load_tile(uint32_t to, const bfloat16* x, int row0, int rows, int k0, int K) {
  for (int i = int(threadIdx.x); i < kTile * 4; i += 128) {
    const int r = i / 4, c = i % 4, k = k0 + c * 8;
    const bool inside = row0 + r < rows && (k < K || mistake(16));
    const int valid = !inside ? 0 : K - k >= 8 || mistake(16) ? 16 : (K - k) * 2;
    ptx::copy_async(to + chunk(r, c), inside ? x + int64_t(row0 + r) * K + k : x, valid);
  }
}

__global__ void __launch_bounds__(128)
    gemm_ampere_kernel(const bfloat16* A, const bfloat16* B, bfloat16* C, int M, int N, int K) {
  FASTDL_DYNAMIC_SHARED(bytes);
  const uint32_t a_tiles = ptx::shared_address(bytes), b_tiles = a_tiles + 2 * kStageBytes;
  const int m0 = int(blockIdx.y) * kTile, n0 = int(blockIdx.x) * kTile, steps = (K + kStep - 1) / kStep;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
  float acc[2][4][4] = {};
  const auto load_step = [&](int step) {
    const uint32_t stage = uint32_t(step % 2) * kStageBytes;
    load_tile(a_tiles + stage, A, m0, M, step * kStep, K);
    load_tile(b_tiles + stage, B, n0, N, step * kStep, K);
  };
  load_step(0);
  ptx::copy_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load_step(step + 1);
    if (!mistake(17)) ptx::copy_async_commit();
    if (mistake(10)) {
      ptx::copy_async_wait<2>();
    } else {
      ptx::copy_async_wait<1>();
    }
    if (!mistake(11)) __syncthreads();
    const uint32_t stage = uint32_t(step % 2) * kStageBytes;
    for (int k = 0; k < kStep / 16; ++k) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) {
        ptx::ldmatrix<4>(a[i], a_tiles + stage + chunk(warp_m + i * 16 + lane % 16, k * 2 + lane / 16));
      }
      for (int j = 0; j < 2; ++j) {  // (n 0-7, k low), (n 0-7, k high), (n 8-15, k low), (n 8-15, k high)
        int row = warp_n + j * 16 + lane % 8 + lane / 16 * 8, column = k * 2 + (lane / 8 & 1);
        if (mistake(13)) row = warp_n + j * 16 + lane % 16, column = k * 2 + lane / 16;  // the pattern of A
        ptx::ldmatrix<4>(b[j], b_tiles + stage + chunk(row, column));
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          if (mistake(18)) std::swap(pair[0], pair[1]);
          ptx::mma_m16n8k16<bfloat16>(acc[i][j], a[i], pair);
        }
      }
    }
    if (!mistake(12)) __syncthreads();  // before the next step overwrites this stage
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 4; ++e) {
        const int row = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8,
                  column = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
        if ((row < M || mistake(19)) && column < N) C[int64_t(row) * N + column] = bfloat16(acc[i][j][e]);
      }
    }
  }
}

FASTDL_CASE(gemm_ampere) {
  for (const auto& [M, N, K] : {Shape{64, 64, 32}, Shape{100, 72, 104}, Shape{70, 40, 200}}) {
    Matrices m(M, N, K);
    const dim3 grid(unsigned(N + kTile - 1) / kTile, unsigned(M + kTile - 1) / kTile);
    accepted(launch(gemm_ampere_kernel, {grid, 128, 4 * kStageBytes}, m.A.data, m.B.data, m.C.data, M, N, K));
    m.check();
  }
}

// ldmatrix and stmatrix: a tile of 16 x 16 goes through registers and comes back transposed.
__global__ void transpose_kernel(const bfloat16* x, bfloat16* y) {
  FASTDL_DYNAMIC_SHARED(bytes);
  bfloat16* s = reinterpret_cast<bfloat16*>(bytes);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) s[i] = x[i];
  if (!mistake(20)) __syncwarp();
  // Matrix i of the four holds rows i % 2 * 8 on, columns i / 2 * 8 on.
  const uint32_t base = ptx::shared_address(bytes), row = uint32_t(lane % 16), half_row = uint32_t(lane / 16);
  uint32_t r[4];
  ptx::ldmatrix<4>(r, base + row * 32 + half_row * 16 + (mistake(66) && lane == 7 ? 8 : 0));
  std::swap(r[1], r[2]);
  __syncwarp();
  ptx::stmatrix<4, true>(base + row * 32 + half_row * 16 + (mistake(22) && lane == 31 ? 16 : 0), r);
  if (!mistake(23)) __syncwarp();
  for (int i = lane; i < 256; i += 32) y[i] = s[i];
}
FASTDL_CASE(transpose) {
  Buffer<bfloat16> x(256), y(256);
  x.fill(value);
  accepted(launch(transpose_kernel, {1, 32, 512}, x.data, y.data));
  for (size_t i = 0; i < 256; ++i) expect_close(y[i], x[i % 16 * 16 + i / 16], 0, "y");
}

}  // namespace fastdl::mistakes
