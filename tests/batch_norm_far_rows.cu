// Batch norm's channels_last kernels where elements lie beyond 2^31 and 2^32: on some rows of tensors that
// are not there.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "batch_norm/rows_backward.cuh"
#include "batch_norm/rows_forward.cuh"

using namespace fastdl;
using namespace fastdl::batch_norm;

namespace fastdl::batch_norm {

constexpr int64_t kSeed = 987654321987654321;

// The forward and backward of one block's share of one slice, with mean 0.25, scale 2 and bias -0.5.
template <class scalar_t>
__global__ void far_rows_kernel(const __grid_constant__ ForwardArguments f,
                                const __grid_constant__ BackwardArguments b,
                                const __grid_constant__ Plan plan, int64_t slice, int64_t rank) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  FASTDL_SHARED(corrections, RowCorrections<scalar_t>);
  if (int(threadIdx.x) < plan.pack) {
    constants[threadIdx.x] = {acc_t(0.25), acc_t(2), acc_t(-0.5)};
    corrections[threadIdx.x] = {acc_t(0.5), acc_t(1)};
  }
  __syncthreads();
  const Column<scalar_t> column(f.size, plan, slice, rank);
  const RowReader<scalar_t> input(f.input, f.size, plan.positions, column);
  const RowReader<scalar_t> grad(b.grad_output, f.size, plan.positions, column);
  apply_forward<2>(
      f, plan.positions, column, constants, [&](int row) { return input.read(row); }, [](int) {});
  __syncthreads();
  BehindRows<scalar_t>(b, plan.positions, column, constants)
      .template apply<2>(
          corrections, [&](int row, Packet& g, Packet& x) { g = grad.read(row), x = input.read(row); },
          [](int) {});
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

template <class scalar_t>
void check_share(const Sizes& size, int64_t slice, int64_t rank) {
  const Plan plan = plan_rows(size, sizeof(scalar_t), 1, true, {132, 0, false});
  require(plan.regime == Regime::kStream && rank < plan.team && slice < plan.packs, "plan", rank);
  const int64_t share = plan.share / plan.vectors, first = rank * share, C = size.c;
  const int64_t rows = std::max<int64_t>(0, std::min(share, size.count() - first)), window = first * C,
                count = rows * C;
  const int64_t c0 = slice * plan.pack, end = std::min<int64_t>(C, c0 + plan.pack), bytes = (C + 7) / 8;
  std::vector<scalar_t> x(count), g(count), y(count, scalar_t(77.0f)), gx = y;
  std::vector<uint8_t> mask(rows * bytes, 0xEE);
  for (int64_t i = 0; i < count; ++i) x[i] = scalar_t(float(i % 7) - 3), g[i] = scalar_t(float(i % 5) - 2);
  const auto operand = [&](const std::vector<scalar_t>& data) {
    return Operand{begin_of(data.data(), window), size.s * C, 1, C};
  };
  ForwardArguments f{};
  f.size = size, f.input = operand(x), f.output = begin_of(y.data(), window);
  f.mask = begin_of(mask.data(), first * bytes);
  f.epilogue = {Activation::kRelu, &kSeed, KeepRule::of(0.3), KeepRule::scale(0.3)};
  BackwardArguments b{};
  b.size = size, b.training = true, b.input = f.input, b.grad_output = operand(g), b.mask = f.mask;
  b.epilogue = f.epilogue, b.grad_input = begin_of(gx.data(), window);
  LaunchConfig config;
  config.block = dim3(128);
  const char* error = launch(far_rows_kernel<scalar_t>, config, f, b, plan, slice, rank);
  require(!error, error ? error : "", first);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first + i / C, c = i % C, n = row / size.s, s = row % size.s;
    if (c < c0 || c >= end) {
      require(float(y[i]) == 77.0f && float(gx[i]) == 77.0f, "beyond the slice", window + i);
      continue;
    }
    const float d = float(i % 7) - 3 - 0.25f, v = d * 2 - 0.5f;
    const bool kept = keep_element(uint64_t(kSeed), uint64_t((n * C + c) * size.s + s), f.epilogue.keep);
    const float scale = float(f.epilogue.keep_scale), passes = kept && v > 0 ? scale : 0;
    const float expected[] = {v * passes, ((float(i % 5) - 2) * passes + d * 0.5f + 1) * 2};
    const float found[] = {float(y[i]), float(gx[i])};
    for (int k = 0; k < 2; ++k) {
      require(std::fabs(found[k] - expected[k]) <= 0.01f * (1 + std::fabs(expected[k])), "value", window + i);
    }
    require((mask[i / C * bytes + c / 8] >> (c % 8) & 1) == (v > 0), "mask", window + i);
  }
}

}  // namespace

int main() {
  // S of one row, of rows that octets fit, and that they do not.
  for (int64_t s : {1, 49, 3136}) {
    for (int64_t c : {37, 64, 200}) {
      const Sizes size{(int64_t(1) << 34) / (s * c), c, s, true};
      const Plan plan = plan_rows(size, 4, 1, true, {132, 0, false});
      require(plan.blocks() > 0 && plan.blocks() <= INT32_MAX, "blocks", plan.blocks());
      for (int64_t eighth : {0, 1, 2, 5, 7}) {
        const int64_t rank = plan.team / 8 * eighth, slice = plan.packs - 1;
        check_share<float>(size, 0, rank), check_share<float>(size, slice, rank);
        const Plan half_plan = plan_rows(size, 2, 1, true, {132, 0, false});
        check_share<half>(size, half_plan.packs - 1, half_plan.team - 1 - half_plan.team / 8 * eighth);
        check_share<bfloat16>(size, 0, half_plan.team / 8 * eighth);
      }
      check_share<double>(size, 0, plan_rows(size, 8, 1, true, {132, 0, false}).team - 1);
    }
  }
  puts("far indices: ok");
  return 0;
}
