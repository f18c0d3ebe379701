// The vectorized loops of resized crops on the CPU: source rows are blended as they lie, then the columns of
// the blended rows, whose pixels a permutation of vector elements brings to their weights.
#pragma once
#include <bit>
#include "augment/convert.h"

namespace fastdl::augment {

// The weights of an axis: output pixel i is the sum over k of weight[k * out + i] * pixel[first[i] + k].
struct Taps {
  Buffer<int32_t> first;
  Buffer<float> weight;  // 0 beyond a tent
  int64_t out = 0;
  int most = 0;  // pixels under a tent

  void set(int32_t length, int32_t out_length) {
    const Tent tent(length, out_length);
    out = out_length, most = tent.most();
    first.resize(out), weight.resize(out * most), sum_.assign(out, 0);
    // first[i] = tent.first(i), by steps instead of divisions
    const int64_t unit = 2 * out, edge = tent.length - tent.reach - out;
    int64_t quotient = -((unit - 1 - edge) / unit), rest = edge - quotient * unit;
    for (int64_t i = 0; i < out; ++i) {
      first[i] = int32_t(std::max<int64_t>(quotient + 1, 0));
      quotient += tent.length / out, rest += 2 * (tent.length % out);
      if (rest >= unit) rest -= unit, ++quotient;
    }
    weigh(tent, first.data(), most, weight.data(), sum_.data());
  }

 private:
  Buffer<int64_t> sum_;

  static FASTDL_CLONES void weigh(const Tent& tent, const int32_t* __restrict first, int most,
                                  float* __restrict weight, int64_t* __restrict sum) {
    const int64_t out = tent.out, length = tent.length;
    for (int64_t k = 0; k < most; ++k) {
      for (int64_t i = 0; i < out; ++i) {
        const int64_t j = first[i] + k, height = std::max<int64_t>(tent.height_at(i, j), 0);
        sum[i] += j < length ? height : 0;
        weight[k * out + i] = float(j < length ? height : 0);
      }
    }
    for (int64_t k = 0; k < most; ++k) {
      for (int64_t i = 0; i < out; ++i) weight[k * out + i] /= float(sum[i]);
    }
  }
};

constexpr int64_t kBlock = 64;  // elements: whole vectors of bytes

// sum[i] = w0 * row0[i] + w1 * row1[i] + …, in that order, over kRows rows; kMore: sum[i] + ….
template <int kRows, bool kMore, class In>
FASTDL_INLINE void blend_some(const In* __restrict row, int64_t stride, const float* weight, int64_t out,
                              float* __restrict sum) {
  for (int64_t i = 0; i < kBlock; ++i) {
    float s = multiply(weight[0], float(row[i]));
    if (kMore) s = add(sum[i], s);
    for (int k = 1; k < kRows; ++k) s = add(s, multiply(weight[k * out], float(row[k * stride + i])));
    sum[i] = s;
  }
}

template <class In>
FASTDL_INLINE void blend_block(const In* row, int64_t stride, const float* weight, int64_t out, int under,
                               float* sum) {
  if (under == 2) return blend_some<2, false>(row, stride, weight, out, sum);
  if (under == 3) return blend_some<3, false>(row, stride, weight, out, sum);
  int k = under < 4 ? 1 : 4;
  if (k == 1) {
    blend_some<1, false>(row, stride, weight, out, sum);
  } else {
    blend_some<4, false>(row, stride, weight, out, sum);
  }
  for (; k + 4 <= under; k += 4) {
    blend_some<4, true>(row + k * stride, stride, weight + k * out, out, sum);
  }
  for (; k < under; ++k) blend_some<1, true>(row + k * stride, stride, weight + k * out, out, sum);
}

// The n ≥ kBlock elements of output rows y, …, y + count - 1, `line` apart, from source rows `stride` apart,
// in blocks of which the last overlaps the one before: there is no remainder.
template <class In>
FASTDL_CLONES void blend_rows(const In* rows, int64_t stride, const Taps& taps, int64_t y, int64_t count,
                              float* sum, int64_t line, int64_t n) {
  for (const int64_t end = y + count; y < end; ++y, sum += line) {
    const In* row = rows + taps.first[y] * stride;
    const float* weight = taps.weight.data() + y;
    int under = 0;
    while (under < taps.most && weight[under * taps.out] > 0) ++under;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t i = std::min<int64_t>(begin, n - kBlock);
      blend_block(row + i, stride, weight, taps.out, under, sum + i);
    }
  }
}

