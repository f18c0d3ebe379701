// The CPU path of one thread. Crops are converted where they lie, or fetched (gather, pad, flip, layout) a
// band at a time and then converted; resized crops blend rows, then columns, then convert.
#pragma once
#include <array>
#include <cstring>
#include <numeric>
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
        inner_(p_.channels_last ? c_ : 1),
        planes_(p_.channels_last ? 1 : c_),
        h_(plan_.height),
        w_(plan_.width),
        x_(w_) {
    const int64_t pixels = p_.channels_last ? std::min<int64_t>(h_ * w_, 64) : 0;  // whole vectors
    for (int64_t i = 0; i < pixels * c_; ++i) {
      high_.push_back(p_.channels[i % c_].high);
      low_.push_back(p_.channels[i % c_].low);
      bias_.push_back(p_.channels[i % c_].bias);
    }
    if constexpr (kByte && sizeof(Out) == 2) {
      std::array<uint8_t, 256> bytes;
      std::iota(bytes.begin(), bytes.end(), 0);
      table_.resize(256 * c_);
      for (int64_t c = 0; c < c_; ++c)
        convert<kByte>(bytes.data(), 0, table_.data() + 256 * c, 0, 1, 256, p_.channels[c]);
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
  static constexpr int64_t kRows = 8;  // of output at a time in a resize
  static constexpr int64_t kBand =
      1 << 13;  // elements fetched before they are converted: they stay in the cache

  // Whether the pixels of a row lie as the output's do.
  bool as_output() const { return p_.stride[3] == inner_ && (!p_.channels_last || p_.stride[1] == 1); }

  void crop(const In* image, const Box& box, Out* output) {
    // x_: the source pixel of each output pixel, mirrored; [begin, end) of them lie inside the image.
    const int64_t left = box.left - plan_.pad_left, top = box.top - plan_.pad_top;
    const bool inside = left >= 0 && top >= 0 && left + w_ <= plan_.in_width && top + h_ <= plan_.in_height;
    if (inside && !box.flip && as_output()) {
      const In* corner = image + top * p_.stride[2] + left * p_.stride[3];
      for (int64_t i = 0; i < planes_; ++i) {
        emit(corner + i * p_.stride[1], p_.stride[2], i, output, 0, h_, w_ * inner_);
      }
      return;
    }
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
        In* to = band_.data() + r * w_ * inner_;
        fetch(row < 0 ? nullptr : image + row * p_.stride[2], to, count * w_, begin, end, box.flip);
      }
      for (int64_t i = 0, n = count * w_ * inner_; i < planes_; ++i) {
        emit(band_.data() + i * n, 0, i, output, y, 1, n);
      }
    }
  }

  // One row of all channels; `plane`: elements from channel to channel of a planar band.
  void fetch(const In* row, In* to, int64_t plane, int64_t begin, int64_t end, bool flip) {
    const int64_t step = inner_, channel = p_.channels_last ? 1 : plane;
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

  // Converts a band of pixels to rows y, y + 1, … of output: of one plane, or of interleaved channels.
  template <class Pixel>
  void emit(const Pixel* band, int64_t row, int64_t plane, Out* output, int64_t y, int64_t rows, int64_t n) {
    if (p_.channels_last) {
      convert<kByte>(band, row, output + y * w_ * c_, w_ * c_, rows, n, high_.data(), low_.data(),
                     bias_.data(), int64_t(high_.size()));
      return;
    }
    Out* to = output + (plane * h_ + y) * w_;
#if FASTDL_X86_CLONES
    if constexpr (std::is_same_v<Pixel, uint8_t> && sizeof(Out) == 2) {
      if (n >= 32 && vector_lanes() == 16) {
        const uint16_t* table = reinterpret_cast<const uint16_t*>(table_.data()) + 256 * plane;
        return look_up(band, row, reinterpret_cast<uint16_t*>(to), w_, rows, n, table);
      }
    }
#endif
    convert<kByte>(band, row, to, w_, rows, n, p_.channels[plane]);
  }

  void resize(const In* image, const Box& box, Out* output) {
    const int64_t n = std::max(box.width * inner_, kBlock);
    const int64_t line = padded(std::max(n, w_ * inner_)) + 2 * kWidest;
    across_.set(box.width, plan_.width);
    if (across_.most <= kTogether) columns_.set(across_, inner_, box.flip, vector_lanes());
    down_.set(box.height, plan_.height);
    const In* corner = image + box.top * p_.stride[2] + box.left * p_.stride[3];
    int64_t row = p_.stride[2], plane = p_.stride[1];
    if (!as_output() || n > box.width * inner_) {  // first a copy in the output's layout, of rows long enough
      plane = p_.channels_last ? 1 : box.height * n;
      band_.resize(box.height * n * planes_);
      for (int64_t y = 0; y < box.height; ++y) {
        copy_pixels(corner + y * row, p_.stride[3], p_.stride[1], band_.data() + y * n, inner_, plane,
                    box.width, c_);
      }
      corner = band_.data(), row = n;
    }
    sum_.resize(kRows * line), pixels_.resize(kRows * line);
    for (int64_t y = 0; y < h_; y += kRows) {
      const int64_t count = std::min(kRows, h_ - y);
      // The source rows that the next rows of output need and these do not.
      const int64_t next = down_.first[std::min(y + 2 * kRows, h_) - 1] + down_.most;
      const int64_t begin = down_.first[y + count - 1] + down_.most,
                    end = std::min<int64_t>(next, box.height);
      for (int64_t i = 0; i < planes_; ++i) {
        for (int64_t r = begin; r < end; ++r) prefetch(corner + i * plane + r * row, n);
        blend_rows(corner + i * plane, row, down_, y, count, sum_.data(), line, n);
        blend_columns(sum_.data(), padded(n), line, count, inner_, box.flip);
        emit(pixels_.data(), line, i, output, y, count, w_ * inner_);
      }
    }
  }

  void blend_columns(const float* from, int64_t from_n, int64_t line, int64_t lines, int64_t inner,
                     bool flip) {
    if (across_.most > kTogether) {
      turned_.resize(from_n * kRows);
      return blend_turned(from, from_n, across_, inner, flip, turned_.data(), pixels_.data(), line);
    }
#if FASTDL_X86_CLONES
    if (vector_lanes() == 16) return blend_columns_wide<kByte>(from, columns_, pixels_.data(), line, lines);
#endif
    blend_columns_narrow<kByte>(from, columns_, pixels_.data(), line, lines);
  }

  const Problem& p_;
  const Plan& plan_;
  const int64_t c_, inner_, planes_, h_, w_;  // inner_: elements side by side in the output's pixel
  Buffer<int32_t> x_;
  Buffer<float> high_, low_, bias_, rows_, sum_, turned_, pixels_;
  Buffer<In> band_;
  Buffer<Out> table_;  // the values of all bytes, channel by channel
  Taps down_, across_;
  Columns columns_;
};

}  // namespace fastdl::augment
