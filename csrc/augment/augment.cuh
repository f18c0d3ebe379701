// One launch from images to a batch. Crops: a block stages the rows that a band of output shows in shared
// memory, 16 bytes a load, then writes the band 16 bytes a store, whatever the layouts. Resized crops: see
// resize.cuh.
#pragma once
#include "augment/api.h"
#include "vector.cuh"

namespace fastdl::augment {

constexpr int kThreads = 256;

// How a launch divides the work; chosen in api.cu.
struct Tiling {
  int32_t rows, columns;  // of a tile of output; crops take whole rows
  int32_t down, across;   // tiles of an output image
  bool interleaved;       // the input: channels of a pixel lie side by side
  int32_t pitch;  // crops: elements of a staged line, 0: nothing is staged, pixels are read where they lie
  int32_t rows_most, columns_most, span;  // resized crops: most pixels under a tent, and under a tile's tents
};

// Which sample a block works on, and where its images lie.
struct Work {
  int64_t image;  // of the output: sample * copies + copy
  int64_t row;    // of the input, -1 for a bad index
  uint64_t sample;
  int32_t copy, tile_y, tile_x;

  FASTDL_DEVICE Work(const Arguments& a, const Tiling& tiling) {
    const uint32_t tiles = uint32_t(tiling.down) * uint32_t(tiling.across);
    image = blockIdx.x / tiles;
    const uint32_t tile = blockIdx.x % tiles;
    tile_y = int32_t(tile / uint32_t(tiling.across)), tile_x = int32_t(tile % uint32_t(tiling.across));
    const int64_t n = image / a.plan.copies;
    copy = int32_t(image - n * a.plan.copies);
    sample = a.counter + uint64_t(n);
    row = a.index ? load<Cache::kReadOnly>(a.index + n) : n;
    if (row < 0 || row >= a.count) row = -1;
  }
  FASTDL_DEVICE bool first_tile() const { return tile_y == 0 && tile_x == 0; }
};

FASTDL_DEVICE void write_box(const Arguments& a, const Work& work, const Box& box) {
  const int32_t values[5] = {box.top, box.left, box.height, box.width, box.flip};
  FASTDL_UNROLL
  for (int i = 0; i < 5; ++i) store(a.boxes + 5 * work.image + i, work.row < 0 ? -1 : values[i]);
}

// A pixel, or an interpolation of pixels, as it leaves.
template <class in_t, class out_t>
FASTDL_DEVICE out_t finish(float value, const Channel& channel) {
  constexpr bool kFromByte = std::is_same_v<in_t, uint8_t>;
  if constexpr (std::is_same_v<out_t, uint8_t>) {
    return to_byte(kFromByte ? value : multiply(value, 255));
  } else {
    return convert<out_t>(normalize(value, channel, kFromByte));
  }
}

// The pixels of a band: staged lines, or the image itself.
template <class in_t>
struct Band {
  const in_t* image;    // of this block
  const in_t* staged;   // null: nothing is staged
  const int32_t* base;  // (lines) where each staged line starts
  int32_t pitch, left, top, per_row, step,
      channel_step;  // lines a row, elements from pixel to pixel of a line
  Span rows, columns;
};

// Copies the lines under a band to shared memory, as they lie: 16 bytes at a time, single elements at both
// ends.
template <class in_t>
FASTDL_DEVICE void stage(const Arguments& a, const Band<in_t>& band, in_t* staged, int32_t* base) {
  constexpr int kVector = kVectorSize<in_t>;
  const int32_t length = band.columns.size() * band.step, lines = band.rows.size() * band.per_row;
  const int32_t windows = (length + 2 * kVector - 2) / kVector;
  for (int32_t i = int32_t(threadIdx.x); i < lines * windows; i += kThreads) {
    const int32_t line = i / windows, window = i - line * windows, r = line / band.per_row;
    const in_t* from = band.image + (band.rows.first + r) * a.stride[2] +
                       (line - r * band.per_row) * a.stride[1] + band.columns.first * a.stride[3];
    const int32_t phase = int32_t(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(in_t));
    in_t* to = staged + line * band.pitch + window * kVector;
    const int32_t begin = window * kVector - phase;
    if (window == 0) base[line] = line * band.pitch + phase;
    if (begin >= 0 && begin + kVector <= length) {
      store_vector(to, load_vector<kVector, Cache::kReadOnly>(from + begin));
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < kVector; ++j) {
        if (begin + j >= 0 && begin + j < length) to[j] = load<Cache::kReadOnly>(from + begin + j);
      }
    }
  }
}

