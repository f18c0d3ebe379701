#include "optim/api.h"
#include "optim/update.cuh"

#include <cstring>

namespace fastdl::optim {
namespace {

template <class Kind, int kBytes>
const char* launch_with(const StepArguments& arguments, const void* table, int64_t bytes, void* stream) {
  LaunchConfig config;
  config.block = dim3(kThreads);
  const int64_t resident = std::min(resident_blocks(step_kernel<Kind, kBytes>, kThreads, 0), kMaxBlocks);
  config.grid = dim3(unsigned(std::clamp(arguments.tiles, int64_t(1), resident)));
  config.cooperative = true;
  config.stream = stream;
  LaunchArguments<kBytes> all;
  all.step = arguments;
  if (!arguments.table) memcpy(all.table, table, size_t(bytes));
  return launch(step_kernel<Kind, kBytes>, config, all);
}

template <class Kind>
const char* launch_kind(const StepArguments& arguments, const void* table, void* stream) {
  const int64_t bytes = arguments.table ? 0 : table_bytes(arguments.row_count, arguments.count);
  if (bytes <= LaunchArguments<kArguments>::kTableBytes) {
    return launch_with<Kind, kArguments>(arguments, table, bytes, stream);
  }
  if (!fits_arguments(bytes)) return "more arguments than a launch on this device takes";
  return launch_with<Kind, kManyArguments>(arguments, table, bytes, stream);
}

}  // namespace

bool fits_arguments(int64_t table_bytes) {
  if (table_bytes <= LaunchArguments<kArguments>::kTableBytes) return true;
  return table_bytes <= LaunchArguments<kManyArguments>::kTableBytes && argument_bytes_limit() >= kManyArguments;
}

const char* launch_step(RuleName rule, bool uniform, const Options& options, const StepArguments& arguments,
                        const void* table, void* stream) {
  const char* error = "unknown rule";
  if (uniform) {
    with_rule<float>(rule, options,
                     [&]<class Rule>() { error = launch_kind<Uniform<Rule>>(arguments, table, stream); });
    return error;
  }
  switch (rule) {
    case kSgd:
      return launch_kind<Mixed<kSgd>>(arguments, table, stream);
    case kAdam:
      return launch_kind<Mixed<kAdam>>(arguments, table, stream);
    case kRmsProp:
      return launch_kind<Mixed<kRmsProp>>(arguments, table, stream);
    case kAdagrad:
      return launch_kind<Mixed<kAdagrad>>(arguments, table, stream);
  }
  return error;
}

struct Mark {
  StreamMark place;
};

const DeviceLibrary& device_library() {
  static const DeviceLibrary library{
      &fits_arguments,
      &launch_step,
      &fastdl::exchange_device,
      &fastdl::copy_to_device,
      &fastdl::is_capturing,
      [] { return new Mark; },
      [](Mark* mark) { delete mark; },
      [](Mark* mark, void* stream) { return mark->place.set(stream); },
      [](const Mark* mark) { return mark->place.has_passed(); },
  };
  return library;
}

}  // namespace fastdl::optim
