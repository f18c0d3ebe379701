// Resized crops: a block blends the rows under its tile of output into shared memory, then their columns, in
// the order of the CPU path and in single roundings, so that both give the same bits.
#pragma once
#include "augment/augment.cuh"

namespace fastdl::augment {

constexpr int kGroup = 4;  // channels at a time

// The tents of `count` output pixels from `begin` on: first pixel, their number, weights (count, most).
struct Tents {
  int32_t *first, *number;
  float* weight;
  int32_t most;

  FASTDL_DEVICE void set(int i, int32_t begin, int32_t length, int32_t out) const {
    const Tent tent(length, out);
    const int32_t from = tent.first(begin + i), to = tent.last(begin + i);
    const float sum = float(tent.sum(begin + i));
    first[i] = from, number[i] = to - from;
    for (int32_t j = from; j < to; ++j) {
      const float height = float(tent.height_at(begin + i, j));
#if defined(__CUDA_ARCH__)
      weight[i * most + j - from] = __fdiv_rn(height, sum);
#else
      weight[i * most + j - from] = height / sum;
#endif
    }
  }
};

// Floats of dynamic shared memory: tents of columns and rows, then sums (kGroup, rows, span).
__host__ __device__ inline int64_t resize_shared_floats(const Tiling& t) {
  return int64_t(t.columns) * (t.columns_most + 2) + int64_t(t.rows) * (t.rows_most + 2) +
         int64_t(kGroup) * t.rows * t.span;
}

// Grid: output images * tiles. Tiles count columns before the flip.
template <class in_t, class out_t, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2) resize_kernel(const Arguments a, const Tiling tiling) {
  FASTDL_DYNAMIC_SHARED(shared);
  FASTDL_SHARED(shared_box, Box);
  const Plan& plan = a.plan;
  const Work work(a, tiling);
  if (threadIdx.x == 0) {
    const Box drawn = draw(plan, a.seed, work.sample, work.copy);
    if (work.first_tile()) write_box(a, work, drawn);
    shared_box = drawn;
  }
  __syncthreads();
  const Box box = shared_box;
  const int32_t h = plan.height, w = plan.width, y0 = work.tile_y * tiling.rows,
                x0 = work.tile_x * tiling.columns;
  const int32_t rows = y0 + tiling.rows < h ? tiling.rows : h - y0;
  const int32_t columns = x0 + tiling.columns < w ? tiling.columns : w - x0;

  float* floats = reinterpret_cast<float*>(shared);
  const auto take = [&](int32_t count) {
    float* taken = floats;
    floats += count;
    return taken;
  };
  Tents across{reinterpret_cast<int32_t*>(take(tiling.columns)),
               reinterpret_cast<int32_t*>(take(tiling.columns)), take(tiling.columns * tiling.columns_most),
               tiling.columns_most};
  Tents down{reinterpret_cast<int32_t*>(take(tiling.rows)), reinterpret_cast<int32_t*>(take(tiling.rows)),
             take(tiling.rows * tiling.rows_most), tiling.rows_most};
  float* sums = floats;
  for (int i = int(threadIdx.x); i < columns + rows; i += kThreads) {
    if (i < columns) {
      across.set(i, x0, box.width, w);
    } else {
      down.set(i - columns, y0, box.height, h);
    }
  }
  __syncthreads();

  const int32_t left = across.first[0], span = across.first[columns - 1] + across.number[columns - 1] - left;
  const in_t* corner = static_cast<const in_t*>(a.images) + (work.row < 0 ? 0 : work.row) * a.stride[0] +
                       box.top * a.stride[2] + (box.left + left) * a.stride[3];
  for (int32_t c0 = 0; c0 < a.channels; c0 += kGroup) {
    const int32_t group = c0 + kGroup < a.channels ? kGroup : a.channels - c0;
    for (int32_t i = int32_t(threadIdx.x); i < group * rows * span; i += kThreads) {
      // Neighbouring threads read neighbouring addresses.
      const bool interleaved = tiling.interleaved;
      const int32_t column = interleaved ? i / group % span : i % span;
      const int32_t y = interleaved ? i / (group * span) : i / span % rows;
      const int32_t c = interleaved ? i % group : i / (span * rows);
      const in_t* from = corner + down.first[y] * a.stride[2] + (c0 + c) * a.stride[1] + column * a.stride[3];
      const float* weight = down.weight + y * down.most;
      float sum = work.row < 0 ? NAN : multiply(weight[0], float(load<Cache::kReadOnly>(from)));
      for (int32_t k = 1; k < down.number[y] && work.row >= 0; ++k) {
        sum = add(sum, multiply(weight[k], float(load<Cache::kReadOnly>(from + k * a.stride[2]))));
      }
      sums[(c * rows + y) * span + column] = sum;
    }
    __syncthreads();
    for (int32_t i = int32_t(threadIdx.x); i < group * rows * columns; i += kThreads) {
      const int32_t x = kChannelsLast ? i / group % columns : i % columns;
      const int32_t y = kChannelsLast ? i / (group * columns) : i / columns % rows;
      const int32_t c = kChannelsLast ? i % group : i / (columns * rows);
      const float* from = sums + (c * rows + y) * span + across.first[x] - left;
      const float* weight = across.weight + x * across.most;
      float sum = multiply(weight[0], from[0]);
      for (int32_t k = 1; k < across.number[x]; ++k) sum = add(sum, multiply(weight[k], from[k]));
      const int64_t at_y = y0 + y, at_x = box.flip ? w - 1 - (x0 + x) : x0 + x;
      const int64_t at = kChannelsLast ? ((work.image * h + at_y) * w + at_x) * a.channels + c0 + c
                                       : ((work.image * a.channels + c0 + c) * h + at_y) * w + at_x;
      store(static_cast<out_t*>(a.output) + at, finish<in_t, out_t>(sum, a.channel[c0 + c]));
    }
    __syncthreads();
  }
}

}  // namespace fastdl::augment