// Grid: output images * bands. Dynamic shared memory: line bases, then staged lines.
template <class in_t, class out_t, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2) crop_kernel(const Arguments a, const Tiling tiling) {
  constexpr int kVector = kVectorSize<out_t>;
  FASTDL_DYNAMIC_SHARED(shared);
  const Plan& plan = a.plan;
  const Work work(a, tiling);
  const Box box = draw(plan, a.seed, work.sample, work.copy);
  if (work.first_tile() && threadIdx.x == 0) write_box(a, work, box);

  const int32_t y0 = work.tile_y * tiling.rows, h = plan.height, w = plan.width, channels = a.channels;
  const int32_t rows = y0 + tiling.rows < h ? tiling.rows : h - y0;
  const bool interleaved = tiling.interleaved;
  Band<in_t> band;
  band.image = static_cast<const in_t*>(a.images) + (work.row < 0 ? 0 : work.row) * a.stride[0];
  band.pitch = tiling.pitch, band.left = box.left - plan.pad_left, band.top = box.top - plan.pad_top + y0;
  band.per_row = interleaved ? 1 : channels, band.step = interleaved ? channels : 1;
  band.rows = covered(band.top, rows, plan.in_height, plan.padding);
  band.columns = covered(band.left, w, plan.in_width, plan.padding);
  int32_t* base = reinterpret_cast<int32_t*>(shared);
  in_t* staged = reinterpret_cast<in_t*>(shared + (tiling.rows * band.per_row * 4 + 15) / 16 * 16);
  const bool is_staged = tiling.pitch > 0;
  if (is_staged && work.row >= 0) stage(a, band, staged, base);
  __syncthreads();

  // Output in windows of 16 aligned bytes: of a channel's band, or of the band's interleaved pixels.
  const int32_t length = kChannelsLast ? rows * w * channels : rows * w;
  const int32_t windows = (length + 2 * kVector - 2) / kVector, planes = kChannelsLast ? 1 : channels;
  for (int32_t i = int32_t(threadIdx.x); i < planes * windows; i += kThreads) {
    const int32_t plane = i / windows, window = i - plane * windows;
    out_t* to =
        static_cast<out_t*>(a.output) + (kChannelsLast ? (work.image * h + y0) * w * channels
                                                       : ((work.image * channels + plane) * h + y0) * w);
    const int32_t phase = int32_t(reinterpret_cast<uintptr_t>(to) % 16 / sizeof(out_t));
    const int32_t begin = window * kVector - phase, start = begin < 0 ? 0 : begin;
    if (start >= length) continue;
    const int32_t pixel = kChannelsLast ? start / channels : start;
    int32_t c = kChannelsLast ? start - pixel * channels : plane, y = pixel / w, x = pixel - y * w;
    int32_t row = source(band.top + y, plan.in_height, plan.padding);
    Vector<out_t, kVector> values;
    FASTDL_UNROLL
    for (int j = 0; j < kVector; ++j) {
      if (begin + j < start || begin + j >= length) continue;
      const int32_t column = source(band.left + (box.flip ? w - 1 - x : x), plan.in_width, plan.padding);
      float value = 0;
      if (work.row < 0) {
        value = NAN;
      } else if (row >= 0 && column >= 0) {
        if (is_staged) {
          const int32_t line = (row - band.rows.first) * band.per_row;
          value = float(staged[base[line + (interleaved ? 0 : c)] +
                               (column - band.columns.first) * band.step + (interleaved ? c : 0)]);
        } else {
          value = float(load<Cache::kReadOnly>(band.image + row * a.stride[2] + column * a.stride[3] +
                                               c * a.stride[1]));
        }
      }
      values[j] = finish<in_t, out_t>(value, a.channel[c]);
      if (!kChannelsLast || ++c == channels) {
        if (kChannelsLast) c = 0;
        if (++x == w) x = 0, row = source(band.top + ++y, plan.in_height, plan.padding);
      }
    }
    if (begin >= 0 && begin + kVector <= length) {
      store_vector<Cache::kStreaming>(to + begin, values);
    } else {
      FASTDL_UNROLL
      for (int j = 0; j < kVector; ++j) {
        if (begin + j >= 0 && begin + j < length) store(to + begin + j, values[j]);
      }
    }
  }
}

}  // namespace fastdl::augment