constexpr int kTogether = 4;  // taps and rows at a time, at most

// How vectors of output elements find their pixels in a row: those of a block, of `together` taps in turn,
// lie within two vectors.
struct Columns {
  struct Block {
    int32_t begin, from;  // first element of output, of the source
  };
  Buffer<Block> blocks;
  Buffer<int32_t>
      table;         // of each block: where its elements lie in the two vectors, then weights, tap by tap
  int64_t step = 1;  // elements from tap to tap
  int most = 0, together = 1;

  // Rows of `channels` interleaved elements a pixel; flip: output from right to left.
  void set(const Taps& taps, int64_t channels, bool flip, int lanes) {
    const int64_t n = taps.out * channels;
    step = channels, together = std::min(taps.most, kTogether);
    while ((together - 1) * step > lanes) --together;
    most = (taps.most + together - 1) / together * together;
    const int64_t reach = 2 * lanes - (together - 1) * step;
    first_.resize(n), column_.resize(n);
    for (int64_t x = 0, i = 0; x < taps.out; ++x) {
      const int64_t column = flip ? taps.out - 1 - x : x;
      for (int64_t c = 0; c < channels; ++c, ++i) {
        first_[i] = int32_t(taps.first[column] * channels + c), column_[i] = int32_t(column);
      }
    }
    blocks.clear(), table.clear();
    for (int64_t begin = 0, end; begin < n; begin = end) {
      int32_t low = first_[begin], high = low;
      for (end = begin + 1; end < std::min(n, begin + lanes); ++end) {
        const int32_t l = std::min(low, first_[end]), h = std::max(high, first_[end]);
        if (h - l / lanes * lanes >= reach) break;
        low = l, high = h;
      }
      const int32_t from = low / lanes * lanes;
      const int64_t size = int64_t(table.size());
      blocks.push_back({int32_t(begin), from});
      table.resize(size + (1 + most) * lanes);  // zeros: no weight
      int32_t *at = table.data() + size, *weight = at + lanes;
      for (int64_t i = begin; i < end; ++i, ++at, ++weight) {
        *at = first_[i] - from;
        for (int k = 0; k < taps.most; ++k) {
          weight[k * lanes] = std::bit_cast<int32_t>(taps.weight[k * taps.out + column_[i]]);
        }
      }
    }
  }

 private:
  Buffer<int32_t> first_, column_;  // of each element of a row of output: its first pixel's, its pixel
};

template <int kLanes>
struct Lanes {
  typedef float Float __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
  static FASTDL_INLINE const Float& at(const float* address) {
    return *reinterpret_cast<const Float*>(address);
  }
  static FASTDL_INLINE Float& at(float* address) { return *reinterpret_cast<Float*>(address); }
  static FASTDL_INLINE const Int& at(const int32_t* address) {
    return *reinterpret_cast<const Int*>(address);
  }
};

// The elements `at` of two vectors.
template <int kLanes, class Float, class Int>
FASTDL_INLINE void pick(const Float& low, const Float& high, const Int& at, Float& to) {
#if defined(__clang__)
  for (int i = 0; i < kLanes; ++i) {
    const int j = at[i] & (2 * kLanes - 1);
    to[i] = j < kLanes ? low[j] : high[j - kLanes];
  }
#else
  to = __builtin_shuffle(low, high, at);
#endif
}

// Adds kTaps taps to the sums of a block of kLines rows. kFinite: pixels beyond a tent, of weight 0, need no
// care.
template <int kTaps, int kLines, bool kFinite, bool kMore, int kLanes, class Float, class Int>
FASTDL_INLINE void add_taps(const float* pixels, int64_t line, int64_t step, const float* weight,
                            const Int& at, Float* sum) {
  using V = Lanes<kLanes>;
  for (int l = 0; l < kLines; ++l) {
    const Float low = V::at(pixels + l * line), high = V::at(pixels + l * line + kLanes);
    for (int k = 0; k < kTaps; ++k) {
      const Float w = V::at(weight + k * kLanes);
      Float term;
      pick<kLanes>(low, high, at + int(k * step), term);
      term = w * term;
      if (!kMore && k == 0) {
        sum[l] = term;
      } else {
        sum[l] = kFinite ? sum[l] + term : w > 0 ? sum[l] + term : sum[l];
      }
    }
  }
}

