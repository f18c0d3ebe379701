// The op's arguments, checked, as the plain structs of rule.cuh: for the CPU path and the kernel's op alike.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>
#include "augment/rule.cuh"
#include "torch_glue.h"

namespace fastdl::augment {

struct Options {
  int64_t crop;
  std::vector<int64_t> size, padding;
  int64_t padding_mode;
  bool hflip;
  std::vector<double> scale, ratio, mean, std;
};

inline Plan make_plan(const Options& o, int64_t in_height, int64_t in_width) {
  STD_TORCH_CHECK(o.size.size() == 2 && o.padding.size() == 4 && o.scale.size() == 2 && o.ratio.size() == 2,
                  "augment: size, padding, scale and ratio must have 2, 4, 2 and 2 values");
  STD_TORCH_CHECK(o.crop >= 0 && o.crop <= int64_t(Crop::kTen) && o.padding_mode >= 0 &&
                      o.padding_mode <= int64_t(Padding::kSymmetric),
                  "augment: no such crop or padding mode: ", o.crop, ", ", o.padding_mode);
  constexpr int64_t kLargest = int64_t(1) << 30;
  const auto fits = [](int64_t v, int64_t least) { return v >= least && v < kLargest; };
  STD_TORCH_CHECK(fits(in_height, 1) && fits(in_width, 1) && fits(o.size[0], 1) && fits(o.size[1], 1) &&
                      std::all_of(o.padding.begin(), o.padding.end(), [&](int64_t p) { return fits(p, 0); }),
                  "augment: images, crops and padding must have 1 to 2^30 pixels a side, got ", in_height,
                  " x ", in_width, " and ", o.size[0], " x ", o.size[1]);
  Plan plan{};
  plan.in_height = int32_t(in_height), plan.in_width = int32_t(in_width);
  plan.height = int32_t(o.size[0]), plan.width = int32_t(o.size[1]);
  plan.pad_left = int32_t(o.padding[0]), plan.pad_top = int32_t(o.padding[1]);
  plan.pad_right = int32_t(o.padding[2]), plan.pad_bottom = int32_t(o.padding[3]);
  plan.crop = Crop(o.crop), plan.padding = Padding(o.padding_mode), plan.hflip = o.hflip;
  plan.copies = plan.crop == Crop::kTen ? 10 : plan.crop == Crop::kFive ? 5 : 1;
  if (plan.padding == Padding::kReflect || plan.padding == Padding::kSymmetric) {
    const int64_t least = plan.padding == Padding::kReflect;
    STD_TORCH_CHECK(std::max(o.padding[1], o.padding[3]) <= in_height - least &&
                        std::max(o.padding[0], o.padding[2]) <= in_width - least,
                    "augment: reflected padding must be narrower than the image");
  }
  if (plan.crop != Crop::kResized) {
    STD_TORCH_CHECK(o.size[0] <= in_height + o.padding[1] + o.padding[3] &&
                        o.size[1] <= in_width + o.padding[0] + o.padding[2],
                    "augment: the crop is larger than the padded image");
    return plan;
  }
  STD_TORCH_CHECK(o.scale[0] > 0 && o.ratio[0] > 0, "augment: scale and ratio must be positive");
  STD_TORCH_CHECK(plan.pad_left + plan.pad_top + plan.pad_right + plan.pad_bottom == 0,
                  "augment: a resized crop takes no padding");
  const double steps = 1 << 24;
  plan.area = double(in_height * in_width);
  plan.scale_low = o.scale[0], plan.scale_step = float((o.scale[1] - o.scale[0]) / steps);
  plan.log_low = std::log(o.ratio[0]);
  plan.log_step = float((std::log(o.ratio[1]) - plan.log_low) / steps);
  double height = double(in_height), width = double(in_width);
  if (width / height < o.ratio[0]) {
    height = std::min(height, std::rint(width / o.ratio[0]));
  } else if (width / height > o.ratio[1]) {
    width = std::min(width, std::rint(height * o.ratio[1]));
  }
  const int32_t h = int32_t(height), w = int32_t(width);
  plan.fallback = {(plan.in_height - h) / 2, (plan.in_width - w) / 2, h, w, 0};
  return plan;
}

inline double round16(double x) {  // to 16 bits of mantissa
  int exponent;
  const double mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::rint(mantissa * 65536), exponent - 16);
}

inline std::vector<Channel> make_channels(const Options& o, int64_t channels, bool from_uint8) {
  const auto pick = [&](const std::vector<double>& v, int64_t c) { return v.size() == 1 ? v[0] : v[c]; };
  for (const auto* v : {&o.mean, &o.std}) {
    STD_TORCH_CHECK(v->size() == 1 || int64_t(v->size()) == channels,
                    "augment: mean and std must have 1 or C = ", channels, " values, got ", v->size());
  }
  std::vector<Channel> result;
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = pick(o.mean, c), std = pick(o.std, c);
    STD_TORCH_CHECK(std > 0, "augment: std must be positive, got ", std);
    const double factor = 1 / (255 * std), high = round16(factor);
    result.push_back(from_uint8 ? Channel{float(high), float(round16(factor - high)), float(-mean / std)}
                                : Channel{float(std), 0, float(mean)});
  }
  return result;
}

// (n * copies, ...) as (n, copies, ...), whatever the strides.
inline Tensor unflatten(const Tensor& flat, int64_t n, int64_t copies) {
  const std::vector<int64_t> sizes{n, copies};
  std::array<StableIValue, 3> stack{torch::stable::detail::from(flat),
                                    torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(sizes)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::unflatten", "int", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// What a call asks for, once its tensors are checked.
struct Request {
  Plan plan;
  std::vector<Channel> channels;
  bool floating;
  int64_t n;
};

inline Request check_request(const Tensor& input, const optional<Tensor>& index, const Options& options) {
  STD_TORCH_CHECK(input.dim() == 4, "augment: expected 4D input (got ", input.dim(), "D input)");
  const bool floating = input.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(floating || input.scalar_type() == ScalarType::Byte,
                  "augment: input must be uint8 or float32, got ", dtype_name(input.scalar_type()));
  STD_TORCH_CHECK(
      !index || (index->dim() == 1 && index->scalar_type() == ScalarType::Long && index->is_contiguous()),
      "augment: index must be a contiguous vector of int64");
  STD_TORCH_CHECK(!index || index->device() == input.device(),
                  "augment: index must be on the input's device");
  return {make_plan(options, input.size(2), input.size(3)), make_channels(options, input.size(1), !floating),
          floating, index ? index->size(0) : input.size(0)};
}

// output (n, C, h, w), for several copies (n, copies, C, h, w), and boxes (n, copies, 5) int32.
inline std::tuple<Tensor, Tensor> make_outputs(const Tensor& input, const Request& r, ScalarType dtype,
                                               bool channels_last) {
  using torch::headeronly::MemoryFormat;
  const int64_t copies = r.plan.copies, channels = input.size(1), h = r.plan.height, w = r.plan.width;
  Tensor output =
      torch::stable::empty({r.n * copies, channels, h, w}, dtype, std::nullopt, input.device(), std::nullopt,
                           channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  if (copies > 1) output = unflatten(output, r.n, copies);
  return {output, torch::stable::empty({r.n, copies, 5}, ScalarType::Int, std::nullopt, input.device())};
}

}  // namespace fastdl::augment
