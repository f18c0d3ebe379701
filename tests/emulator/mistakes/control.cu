// What tests set and read: the device that host code sees, refused launches, launches and bytes by kernel.
#include "harness.h"

extern "C" {
void fastdl_emulator_device(int multiprocessors, int shared_bytes_per_block, int capability);
void fastdl_emulator_reset_counters();
void fastdl_emulator_counters(const char* part, uint64_t* launches, uint64_t* bytes_read,
                              uint64_t* bytes_written);
const char* fastdl_emulator_kernels();
}

namespace fastdl::mistakes {

template <class scalar_t>
__global__ void copy_vectors_kernel(const scalar_t* x, scalar_t* y, int n) {
  FASTDL_SHARED(s, scalar_t[32]);
  constexpr int kSize = kVectorSize<scalar_t>;
  s[threadIdx.x] = scalar_t(0.0f);
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x) * kSize;
  if (i + kSize <= n) store_vector(y + i, load_vector<kSize>(x + i));
}

FASTDL_CASE(counters) {
  Buffer<half> x(512), y(512);
  x.fill(value);
  fastdl_emulator_reset_counters();
  for (int i = 0; i < 3; ++i) accepted(launch(copy_vectors_kernel<half>, {2, 32}, x.data, y.data, 512));
  accepted(launch(copy_vectors_kernel<float>, {1, 32}, reinterpret_cast<const float*>(x.data),
                  reinterpret_cast<float*>(y.data), 4));
  uint64_t launches = 0, read = 0, written = 0;
  fastdl_emulator_counters("copy_vectors_kernel<fastdl::half>", &launches, &read, &written);
  expect(launches == 3 && read == 3 * 1024 && written == 3 * 1024, "counters of one kernel");
  fastdl_emulator_counters("", &launches, &read, &written);
  expect(launches == 4 && read == 3 * 1024 + 16 && written == 3 * 1024 + 16, "counters of all kernels");
  expect(strstr(fastdl_emulator_kernels(), "copy_vectors_kernel<float>\n") != nullptr, "kernel names");
}

FASTDL_CASE(refused_launches) {
  Buffer<float> x(128), y(128);
  const auto refused = [&](LaunchConfig config, const char* reason) {
    const char* error = launch(copy_vectors_kernel<float>, config, x.data, y.data, 0);
    expect(error && strstr(error, reason), std::string("refusal: ") + reason);
  };
  refused({0, 32}, "empty");
  refused({1, 2048}, "over 1024 threads");
  refused({dim3(1, 70000), 32}, "grid over");
  refused({1, 32, 300 * 1024}, "too much shared memory");
  LaunchConfig cluster{3, 32};
  cluster.cluster = 2;
  refused(cluster, "cluster");
  LaunchConfig cooperative{132 * 32 + 1, 32};
  cooperative.cooperative = true;
  refused(cooperative, "too many blocks");
  expect(resident_blocks(copy_vectors_kernel<float>, 1024, 0) == 264, "resident blocks by threads");
  expect(resident_blocks(copy_vectors_kernel<float>, 128, 100 * 1024) == 264,
         "resident blocks by shared memory");
  fastdl_emulator_device(10, 99 * 1024, 86);
  const DeviceProperties d = device_properties();
  expect(d.multiprocessors == 10 && d.shared_bytes_per_block == 99 * 1024 && !d.has_clusters(),
         "another device");
  cluster.grid = 2;
  refused(cluster, "no clusters");
  refused({1, 32, 100 * 1024}, "too much shared memory");
  fastdl_emulator_device(132, 227 * 1024, 90);
}

}  // namespace fastdl::mistakes
