// What augmentation computes, once for the CPU path, the kernel and its CPU execution: the parameters of
// sample k, which source pixel a crop shows, the weights of a resize, and the values that leave.
// Every step rounds alike everywhere: integers, exact products, or operations that no compiler fuses.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "philox.cuh"

namespace fastdl::augment {

enum class Crop : int32_t { kNone, kRandom, kResized, kCenter, kFive, kTen };
enum class Padding : int32_t { kConstant, kEdge, kReflect, kSymmetric };
constexpr uint32_t kStream = 256;  // philox stream of top, left and flip; attempt t at a box: kStream + 1 + t
constexpr int kAttempts = 10;

// crop [top : top + height, left : left + width] of the padded image; a row of the op's second output.
struct Box {
  int32_t top, left, height, width, flip;
};

// All but pointers. Sizes in pixels.
struct Plan {
  int32_t in_height, in_width, height, width;  // of the image, of the output
  int32_t pad_left, pad_top, pad_right, pad_bottom;
  Crop crop;
  Padding padding;
  int32_t hflip, copies;               // copies: crops an image gives
  double area, scale_low, scale_step;  // of resized crops
  double log_low, log_step;
  Box fallback;  // the largest central box of a fair ratio
};

// a * b + c and the like in two roundings, on a device too, where the compiler would fuse them.
FASTDL_HOST_DEVICE float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
FASTDL_HOST_DEVICE float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// A whole number in [0, count), of 32 random bits.
FASTDL_HOST_DEVICE int32_t below(uint32_t word, int32_t count) {
  return int32_t((uint64_t(word) * uint32_t(count)) >> 32);
}

// low + u * (high - low): 24 bits times a 24-bit step is exact.
FASTDL_HOST_DEVICE double uniform24(uint32_t word, double low, double step) {
  return low + double(word >> 8) * step;
}

// ((1 + z) / (1 - z))^1024, z = x / 2048: relative error x^3 / 2^23.6 + 2^-43.
FASTDL_HOST_DEVICE double portable_exp(double x) {
  const double z = x / 2048;
  double power = (1 + z) / (1 - z);
  for (int i = 0; i < 10; ++i) power = power * power;
  return power;
}

// torchvision's RandomResizedCrop: ten attempts at area and aspect ratio, then the fallback.
FASTDL_HOST_DEVICE Box draw_resized(const Plan& plan, uint64_t seed, uint64_t k) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const Philox4 r = philox(seed, k, kStream + 1 + attempt);
    const double area = uniform24(r.word[0], plan.scale_low, plan.scale_step) * plan.area;
    const double aspect = portable_exp(uniform24(r.word[1], plan.log_low, plan.log_step));
    const double width = rint(sqrt(area * aspect)), height = rint(sqrt(area / aspect));
    if (width >= 1 && width <= plan.in_width && height >= 1 && height <= plan.in_height) {
      const int32_t h = int32_t(height), w = int32_t(width);
      return {below(r.word[2], plan.in_height - h + 1), below(r.word[3], plan.in_width - w + 1), h, w, 0};
    }
  }
  return plan.fallback;
}

// round(x / 2), halves to even, as Python's.
FASTDL_HOST_DEVICE int32_t rounded_half(int32_t x) { return x / 2 + (x % 4 == 3); }

// The parameters of sample k; copy < plan.copies picks one of its five or ten crops.
FASTDL_HOST_DEVICE Box draw(const Plan& plan, uint64_t seed, uint64_t k, int copy) {
  const int32_t down = plan.in_height + plan.pad_top + plan.pad_bottom - plan.height;
  const int32_t right = plan.in_width + plan.pad_left + plan.pad_right - plan.width;
  Box box{rounded_half(down), rounded_half(right), plan.height, plan.width, 0};
  Philox4 r{};
  if (plan.hflip || plan.crop == Crop::kRandom) r = philox(seed, k, kStream);
  if (plan.crop == Crop::kRandom) {
    box.top = below(r.word[0], down + 1);
    box.left = below(r.word[1], right + 1);
  } else if (plan.crop == Crop::kResized) {
    box = draw_resized(plan, seed, k);
  } else if (plan.copies >
             1) {  // top left, top right, bottom left, bottom right, center; then of the mirror image
    const int corner = copy % 5;
    if (corner < 4) box.top = corner / 2 * down, box.left = corner % 2 * right;
    if (copy >= 5) box.left = right - box.left, box.flip = 1;
  }
  if (plan.hflip) box.flip ^= int32_t(r.word[2] >> 31);
  return box;
}

