// Batch norm's plan and kernels where elements lie beyond 2^31 and 2^32: on one row of tensors that are not
// there.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "batch_norm/channels_backward.cuh"
#include "batch_norm/channels_forward.cuh"

using namespace fastdl;
using namespace fastdl::batch_norm;

namespace fastdl::batch_norm {

constexpr int64_t kSeed = -1234567890123456789;
constexpr float kHi = 0.25f, kScale = 2.0f, kBias = -0.5f;

// The forward and backward of image n of a channel, and its statistics.
template <class scalar_t>
__global__ void far_kernel(const __grid_constant__ ForwardArguments f,
                           const __grid_constant__ BackwardArguments b, uint32_t vectors, int64_t n,
                           int64_t c, Moments<double>* moments, Sums* sums) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, Constants<acc_t>);
  FASTDL_SHARED(correction, Correction<acc_t>);
  if (threadIdx.x == 0) {
    constants = {acc_t(kHi), acc_t(kScale), acc_t(kBias)};
    correction = {acc_t(0.5), acc_t(1)};
  }
  __syncthreads();
  const Rows<kVectorSize<scalar_t>> rows(f.size, c, 1, vectors);
  const Reader<scalar_t> input(f.input, f.size, c), grad(b.grad_output, f.size, c);
  const int64_t first = n * vectors;
  const int count = int(vectors), thread = int(threadIdx.x), threads = int(blockDim.x);
  moments[thread] = gather_moments<scalar_t>(rows, first, count, thread, threads,
                                             [&](int, const Place& p) { return input.read(p); });
  apply_forward<2, scalar_t, false>(
      f, rows, c, 1, first, count, &constants, [&](int, const Place& p) { return input.read(p); },
      [](int, const Place&) {});
  __syncthreads();
  const auto both = [&](int, const Place& p, Packet& g, Packet& x) { g = grad.read(p), x = input.read(p); };
  const Behind<scalar_t> behind(b, c);
  sums[thread] = gather_sums<1>(behind, rows, first, count, thread, threads, constants, both);
  apply_backward<1, scalar_t, false>(behind, rows, 1, first, count, &constants, &correction, both,
                                     [](int, const Place&) {});
}

}  // namespace fastdl::batch_norm

namespace {

void require(bool holds, const char* what, int64_t where) {
  if (holds) return;
  printf("FAILED: %s at %lld\n", what, static_cast<long long>(where));
  exit(1);
}

// Where a tensor begins of which `window` holds what lies from element `first` on.
template <class T>
T* begin_of(T* window, int64_t first) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(window) - uintptr_t(first) * sizeof(T));
}

template <class T>
T* aligned(std::vector<T>& v) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(v.data()) + 15) / 16 * 16);
}

