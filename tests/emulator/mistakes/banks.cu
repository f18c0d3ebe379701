// Passes of shared memory, as the race flavour counts them: each pattern has a number that follows from 32
// banks of 4 bytes.
#include "harness.h"

extern "C" {
void fastdl_emulator_count_banks(int on);
void fastdl_emulator_banks(const char* part, uint64_t* accesses, uint64_t* passes, uint64_t* least);
const char* fastdl_emulator_bank_places(const char* part);
}

namespace fastdl::mistakes {

// Runs f, then holds all accesses of `kernel` to so many, so many passes, and the least.
template <class F>
void expect_passes(const char* kernel, uint64_t accesses, uint64_t passes, uint64_t least, F f) {
#if defined(__SANITIZE_THREAD__)
  fastdl_emulator_count_banks(1);
  f();
  fastdl_emulator_count_banks(0);
  uint64_t got[3];
  fastdl_emulator_banks(kernel, &got[0], &got[1], &got[2]);
  const auto text = [](uint64_t a, uint64_t p, uint64_t l) {
    return std::to_string(a) + " accesses, " + std::to_string(p) + " passes, least " + std::to_string(l);
  };
  expect(got[0] == accesses && got[1] == passes && got[2] == least,
         text(got[0], got[1], got[2]) + ", expected " + text(accesses, passes, least) +
             "; bank conflicts at " + fastdl_emulator_bank_places(kernel));
#else
  f();
#endif
}

// A tile written by rows and read by columns, in lines of 33 words.
__global__ void transposed_tile_kernel(const float* x, float* y) {
  FASTDL_SHARED(tile, float[32 * 33]);
  const int pitch = mistake(110) ? 32 : 33, lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for (int i = warp; i < 32; i += 4) tile[i * pitch + lane] = load(x + i * 32 + lane);
  __syncthreads();
  for (int i = warp; i < 32; i += 4) store(y + i * 32 + lane, tile[lane * pitch + i]);
}
FASTDL_CASE(transposed_tile) {
  Buffer<float> x(1024), y(1024);
  x.fill(value);
  expect_passes("transposed_tile", 64, 64, 64,
                [&] { accepted(launch(transposed_tile_kernel, {1, 128}, x.data, y.data)); });
  for (size_t i = 0; i < 1024; ++i) expect_close(y[i], x[i % 32 * 32 + i / 32], 0, "y");
}

// Each lane reads a T, `stride` of them from the last lane's, by the first `lanes` lanes.
template <class T>
__global__ void strided_kernel(float* y, int stride, int lanes) {
  FASTDL_DYNAMIC_SHARED(bytes);
  T* const shared = reinterpret_cast<T*>(bytes);
  if (int(threadIdx.x) >= lanes) return;
  const T value = shared[int(threadIdx.x) * stride];
  memcpy(static_cast<void*>(y + threadIdx.x * 4), &value, sizeof value);
}
template <class T>
void expect_strided(int stride, uint64_t passes, uint64_t least, int lanes = 32) {
  Buffer<float> y(128);
  expect_passes("strided", 1, passes, least,
                [&] { accepted(launch(strided_kernel<T>, {1, 32, 32 * 1024}, y.data, stride, lanes)); });
}
FASTDL_CASE(strided) {
  expect_strided<float>(1, 1, 1);
  expect_strided<float>(0, 1, 1);  // one word for all
  expect_strided<float>(5, 1, 1);  // odd
  expect_strided<float>(2, 2, 1);
  expect_strided<float>(32, 32, 1);
  expect_strided<float>(32, 8, 1, 8);
  expect_strided<uint16_t>(1, 1, 1);  // two lanes a word
  expect_strided<uint16_t>(64, 32, 1);
  expect_strided<Vector<float, 2>>(1, 2, 2);
  expect_strided<Vector<float, 2>>(2, 4, 2);
  expect_strided<Vector<float, 4>>(1, 4, 4);
  expect_strided<Vector<float, 4>>(9, 4, 4);  // 8 lanes, 144 bytes apart
  expect_strided<Vector<float, 4>>(2, 8, 4);
  expect_strided<Vector<float, 4>>(1, 2, 2, 16);
}

// Neighbours that a compiler joins to one access of 16 bytes, in a loop; then the same from odd lines, which
// it cannot join.
__global__ void joined_kernel(float* y, int pitch) {
  FASTDL_DYNAMIC_SHARED(bytes);
  const float* const line = reinterpret_cast<float*>(bytes) + int(threadIdx.x) * pitch;
  for (int i = 0; i < 8; ++i) y[i * 32 + int(threadIdx.x)] = line[i];
}
FASTDL_CASE(joined) {
  Buffer<float> y(256);
  const auto run = [&](int pitch) {
    return [&y, pitch] { accepted(launch(joined_kernel, {1, 32, 32 * 1024}, y.data, pitch)); };
  };
  expect_passes("joined", 2, 8, 8, run(12));
  expect_passes("joined", 2, 16, 8, run(8));
  expect_passes("joined", 8, 8, 8, run(9));
}

// Rows of ldmatrix and stmatrix, and of cp.async, `pitch` bytes apart.
__global__ void matrices_kernel(const float* x, uint32_t* y, int pitch) {
  FASTDL_DYNAMIC_SHARED(bytes);
  const uint32_t row = ptx::shared_address(bytes + int(threadIdx.x) * pitch);
  ptx::copy_async<16>(row, x + threadIdx.x * 4);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  ptx::ldmatrix<4>(r, row);
  __syncwarp();
  ptx::stmatrix<4>(row, r);
  y[threadIdx.x] = r[0];
}
FASTDL_CASE(matrices) {
  Buffer<float> x(128);
  Buffer<uint32_t> y(32);
  const auto run = [&](int pitch) {
    return [&x, &y, pitch] { accepted(launch(matrices_kernel, {1, 32, 8192}, x.data, y.data, pitch)); };
  };
  expect_passes("matrices", 3, 12, 12, run(16));
  expect_passes("matrices", 3, 12, 12, run(80));
  expect_passes("matrices", 3, 48, 12, run(64));
  expect_passes("matrices", 3, 96, 12, run(128));
}

}  // namespace fastdl::mistakes