// Blends the columns of kLines rows, `line` floats apart on both sides; writes up to a vector beyond their
// ends, and reads two beyond the source's.
template <int kLanes, int kTaps, int kLines, bool kFinite>
FASTDL_INLINE void blend_lines(const float* from, const Columns& columns, float* to, int64_t line) {
  using V = Lanes<kLanes>;
  using Float = typename V::Float;
  using Int = typename V::Int;
  const int64_t step = columns.step, most = columns.most;
  const int32_t* table = columns.table.data();
  for (const Columns::Block& block : columns.blocks) {
    const Int at = V::at(table);
    const float *weight = reinterpret_cast<const float*>(table + kLanes), *pixels = from + block.from;
    Float sum[kLines];
    add_taps<kTaps, kLines, kFinite, false, kLanes>(pixels, line, step, weight, at, sum);
    for (int k = kTaps; k < most; k += kTaps) {
      add_taps<kTaps, kLines, kFinite, true, kLanes>(pixels + k * step, line, step, weight + k * kLanes, at,
                                                     sum);
    }
    table += (1 + most) * kLanes;
    for (int l = 0; l < kLines; ++l) V::at(to + block.begin + l * line) = sum[l];
  }
}

template <int kLanes, int kTaps, bool kFinite>
FASTDL_INLINE void blend_taps(const float* from, const Columns& columns, float* to, int64_t line,
                              int64_t lines) {
  int64_t l = 0;
  for (; l + kTogether <= lines; l += kTogether) {
    blend_lines<kLanes, kTaps, kTogether, kFinite>(from + l * line, columns, to + l * line, line);
  }
  for (; l < lines; ++l)
    blend_lines<kLanes, kTaps, 1, kFinite>(from + l * line, columns, to + l * line, line);
}

template <int kLanes, bool kFinite>
FASTDL_INLINE void blend_columns(const float* from, const Columns& columns, float* to, int64_t line,
                                 int64_t lines) {
  switch (columns.together) {
    case 1:
      return blend_taps<kLanes, 1, kFinite>(from, columns, to, line, lines);
    case 2:
      return blend_taps<kLanes, 2, kFinite>(from, columns, to, line, lines);
    case 3:
      return blend_taps<kLanes, 3, kFinite>(from, columns, to, line, lines);
    default:
      return blend_taps<kLanes, kTogether, kFinite>(from, columns, to, line, lines);
  }
}

#if FASTDL_X86_CLONES
template <bool kFinite>
FASTDL_WIDE void blend_columns_wide(const float* from, const Columns& columns, float* to, int64_t line,
                                    int64_t lines) {
  blend_columns<16, kFinite>(from, columns, to, line, lines);
}
#endif
template <bool kFinite>
FASTDL_CLONES void blend_columns_narrow(const float* from, const Columns& columns, float* to, int64_t line,
                                        int64_t lines) {
  blend_columns<8, kFinite>(from, columns, to, line, lines);
}

// Turns 8 rows of 8 floats into 8 columns.
FASTDL_INLINE void turn(const float* from, int64_t from_line, float* to, int64_t to_line) {
  using V = Lanes<8>;
  V::Float a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = V::at(from + i * from_line);
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
    V::at(to + i * to_line) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    V::at(to + (i + 4) * to_line) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// The same for wide tents, whose pixels lie far apart: 8 rows are turned, so that a vector holds a pixel of
// each. `turned` has room for 8 times the source's elements, in eights.
inline FASTDL_CLONES void blend_turned(const float* from, int64_t from_n, const Taps& taps, int64_t channels,
                                       bool flip, float* turned, float* to, int64_t line) {
  using V = Lanes<8>;
  for (int64_t i = 0; i < from_n; i += 8) turn(from + i, line, turned + i * 8, 8);
  alignas(64) float block[64] = {};
  for (int64_t begin = 0, x = 0, c = 0; x < taps.out; begin += 8) {
    for (int i = 0; i < 8 && x < taps.out; ++i) {
      const int64_t column = flip ? taps.out - 1 - x : x;
      const float *weight = taps.weight.data() + column,
                  *pixels = turned + (taps.first[column] * channels + c) * 8;
      V::Float sum = V::at(pixels) * weight[0];
      for (int k = 1; k < taps.most && weight[k * taps.out] > 0; ++k) {
        sum = sum + V::at(pixels + k * channels * 8) * weight[k * taps.out];
      }
      V::at(block + i * 8) = sum;
      if (++c == channels) c = 0, ++x;
    }
    turn(block, 8, to + begin, line);
  }
}

}  // namespace fastdl::augment
