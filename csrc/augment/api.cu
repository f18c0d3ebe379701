// Which kernel, which tiles.
#include "augment/resize.cuh"
#include <algorithm>

namespace fastdl::augment {
namespace {

constexpr int64_t kStagedBytes = 16 << 10;  // a block's, so that eight share a multiprocessor
constexpr int64_t kResizeBytes = 32 << 10;

int32_t ceil_div(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

bool is_interleaved(const Arguments& a) {
  return a.stride[1] == 1 && a.stride[3] == a.channels && a.channels > 1;
}

// Bands of whole rows: as many as fit, but enough blocks for the device.
Tiling crop_tiling(const Arguments& a, int element_bytes, const DeviceProperties& device) {
  const Plan& plan = a.plan;
  const bool interleaved = is_interleaved(a);
  const bool contiguous = interleaved || a.stride[3] == 1;
  const int32_t vector = 16 / element_bytes, per_row = interleaved ? 1 : a.channels;
  const int64_t line = int64_t(plan.width) * (interleaved ? a.channels : 1);
  const int64_t pitch = (line + 2 * vector - 2) / vector * vector,
                row_bytes = pitch * per_row * element_bytes;
  Tiling t{};
  const bool stage = contiguous && row_bytes <= kStagedBytes * 2;
  t.pitch = stage ? int32_t(pitch) : 0;
  const int64_t row_elements = int64_t(plan.width) * a.channels;
  int64_t rows = std::max<int64_t>(1, stage ? kStagedBytes / row_bytes : (16 << 10) / row_elements);
  const int64_t enough = 2 * device.multiprocessors, images = a.n * plan.copies;
  if (images < enough) rows = std::min(rows, std::max<int64_t>(1, plan.height * images / enough));
  t.rows = int32_t(std::min<int64_t>(rows, plan.height));
  t.down = ceil_div(plan.height, t.rows), t.across = 1, t.columns = plan.width;
  return t;
}

// The largest tile whose tents and sums fit.
Tiling resize_tiling(const Plan& plan, int64_t limit) {
  Tiling t{};
  t.rows_most = Tent(plan.in_height, plan.height).most(),
  t.columns_most = Tent(plan.in_width, plan.width).most();
  t.rows = std::min(plan.height, 32), t.columns = std::min(plan.width, 64);
  for (;;) {
    t.span = std::min<int64_t>(plan.in_width,
                               int64_t(t.columns - 1) * plan.in_width / plan.width + t.columns_most + 2);
    if (4 * resize_shared_floats(t) <= limit) break;
    if (t.rows == 1 && t.columns == 1) return Tiling{};
    int32_t& larger = t.rows > 1 && (t.rows >= t.columns / 4 || t.columns == 1) ? t.rows : t.columns;
    larger = (larger + 1) / 2;
  }
  t.down = ceil_div(plan.height, t.rows), t.across = ceil_div(plan.width, t.columns);
  return t;
}

template <class in_t, class out_t, bool kChannelsLast>
const char* launch_typed(const Arguments& a, void* stream) {
  const DeviceProperties device = device_properties();
  const bool resized = a.plan.crop == Crop::kResized;
  Tiling t;
  LaunchConfig config;
  if (resized) {
    t = resize_tiling(a.plan, kResizeBytes);
    if (t.rows == 0) t = resize_tiling(a.plan, device.shared_bytes_per_block - 1024);
    if (t.rows == 0) return "images are too many times larger than the output for a resize in one pass";
    config.shared_bytes = size_t(4 * resize_shared_floats(t));
  } else {
    t = crop_tiling(a, sizeof(in_t), device);
    const int64_t lines = int64_t(t.rows) * (is_interleaved(a) ? 1 : a.channels);
    config.shared_bytes =
        t.pitch ? size_t((lines * 4 + 15) / 16 * 16 + lines * t.pitch * int64_t(sizeof(in_t))) : 0;
  }
  t.interleaved = is_interleaved(a);
  const int64_t blocks = a.n * a.plan.copies * t.down * t.across;
  if (blocks == 0) return nullptr;
  if (blocks > 0x7FFFFFFF) return "more than 2^31 - 1 tiles; split the batch";
  config.grid = dim3(unsigned(blocks)), config.block = dim3(kThreads), config.stream = stream;
  return resized ? launch(resize_kernel<in_t, out_t, kChannelsLast>, config, a, t)
                 : launch(crop_kernel<in_t, out_t, kChannelsLast>, config, a, t);
}

template <class in_t, class out_t>
const char* launch_layout(const Arguments& a, bool channels_last, void* stream) {
  return channels_last ? launch_typed<in_t, out_t, true>(a, stream)
                       : launch_typed<in_t, out_t, false>(a, stream);
}

template <class in_t>
const char* launch_from(const Arguments& a, OutputType to, bool channels_last, void* stream) {
  switch (to) {
    case OutputType::kFloat:
      return launch_layout<in_t, float>(a, channels_last, stream);
    case OutputType::kHalf:
      return launch_layout<in_t, half>(a, channels_last, stream);
    case OutputType::kBfloat16:
      return launch_layout<in_t, bfloat16>(a, channels_last, stream);
    default:
      return launch_layout<in_t, uint8_t>(a, channels_last, stream);
  }
}

}  // namespace

const char* augment(const Arguments& a, bool from_float, OutputType to, bool channels_last, void* stream) {
  return from_float ? launch_from<float>(a, to, channels_last, stream)
                    : launch_from<uint8_t>(a, to, channels_last, stream);
}

}  // namespace fastdl::augment
