// The vectorized loops of resized crops on the CPU: rows are blended as they lie, then turned, so that eight
// rows of output share each weight of a column.
#pragma once
#include "augment/convert.h"

namespace fastdl::augment {

constexpr int kLanes = 8;  // rows of output at a time
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

FASTDL_INLINE Lanes& lanes(float* address) { return *reinterpret_cast<Lanes*>(address); }
FASTDL_INLINE const Lanes& lanes(const float* address) { return *reinterpret_cast<const Lanes*>(address); }

// Turns 8 rows of 8 floats into 8 columns.
FASTDL_INLINE void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  Lanes a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = lanes(from + i * from_stride);
  for (int i = 0; i < 8; i += 2) {  // pairs of rows: elements interleave within halves
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    lanes(to + i * to_stride) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    lanes(to + (i + 4) * to_stride) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// sum[i] = weights[0] * row0[i] + weights[1] * row1[i] + …, in that order.
template <class In>
FASTDL_CLONES void blend_rows(const In* __restrict row, int64_t stride, const float* __restrict weight,
                              int rows, float* __restrict sum, int64_t n) {
  const In *b = row + stride, *c = b + stride, *d = c + stride;
  const auto times = [](float w, In x) __attribute__((always_inline)) { return multiply(w, float(x)); };
  if (rows == 1) {
    for (int64_t i = 0; i < n; ++i) sum[i] = times(weight[0], row[i]);
  } else if (rows == 2) {
    for (int64_t i = 0; i < n; ++i) sum[i] = add(times(weight[0], row[i]), times(weight[1], b[i]));
  } else if (rows == 3) {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] = add(add(times(weight[0], row[i]), times(weight[1], b[i])), times(weight[2], c[i]));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] = add(add(add(times(weight[0], row[i]), times(weight[1], b[i])), times(weight[2], c[i])),
                   times(weight[3], d[i]));
    }
    for (int k = 4; k < rows; ++k) {
      const In* __restrict next = row + k * stride;
      for (int64_t i = 0; i < n; ++i) sum[i] = add(sum[i], times(weight[k], next[i]));
    }
  }
}

// Eight rows of n floats (n padded to eights) -> (n, 8).
inline FASTDL_CLONES void turn_rows(const float* rows, int64_t stride, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) turn(rows + i, stride, to + i * kLanes, kLanes);
}

// (pixels * channels, 8) -> eight rows of output; the elements of a pixel lie `from_channel` vectors apart,
// pixels `from_pixel`. Rows are interleaved or planar: element (x, c) at x * to_pixel + c * to_channel; flip
// mirrors x.
struct Columns {
  const int32_t *first, *count;
  const float* weight;
  int64_t most, from_pixel, from_channel;
};
inline FASTDL_CLONES void blend_columns(const float* __restrict from, const Columns& columns,
                                        float* __restrict to, int64_t to_row, int64_t width, int64_t channels,
                                        bool planar, bool flip) {
  alignas(64) float block[kLanes * kLanes];
  const int64_t inner = planar ? 1 : channels, outer = planar ? channels : 1, n = width * inner;
  for (int64_t plane = 0; plane < outer; ++plane) {
    int64_t x = 0, c = plane;
    for (int64_t begin = 0; begin < n; begin += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, n - begin);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = flip ? width - 1 - x : x;
        const float* weight = columns.weight + column * columns.most;
        const float* pixel =
            from + (columns.first[column] * columns.from_pixel + c * columns.from_channel) * kLanes;
        Lanes sum = lanes(pixel) * weight[0];
        for (int k = 1; k < columns.count[column]; ++k) {
          sum = sum + lanes(pixel + k * columns.from_pixel * kLanes) * weight[k];
        }
        lanes(block + i * kLanes) = sum;
        if (planar || ++c == channels) ++x, c = plane;
      }
      float* row = to + plane * width + begin;
      if (count == kLanes) {
        turn(block, kLanes, row, to_row);
        continue;
      }
      for (int64_t r = 0; r < kLanes; ++r) {
        for (int64_t i = 0; i < count; ++i) row[r * to_row + i] = block[i * kLanes + r];
      }
    }
  }
}

}  // namespace fastdl::augment
