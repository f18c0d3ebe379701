// The op `augment` on the device.
#include "augment/api.h"
#include "augment/plan.h"

namespace fastdl::augment {

// input (N, C, H, W) uint8 or float32, any strides; index (M) int64 or none -> output, boxes (M, copies, 5)
// int32.
std::tuple<Tensor, Tensor> augment_op(const Tensor& input, const optional<Tensor>& index, int64_t crop,
                                      std::vector<int64_t> size, std::vector<int64_t> padding,
                                      int64_t padding_mode, bool hflip, std::vector<double> scale,
                                      std::vector<double> ratio, std::vector<double> mean,
                                      std::vector<double> std, ScalarType dtype, bool channels_last,
                                      int64_t seed, int64_t counter) {
  const Options options{crop, size, padding, padding_mode, hflip, scale, ratio, mean, std};
  const Request request = check_request(input, index, options);
  const int64_t channels = input.size(1);
  STD_TORCH_CHECK(channels <= kMaxChannels, "augment: the kernel takes at most ", kMaxChannels,
                  " channels, got ", channels, "; split them");
  STD_TORCH_CHECK(request.plan.width * channels < (int64_t(1) << 30),
                  "augment: a row of output must have fewer than 2^30 elements, got ", request.plan.width,
                  " x ", channels);
  OutputType to = OutputType::kFloat;
  if (dtype == ScalarType::Half) {
    to = OutputType::kHalf;
  } else if (dtype == ScalarType::BFloat16) {
    to = OutputType::kBfloat16;
  } else if (dtype == ScalarType::Byte) {
    to = OutputType::kByte;
  } else {
    STD_TORCH_CHECK(dtype == ScalarType::Float,
                    "augment: dtype must be float32, float16, bfloat16 or uint8, got ", dtype_name(dtype));
  }
  const DeviceGuard guard(input);
  auto [output, boxes] = make_outputs(input, request, dtype, channels_last);
  Arguments a{};
  a.plan = request.plan;
  a.images = input.const_data_ptr();
  for (int i = 0; i < 4; ++i) a.stride[i] = input.stride(i);
  a.count = input.size(0), a.n = request.n;
  a.index = index ? index->const_data_ptr<int64_t>() : nullptr;
  a.output = output.mutable_data_ptr(), a.boxes = boxes.mutable_data_ptr<int32_t>();
  a.seed = uint64_t(seed), a.counter = uint64_t(counter);
  a.channels = int32_t(channels);
  std::copy(request.channels.begin(), request.channels.end(), a.channel);
  check_launch(augment(a, request.floating, to, channels_last, current_stream(input)), "augment");
  return {output, boxes};
}

FASTDL_KERNEL_LIBRARY(m) { m.impl("augment", TORCH_BOX(&augment_op)); }

}  // namespace fastdl::augment
