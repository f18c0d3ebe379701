// The CPU path of one thread. Crops fetch rows (gather, pad, crop, flip, layout) as they stand, a band at a
// time, and convert the band in one vectorized loop; resized crops blend rows, then columns.
#pragma once
#include <cstring>
#include <utility>
#include <vector>
#include "augment/blend.h"

namespace fastdl::augment {

struct Problem {
  Plan plan;
  std::vector<Channel> channels;
  const void* images;
  bool floating;      // float32, otherwise uint8
  int64_t stride[4];  // elements: image, channel, row, pixel; may be negative
  const int64_t* index;
  int64_t n;  // samples
  void* output;
  bool channels_last;
  int32_t* boxes;  // (n, copies, 5)
  uint64_t seed, counter;
};

template <class In, class Out>
class Worker {
 public:
  explicit Worker(const Problem& problem)
      : p_(problem),
        plan_(p_.plan),
        c_(int64_t(p_.channels.size())),
        h_(plan_.height),
        w_(plan_.width),
        x_(w_) {
    const int64_t pixels = p_.channels_last ? std::min(h_ * w_, (255 + c_) / c_) : 0;
    for (int64_t i = 0; i < pixels * c_; ++i) {
      high_.push_back(p_.channels[i % c_].high);
      low_.push_back(p_.channels[i % c_].low);
      bias_.push_back(p_.channels[i % c_].bias);
    }
  }

  // Output images begin, …, end - 1 of n * copies.
  void run(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / plan_.copies, row = p_.index ? p_.index[sample] : sample;
      const Box box = draw(plan_, p_.seed, p_.counter + sample, int(i % plan_.copies));
      std::memcpy(p_.boxes + 5 * i, &box, sizeof box);
      const In* image = static_cast<const In*>(p_.images) + row * p_.stride[0];
      Out* output = static_cast<Out*>(p_.output) + i * c_ * h_ * w_;
      plan_.crop == Crop::kResized ? resize(image, box, output) : crop(image, box, output);
    }
  }

 private:
  static constexpr bool kByte = std::is_same_v<In, uint8_t>;
  static constexpr int64_t kBand =
      1 << 13;  // elements fetched before they are converted: they stay in the cache

  void crop(const In* image, const Box& box, Out* output) {
    // x_: the source pixel of each output pixel, mirrored; [begin, end) of them lie inside the image.
    const int64_t left = box.left - plan_.pad_left, top = box.top - plan_.pad_top;
    int64_t begin = std::clamp<int64_t>(-left, 0, w_),
            end = std::clamp<int64_t>(plan_.in_width - left, begin, w_);
    for (int64_t x = 0; x < w_; ++x) {
      x_[box.flip ? w_ - 1 - x : x] = source(int32_t(left + x), plan_.in_width, plan_.padding);
    }
    if (box.flip) begin = w_ - std::exchange(end, w_ - begin);
    const int64_t rows = std::clamp<int64_t>(kBand / (w_ * c_), 1, h_);
    band_.resize(rows * w_ * c_);
    for (int64_t y = 0; y < h_; y += rows) {
      const int64_t count = std::min(rows, h_ - y);
      for (int64_t r = 0; r < count; ++r) {
        const int32_t row = source(int32_t(top + y + r), plan_.in_height, plan_.padding);
        In* to = band_.data() + r * w_ * (p_.channels_last ? c_ : 1);
        fetch(row < 0 ? nullptr : image + row * p_.stride[2], to, count * w_, begin, end, box.flip);
      }
      emit(band_.data(), output, y, count);
    }
  }

  // One row of all channels; `plane`: elements from channel to channel of a planar band.
  void fetch(const In* row, In* to, int64_t plane, int64_t begin, int64_t end, bool flip) {
    const int64_t step = p_.channels_last ? c_ : 1, channel = p_.channels_last ? 1 : plane;
    const int64_t from = p_.stride[3], from_channel = p_.stride[1];
    if (row == nullptr) begin = end = 0;
    for (int64_t x = 0; x < w_; ++x) {
      if (x == begin) x = end;
      if (x == w_) break;
      for (int64_t c = 0; c < c_; ++c) {
        to[x * step + c * channel] =
            row == nullptr || x_[x] < 0 ? In(0) : row[x_[x] * from + c * from_channel];
      }
    }
    if (begin < end) {
      copy_pixels(row + x_[begin] * from, flip ? -from : from, from_channel, to + begin * step, step, channel,
                  end - begin, c_);
    }
  }