// Which of `size` pixels stands at position i of a padded line; -1: none, the value is 0.
FASTDL_HOST_DEVICE int32_t source(int32_t i, int32_t size, Padding padding) {
  if (i >= 0 && i < size) return i;
  if (padding == Padding::kConstant) return -1;
  if (padding == Padding::kEdge) return i < 0 ? 0 : size - 1;
  const int32_t twice = padding == Padding::kSymmetric;
  return i < 0 ? -i - twice : 2 * size - 2 + twice - i;
}

// Antialiased linear resize of `length` pixels to `out` (torchvision's): a tent of half width
// max(length / out, 1) around each output pixel's center. Times 2 * out, all of it is whole numbers.
struct Tent {
  int64_t length, out, reach;
  FASTDL_HOST_DEVICE Tent(int32_t length, int32_t out) : length(length), out(out) {
    reach = 2 * (length > out ? length : out);
  }
  FASTDL_HOST_DEVICE int64_t height_at(int64_t i, int64_t j) const {
    const int64_t distance = (2 * j + 1) * out - (2 * i + 1) * length;
    return reach - (distance < 0 ? -distance : distance);
  }
  // The first pixel under output pixel i's tent.
  FASTDL_HOST_DEVICE int32_t first(int64_t i) const {
    const int64_t edge = (2 * i + 1) * length - reach - out;  // height_at(i, j) > 0 beyond 2 j out = edge
    return edge < 0 ? 0 : int32_t(edge / (2 * out) + 1);
  }
  // One past the last.
  FASTDL_HOST_DEVICE int32_t last(int64_t i) const {
    const int64_t edge = (2 * i + 1) * length + reach - out;  // > 0; height_at(i, j) > 0 below it
    const int64_t end = (edge + 2 * out - 1) / (2 * out);
    return int32_t(end < length ? end : length);
  }
  FASTDL_HOST_DEVICE int64_t sum(int64_t i) const {
    int64_t total = 0;
    for (int32_t j = first(i); j < last(i); ++j) total += height_at(i, j);
    return total;
  }
  // At most so many pixels lie under a tent.
  FASTDL_HOST_DEVICE int32_t most() const { return int32_t((reach + out - 1) / out); }
};

// A channel's constants. uint8 images: x * high + bias + x * low, where high + low = 1 / (255 std) in two
// 16-bit halves whose products with a pixel are exact, bias = -mean / std. Float images: (x - bias) / high.
struct Channel {
  float high, low, bias;
};

FASTDL_HOST_DEVICE float normalize(float x, const Channel& c, bool from_uint8) {
  if (from_uint8) return add(add(multiply(x, c.high), c.bias), multiply(x, c.low));
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(x - c.bias, c.high);
#else
  return (x - c.bias) / c.high;
#endif
}

// 0…255, rounded to even and saturated; NaN gives 0.
FASTDL_HOST_DEVICE uint8_t to_byte(float value) {
  const float clamped = value > 0 ? (value < 255 ? value : 255.f) : 0.f;
  return uint8_t(int32_t(add(clamped, 8388608.f) - 8388608.f));  // beyond 2^23 floats are whole: rounds
}

// The pixels that positions [begin, begin + length) of a padded line show: [first, last).
struct Span {
  int32_t first, last;
  FASTDL_HOST_DEVICE int32_t size() const { return last - first; }
};
FASTDL_HOST_DEVICE Span covered(int32_t begin, int32_t length, int32_t size, Padding padding) {
  const int32_t end = begin + length - 1;  // inclusive
  if (padding == Padding::kConstant) {
    const int32_t first = begin > 0 ? begin : 0, last = (end < size - 1 ? end : size - 1) + 1;
    return {first, last > first ? last : first};
  }
  const int32_t a = source(begin, size, padding), b = source(end, size, padding);
  const bool low = begin <= 0 && end >= 0, high = begin <= size - 1 && end >= size - 1;
  return {low ? 0 : (a < b ? a : b), (high ? size - 1 : (a > b ? a : b)) + 1};
}

}  // namespace fastdl::augment
