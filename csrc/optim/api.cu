#include "optim/api.h"
#include "optim/update.cuh"

namespace fastdl::optim {
namespace {

template <class Kind>
const char* launch_kind(const StepArguments& arguments, void* stream) {
  LaunchConfig config;
  config.block = dim3(kThreads);
  const int64_t resident = std::min(resident_blocks(step_kernel<Kind>, kThreads, 0), kMaxBlocks);
  config.grid = dim3(unsigned(std::clamp(arguments.tiles, int64_t(1), resident)));
  config.cooperative = true;
  config.stream = stream;
  return launch(step_kernel<Kind>, config, arguments);
}

}  // namespace

const char* launch_step(RuleName rule, bool uniform, const Options& options, const StepArguments& arguments,
                        void* stream) {
  const char* error = "unknown rule";
  if (uniform) {
    with_rule<float>(rule, options,
                     [&]<class Rule>() { error = launch_kind<Uniform<Rule>>(arguments, stream); });
    return error;
  }
  switch (rule) {
    case kSgd:
      return launch_kind<Mixed<kSgd>>(arguments, stream);
    case kAdam:
      return launch_kind<Mixed<kAdam>>(arguments, stream);
    case kRmsProp:
      return launch_kind<Mixed<kRmsProp>>(arguments, stream);
    case kAdagrad:
      return launch_kind<Mixed<kAdagrad>>(arguments, stream);
  }
  return error;
}

}  // namespace fastdl::optim