template <class scalar_t>
void check_row(const Sizes& size, int64_t n, int64_t c, int64_t stride_s) {
  constexpr int kThreads = 64;
  const int64_t row = (n * size.c + c) * size.s, window = row / 8 * 8, before = row - window;
  const int64_t padded = size.s + 32;
  std::vector<scalar_t> x(padded * stride_s), z(padded), g(padded), y(padded), gx(padded), gz(padded);
  std::vector<uint8_t> mask(padded / 8 + 2, 0xEE);
  scalar_t *from = aligned(x), *residual = aligned(z), *grad = aligned(g);
  scalar_t* outputs[] = {aligned(y), aligned(gx), aligned(gz)};
  for (int64_t i = 0; i < size.s; ++i) {
    from[(before + i) * stride_s] = scalar_t(float(i % 7) - 3);
    residual[before + i] = scalar_t(float(i % 3) - 1), grad[before + i] = scalar_t(float(i % 5) - 2);
  }
  for (scalar_t* output : outputs) {
    for (int64_t i = 0; i < padded - 8; ++i) output[i] = scalar_t(77.0f);
  }
  const auto operand = [&](const scalar_t* data, int64_t step) {
    return Operand{begin_of(data, window * step), size.c * size.s * step, size.s * step, step};
  };
  const int64_t mask_row = window / 8 + (size.s % 8 ? n * size.c + c : 0);
  ForwardArguments f{};
  f.size = size, f.input = operand(from, stride_s), f.residual = operand(residual, 1);
  f.output = begin_of(outputs[0], window), f.mask = begin_of(mask.data(), mask_row);
  f.epilogue = {Activation::kRelu, &kSeed, KeepRule::of(0.3), KeepRule::scale(0.3)};
  BackwardArguments b{};
  b.size = size, b.training = true, b.input = f.input, b.residual = f.residual;
  b.grad_output = operand(grad, 1), b.mask = f.mask, b.epilogue = f.epilogue;
  b.grad_input = begin_of(outputs[1], window), b.grad_residual = begin_of(outputs[2], window);
  const DeviceLimits device{132, 232448, true};
  const uint32_t vectors = plan_channels(size, sizeof(scalar_t), 1, true, false, device).vectors;
  std::vector<Moments<double>> moments(kThreads);
  std::vector<Sums> sums(kThreads);
  LaunchConfig config;
  config.block = dim3(kThreads);
  const char* error = launch(far_kernel<scalar_t>, config, f, b, vectors, n, c, moments.data(), sums.data());
  require(!error, error ? error : "", row);
  double mean = 0, dot = 0;
  for (int64_t i = -before; i < padded - 8 - before; ++i) {
    const int64_t at = before + i;
    if (i < 0 || i >= size.s) {
      for (scalar_t* output : outputs) require(float(output[at]) == 77.0f, "beyond the row", row + i);
      continue;
    }
    const float d = float(i % 7) - 3 - kHi, v = d * kScale + kBias + float(i % 3) - 1;
    const bool kept = keep_element(uint64_t(kSeed), uint64_t(row + i), f.epilogue.keep);
    const float scale = float(f.epilogue.keep_scale), out = kept && v > 0 ? v * scale : 0;
    const float in = kept && v > 0 ? (float(i % 5) - 2) * scale : 0;
    const float expected[] = {out, (in + d * 0.5f + 1) * kScale, in};
    for (int k = 0; k < 3; ++k) {
      const float error = std::fabs(float(outputs[k][at]) - expected[k]);
      require(error <= 0.01f * (1 + std::fabs(expected[k])), "value", row + i);
    }
    const int64_t bit = (row + i) / 8 - window / 8;
    require((mask[bit] >> ((row + i) % 8) & 1) == (v > 0), "mask", row + i);
    mean += (d + kHi) / double(size.s), dot += double(in) * d;
  }
  Moments<double> all = Moments<double>::none();
  for (const auto& part : moments) all = MergeMoments()(all, part);
  require(all.count == double(size.s) && std::fabs(all.mean - mean) < 1e-6, "moments", row);
  for (const auto& part : sums) dot -= part.dot;
  require(std::fabs(dot) < 1e-3 * double(size.s), "sums", row);
}

// Every block of a plan has work, in 31 bits, and together they cover all of it.
void check_plan(const Sizes& size, int bytes, int operands, bool reduces, const DeviceLimits& device) {
  require(plan_fits(size, bytes) == (size.s < int64_t(1) << 36), "fits", size.s);
  if (!plan_fits(size, bytes)) return;
  const Plan p = plan_channels(size, bytes, operands, reduces, false, device);
  const int64_t octets = (size.s + 7) / 8 * (8 / (16 / bytes));
  require(p.slots == size.n * int64_t(p.vectors) && p.vectors >= octets, "slots", p.slots);
  require(p.share > 0 && int64_t(p.share) * p.team >= p.slots, "share", p.share);
  require(p.blocks() > 0 && p.blocks() <= 0x7FFFFFFF, "blocks", p.blocks());
}

}  // namespace

int main() {
  const DeviceLimits devices[] = {{132, 232448, true}, {108, 166912, false}, {16, 0, false}};
  const Sizes huge[] = {{1, 1, int64_t(1) << 36, false},
                        {1, 3, (int64_t(1) << 32) + 5, false},
                        {int64_t(1) << 28, 3, 9, false},
                        {70000, 1 << 16, 49, false},
                        {1 << 21, 5, (1 << 14) + 3, false}};
  for (const Sizes& size : huge) {
    for (const DeviceLimits& device : devices) {
      for (int bytes : {2, 4, 8}) {
        for (int operands : {1, 2}) {
          check_plan(size, bytes, operands, true, device);
          check_plan(size, bytes, operands, false, device);
        }
      }
    }
  }
  // Rows at 2^31, 2^32 and beyond, which begin anywhere in an octet.
  for (int64_t s : {131, 1 << 10, 4099}) {
    const Sizes size{int64_t(1) << 30, 37, s, false};
    for (int64_t image : {int64_t(0), (int64_t(1) << 31) / (37 * s), (int64_t(1) << 32) / (37 * s) + 1,
                          (int64_t(1) << 29) + 3, size.n - 1}) {
      for (int64_t c : {0, 5, 36}) {
        check_row<float>(size, image, c, 1), check_row<half>(size, image, c, 1);
        check_row<double>(size, image, c, 3), check_row<bfloat16>(size, image, c, 2);
      }
    }
  }
  puts("far indices: ok");
  return 0;
}