  // Converts `count` rows from `y` on, planar (C, count, w) or interleaved (count, w, C).
  template <class Pixel>
  void emit(const Pixel* band, Out* output, int64_t y, int64_t count) {
    const int64_t n = count * w_;
    if (p_.channels_last) {
      convert<kByte>(band, output + y * w_ * c_, n * c_, high_.data(), low_.data(), bias_.data(),
                     int64_t(high_.size()));
      return;
    }
    for (int64_t c = 0; c < c_; ++c) {
      convert<kByte>(band + c * n, output + (c * h_ + y) * w_, n, p_.channels[c]);
    }
  }

  // Weights of all pixels of one axis: those of pixel i start at i * most, over source pixels first[i] on.
  struct Axis {
    std::vector<int32_t> first, count;
    std::vector<float> weight;
    int64_t most = 0;

    void set(int32_t length, int32_t out) {
      const Tent tent(length, out);
      most = tent.most();
      first.resize(out), count.resize(out), weight.resize(out * most);
      for (int64_t i = 0; i < out; ++i) {
        first[i] = tent.first(i), count[i] = tent.last(i) - first[i];
        const float sum = float(tent.sum(i));
        for (int k = 0; k < count[i]; ++k)
          weight[i * most + k] = float(tent.height_at(i, first[i] + k)) / sum;
      }
    }
  };

  void resize(const In* image, const Box& box, Out* output) {
    rows_.set(box.height, plan_.height);
    columns_.set(box.width, plan_.width);
    const In* corner = image + box.top * p_.stride[2] + box.left * p_.stride[3];
    int64_t channel = p_.stride[1], row = p_.stride[2], pixel = p_.stride[3];
    const bool interleaved = channel == 1 && pixel == c_;
    if (!interleaved && pixel != 1) {  // strides that no vector loop takes: a planar copy first
      band_.resize(box.height * box.width * c_);
      channel = int64_t(box.height) * box.width, row = box.width;
      for (int64_t y = 0; y < box.height; ++y) {
        copy_pixels(corner + y * p_.stride[2], p_.stride[3], p_.stride[1], band_.data() + y * row, 1, channel,
                    box.width, c_);
      }
      corner = band_.data(), pixel = 1;
    }
    // Eight rows of output at a time: blend source rows, turn the sums, blend columns, turn back.
    const int64_t line = box.width * (interleaved ? c_ : 1), planes = interleaved ? 1 : c_;
    const int64_t padded = (line * planes + kLanes - 1) / kLanes * kLanes;
    sum_.resize(padded * kLanes), turned_.resize(padded * kLanes), pixels_.resize(w_ * c_ * kLanes);
    const Columns columns{columns_.first.data(), columns_.count.data(), columns_.weight.data(),
                          columns_.most,         interleaved ? c_ : 1,  interleaved ? 1 : line};
    for (int64_t y = 0; y < h_; y += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, h_ - y);
      for (int64_t i = 0; i < count * planes; ++i) {
        const int64_t at = y + i / planes, plane = i % planes;
        blend_rows(corner + rows_.first[at] * row + plane * channel, row,
                   rows_.weight.data() + at * rows_.most, rows_.count[at],
                   sum_.data() + i / planes * padded + plane * line, line);
      }
      turn_rows(sum_.data(), padded, turned_.data(), padded);
      blend_columns(turned_.data(), columns, pixels_.data(), w_ * c_, w_, c_, !p_.channels_last, box.flip);
      for (int64_t i = 0; i < count; ++i) emit(pixels_.data() + i * w_ * c_, output, y + i, 1);
    }
  }

  const Problem& p_;
  const Plan& plan_;
  const int64_t c_, h_, w_;
  std::vector<int32_t> x_;
  std::vector<float> high_, low_, bias_, sum_, turned_, pixels_;
  std::vector<In> band_;
  Axis rows_, columns_;
};

}  // namespace fastdl::augment
