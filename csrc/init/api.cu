#include "init/api.h"
#include "init/init.cuh"

namespace fastdl::init {

const char* launch_init(const Record* records, int count, int64_t tiles, void* stream) {
  if (tiles > 0x7FFFFFFF) return "more than 2^43 elements; initialize in several calls";
  LaunchConfig config{dim3(unsigned(tiles)), dim3(kThreads)};
  config.stream = stream;
  return launch(init_kernel, config, records, count);
}

}  // namespace fastdl::init
