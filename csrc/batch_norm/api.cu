// Which kernel: by layout, size and device.
#include "batch_norm/api.h"
#include "batch_norm/kernels.h"
#include "batch_norm/team.cuh"

namespace fastdl::batch_norm {

// Behind a launch whose factor is 1 / num_batches_tracked: there, every channel reads the counter.
__global__ void advance_counter_kernel(const __grid_constant__ ForwardArguments a) { advance_counter(a); }

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

Plan plan_of(const ForwardArguments& a, const DeviceLimits& device) {
  const int bytes = bytes_of(a.dtype);
  return a.size.channels_last
             ? plan_rows(a.size, bytes, 1, a.training && !a.given.mean, device)
             : plan_channels(a.size, bytes, 1, a.training, packs(a.size, {a.input, a.residual}), device);
}
Plan plan_of(const BackwardArguments& a, const DeviceLimits& device) {
  const bool reduces = a.grad_weight.data || a.grad_bias.data || (a.training && a.grad_input);
  const int bytes = bytes_of(a.dtype);
  return a.size.channels_last ? plan_rows(a.size, bytes, 2, reduces, device)
                              : plan_channels(a.size, bytes, 2, reduces,
                                              packs(a.size, {a.grad_output, a.input, a.residual}), device);
}

Kernels<ForwardArguments> kernels_of(const ForwardArguments& a) {
  return a.size.channels_last ? row_forward_kernels(a.dtype) : channel_forward_kernels(a.dtype);
}
Kernels<BackwardArguments> kernels_of(const BackwardArguments& a) {
  return a.size.channels_last ? row_backward_kernels(a.dtype) : channel_backward_kernels(a.dtype);
}

// Where the device, or the share of it that this process has, does not hold all blocks of a group at once, it
// streams.
template <class Arguments>
Plan plan_of(const Kernels<Arguments>& kernels, const Arguments& a) {
  const Plan plan = plan_of(a, limits());
  if (plan.regime != Regime::kGroup) return plan;
  const int64_t room = resident_blocks(kernels.resident[0], plan.threads, size_t(plan.shared_bytes));
  return plan.blocks() <= room ? plan : plan_of(a, {limits().multiprocessors, 0, false});
}

// Whether blocks that merge given moments themselves would read more of them than of their rows.
bool merges_first(const ForwardArguments& a, const Plan& plan) {
  const int64_t each = a.dtype == Dtype::kFloat64 ? 8 : 4;
  return a.given.mean && a.given.blocks * plan.pack * 2 * each > int64_t(plan.share) * 16;
}
bool merges_first(const BackwardArguments&, const Plan&) { return false; }

template <class Arguments>
size_t workspace_of(const Arguments& a, const Plan& plan) {
  if (merges_first(a, plan)) return size_t(a.size.c) * Team::kExchange * sizeof(double);
  const bool streams = plan.regime == Regime::kStream;
  if (plan.regime == Regime::kGroup || (streams && plan.rows)) return size_t(Team::workspace_bytes(plan));
  return streams ? size_t(plan.blocks()) * Team::kExchange * sizeof(double) : 0;
}

LaunchConfig config_of(const Plan& plan, void* stream) {
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
const char* run(const Arguments& a, void* workspace, void* stream) {
  const Kernels<Arguments> kernels = kernels_of(a);
  const Plan plan = plan_of(kernels, a);
  if (plan.blocks() == 0) return nullptr;
  if (!plan_fits(a.size, bytes_of(a.dtype)) || plan.blocks() > INT32_MAX) {
    return "over 2^32 images, 64 GiB of a channel in one image, or 2^31 blocks; split the batch";
  }
  const LaunchConfig config = config_of(plan, stream);
  const bool packed = plan.pack > 1;
  switch (plan.regime) {
    case Regime::kApply: {
      void* merged = nullptr;
      if constexpr (std::is_same_v<Arguments, ForwardArguments>) {
        if (merges_first(a, plan)) {
          merged = workspace;
          if (const char* error = merge_given(a, merged, stream)) return error;
        }
      }
      return launch(kernels.apply[packed], config, a, plan, merged);
    }
    case Regime::kStream: {
      const char* error = launch(kernels.sums, config, a, plan, workspace);
      if (!error && plan.rows) {
        LaunchConfig channels = config;
        channels.grid = dim3(unsigned(plan.packs * plan.pack)), channels.block = dim3(kThreads);
        error = launch(kernels.merge, channels, a, plan, workspace);
      }
      return error ? error : launch(kernels.apply[packed], config, a, plan, workspace);
    }
    case Regime::kGroup:
      if (const char* error = fill_zero(workspace, size_t(Team::arrival_bytes(plan)), stream)) return error;
      [[fallthrough]];
    default:
      return launch(kernels.resident[packed], config, a, plan, workspace);
  }
}

}  // namespace

size_t forward_workspace(const ForwardArguments& a) { return workspace_of(a, plan_of(kernels_of(a), a)); }
size_t backward_workspace(const BackwardArguments& a) { return workspace_of(a, plan_of(kernels_of(a), a)); }

const char* forward(const ForwardArguments& a, void* workspace, void* stream) {
  const char* error = run(a, workspace, stream);
  if (error || !a.training || !a.num_batches_tracked || !a.cumulative) return error;
  LaunchConfig one;
  one.stream = stream;
  return launch(advance_counter_kernel, one, a);
}

const char* backward(const BackwardArguments& a, void* workspace, void* stream) {
  return run(a, workspace, stream);
}

}  // namespace fastdl::batch_norm
