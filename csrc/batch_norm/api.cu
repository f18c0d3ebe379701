// Which kernel: by layout, size and device.
#include "batch_norm/api.h"
#include "batch_norm/channels_backward.cuh"
#include "batch_norm/channels_forward.cuh"

namespace fastdl::batch_norm {
namespace {

DeviceLimits limits() {
  const DeviceProperties device = device_properties();
  const bool resident = device.capability >= 80;  // by cp.async
  return {device.multiprocessors, resident ? device.shared_bytes_per_block : 0, device.has_clusters()};
}

int bytes_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// Rows of neighbouring channels follow each other.
bool packs(const Sizes& size, std::initializer_list<Operand> operands) {
  return std::all_of(operands.begin(), operands.end(),
                     [&](const Operand& o) { return !o.data || o.stride_c == size.s * o.stride_s; });
}

ChannelPlan plan_of(const ForwardArguments& a, const DeviceLimits& device) {
  return plan_channels(a.size, bytes_of(a.dtype), 1, a.training, packs(a.size, {a.input, a.residual}),
                       device);
}
ChannelPlan plan_of(const BackwardArguments& a, const DeviceLimits& device) {
  const bool reduces = a.grad_weight.data || a.grad_bias.data || (a.training && a.grad_input);
  return plan_channels(a.size, bytes_of(a.dtype), 2, reduces,
                       packs(a.size, {a.grad_output, a.input, a.residual}), device);
}

// The kernels of a direction: resident, sums, apply; for single channels and for packs of short rows.
template <class Arguments>
struct Kernels {
  void (*resident[2])(Arguments, ChannelPlan, void*);
  void (*sums)(Arguments, ChannelPlan, double*);
  void (*apply[2])(Arguments, ChannelPlan, const double*);
};

// Where the device, or the share of it that this process has, does not hold all blocks of a group at once, it
// streams.
template <class Arguments>
ChannelPlan plan_of(const Kernels<Arguments>& kernels, const Arguments& a) {
  const ChannelPlan plan = plan_of(a, limits());
  if (plan.regime != Regime::kGroup) return plan;
  const int64_t room = resident_blocks(kernels.resident[0], plan.threads, size_t(plan.shared_bytes));
  return plan.blocks() <= room ? plan : plan_of(a, {limits().multiprocessors, 0, false});
}

size_t workspace_of(const ChannelPlan& plan) {
  if (plan.regime == Regime::kStream) return size_t(plan.blocks()) * Team::kExchange * sizeof(double);
  return plan.regime == Regime::kGroup ? size_t(Team::workspace_bytes(plan)) : 0;
}

LaunchConfig config_of(const ChannelPlan& plan, void* stream) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks()));
  config.block = dim3(unsigned(plan.threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.stream = stream;
  if (plan.regime == Regime::kCluster) config.cluster = dim3(unsigned(plan.team));
  config.cooperative = plan.regime == Regime::kGroup;
  return config;
}

template <class Arguments>
const char* run(const Kernels<Arguments>& kernels, const Arguments& a, void* workspace, void* stream) {
  const ChannelPlan plan = plan_of(kernels, a);
  if (plan.blocks() == 0) return nullptr;
  if (!plan_fits(a.size, bytes_of(a.dtype)) || plan.blocks() > INT32_MAX) {
    return "over 2^32 images, 64 GiB of a channel in one image, or 2^31 blocks; split the batch";
  }
  const LaunchConfig config = config_of(plan, stream);
  const bool packed = plan.pack > 1;
  double* const partials = plan.regime == Regime::kStream ? static_cast<double*>(workspace) : nullptr;
  switch (plan.regime) {
    case Regime::kStream:
      if (const char* error = launch(kernels.sums, config, a, plan, partials)) return error;
      [[fallthrough]];
    case Regime::kApply:
      return launch(kernels.apply[packed], config, a, plan, partials);
    case Regime::kGroup:
      if (const char* error = fill_zero(workspace, size_t(Team::arrival_bytes(plan)), stream)) return error;
      [[fallthrough]];
    default:
      return launch(kernels.resident[packed], config, a, plan, workspace);
  }
}

template <class scalar_t>
Kernels<ForwardArguments> forward_kernels() {
  return {{channel_forward_kernel<scalar_t, false>, channel_forward_kernel<scalar_t, true>},
          channel_moments_kernel<scalar_t>,
          {channel_apply_kernel<scalar_t, false>, channel_apply_kernel<scalar_t, true>}};
}
template <class scalar_t>
Kernels<BackwardArguments> backward_kernels() {
  return {{channel_backward_kernel<scalar_t, false>, channel_backward_kernel<scalar_t, true>},
          channel_sums_kernel<scalar_t>,
          {channel_apply_backward_kernel<scalar_t, false>, channel_apply_backward_kernel<scalar_t, true>}};
}

template <class F>
auto with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float());
    case Dtype::kFloat64:
      return f(double());
    case Dtype::kFloat16:
      return f(half());
    default:
      return f(bfloat16());
  }
}

}  // namespace

size_t forward_workspace(const ForwardArguments& a) {
  return with_dtype(a.dtype,
                    [&](auto zero) { return workspace_of(plan_of(forward_kernels<decltype(zero)>(), a)); });
}
size_t backward_workspace(const BackwardArguments& a) {
  return with_dtype(a.dtype,
                    [&](auto zero) { return workspace_of(plan_of(backward_kernels<decltype(zero)>(), a)); });
}

const char* forward(const ForwardArguments& a, void* workspace, void* stream) {
  const char* error = with_dtype(
      a.dtype, [&](auto zero) { return run(forward_kernels<decltype(zero)>(), a, workspace, stream); });
  if (error || !a.training || !a.num_batches_tracked || !a.cumulative) return error;
  LaunchConfig one;
  one.stream = stream;
  return launch(advance_counter_kernel, one, a);
}

const char* backward(const BackwardArguments& a, void* workspace, void* stream) {
  return with_dtype(a.dtype,
                    [&](auto zero) { return run(backward_kernels<decltype(zero)>(), a, workspace, stream); });
}

}  // namespace fastdl::batch_norm
