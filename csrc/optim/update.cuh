// A whole optimizer step in one cooperative launch: any number of tensors of any size, alignment and mix of
// dtypes. Blocks share equal tiles by a prefix table. With clipping a first pass sums squares, and the second
// runs backwards over the tiles, so that it begins with what the first left in the L2 cache.
#pragma once
#include <algorithm>
#include <new>
#include "optim/memory.cuh"
#include "optim/rules.h"
#include "reduce.cuh"

namespace fastdl::optim {

constexpr int kThreads = 256;

// What a launch carries: the step, and its table where that fits.
template <int kBytes>
struct LaunchArguments {
  static constexpr int kTableBytes = kBytes / 8 * 8 - int(sizeof(StepArguments));
  StepArguments step;
  alignas(8) unsigned char table[kTableBytes];
};

// The step as the kernel's functions see it: its rows of options and its gradients, wherever they lie.
struct Step : StepArguments {
  const Row* rows;
  void* const* grads;  // by record

  template <int kBytes>
  FASTDL_DEVICE explicit Step(const LaunchArguments<kBytes>& a) : StepArguments(a.step) {
    const void* place = a.step.table ? a.step.table : a.table;
    rows = static_cast<const Row*>(place);
    grads = reinterpret_cast<void* const*>(rows + a.step.row_count);
  }
};

// On lambdas: a call would put what they capture on a stack.
#define FASTDL_INLINED __attribute__((always_inline))

// The tiles of a block --------------------------------------------------------------------------------------

// A tile as a block meets it.
struct Tile {
  const DeviceRecord& record;
  void* grad;
  Range range;
  bool is_new;  // of another record than the tile before
};

FASTDL_DEVICE int first_tile(const Step& a, unsigned block) { return int(a.tiles * block / gridDim.x); }

// Calls f(tile) for this block's tiles in this or in reverse order.
template <class F>
FASTDL_DEVICE void for_each_tile(const Step& a, bool reverse, F f) {
  const int first = first_tile(a, blockIdx.x), end = first_tile(a, blockIdx.x + 1);
  const int start = reverse ? end - 1 : first;
  int low = 0, high = a.count;  // the last record with first_tile <= start
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (a.records[middle].first_tile <= start ? low : high) = middle;
  }
  bool is_new = true;
  for (int k = 0; k < end - first; ++k) {
    const int tile = reverse ? start - k : start + k;
    const int before = low;
    if (tile < a.records[low].first_tile) --low;
    if (low + 1 < a.count && tile >= a.records[low + 1].first_tile) ++low;
    const DeviceRecord& r = a.records[low];
    is_new = is_new || low != before;
    const int64_t begin = int64_t(tile - r.first_tile) * kTile;
    f(Tile{r, a.grads[low], {begin, int(std::min(r.numel - begin, int64_t(kTile)))}, is_new});
    is_new = false;
  }
}

FASTDL_DEVICE int size_of(Dtype dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Calls f(index) so that the block's threads cover the range by vectors, `data` aligned at each of them; the
// first and the last may reach beyond the range.
template <int kWidth, class F>
FASTDL_DEVICE void for_each_vector(const void* data, Dtype dtype, Range range, F f) {
  const auto address = reinterpret_cast<uintptr_t>(data) / unsigned(size_of(dtype)) + uintptr_t(range.begin);
  for (int i = int(threadIdx.x) * kWidth - int(address % kWidth); i < range.count; i += kThreads * kWidth)
    f(i);
}

// Pass 1: the gradients' norm -------------------------------------------------------------------------------

template <class T>
FASTDL_DEVICE void add_squares(const Tile& t, double& sum) {
  constexpr int kWidth = kWidthOf<T>;
  const Dtype dtype = t.record.grad_dtype;
  for_each_vector<kWidth>(t.grad, dtype, t.range, [&](int i) FASTDL_INLINED {
    T g[kWidth];
    read<T, kWidth>(t.grad, dtype, i, t.range, g);
    FASTDL_UNROLL
    for (int j = 0; j < kWidth; ++j) sum += double(g[j]) * double(g[j]);
  });
}

// Every thread returns the norm over all blocks; sums of each block in double, then added in the order of
// blocks.
FASTDL_DEVICE double grad_norm(const Step& a, double inv_scale) {
  double sum = 0;
  for_each_tile(a, false, [&](const Tile& t) FASTDL_INLINED {
    if (t.record.grad_dtype == kFloat64) return add_squares<double>(t, sum);
    add_squares<float>(t, sum);
  });
  sum = block_reduce(sum, Sum(), 0.0);
  if (threadIdx.x == 0) store(a.partials + blockIdx.x, sum);
  grid_sync();
  double total = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) total += __ldcg(a.partials + b);
  return sqrt(block_reduce(total, Sum(), 0.0)) * inv_scale;
}

template <class T>
FASTDL_DEVICE void write_zeros(const Tile& t) {
  constexpr int kWidth = kWidthOf<T>;
  for_each_vector<kWidth>(t.grad, t.record.grad_dtype, t.range, [&](int i) FASTDL_INLINED {
    const T zeros[kWidth] = {};
    write<T, kWidth>(t.grad, t.record.grad_dtype, i, t.range, zeros);
  });
}

// A step that is skipped still zeroes the gradients of rows that ask for it.
FASTDL_DEVICE void zero_gradients(const Step& a) {
  for_each_tile(a, false, [&](const Tile& t) FASTDL_INLINED {
    if (a.rows[t.record.row].options.zero_grad == 0) return;
    if (t.record.grad_dtype == kFloat64) return write_zeros<double>(t);
    write_zeros<float>(t);
  });
}

// Pass 2: the update ----------------------------------------------------------------------------------------

FASTDL_DEVICE bool has_low_precision(const DeviceRecord& r) {
  bool low = is_low_precision(r.param_dtype);
  FASTDL_UNROLL
  for (int k = 0; k < kMaxStates; ++k) low = low || is_low_precision(r.state_dtype[k]);
  return low;
}

template <class T, class Rule>
struct Prepared {
  Shared<T> shared;
  Rule rule;
  T ema_weight;
  bool rounds, zeroes;
  RoundingKey key;
  void* grad;

  FASTDL_DEVICE Prepared(const Options& o, double lr, double step, double factor, const DeviceRecord& r,
                         void* grad)
      : shared(o, lr, factor),
        rule(o, lr, step),
        ema_weight(T(1 - o.ema_decay)),
        rounds(o.stochastic_rounding != 0 && has_low_precision(r)),
        zeroes(o.zero_grad != 0),
        key{uint64_t(o.rounding_seed), uint64_t(step)},
        grad(grad) {}
};

template <class T, bool kL1, class Rule>
FASTDL_DEVICE void apply(const Shared<T, kL1>& shared, const Rule& rule, T* p, const T* g,
                         T (*states)[kWidthOf<T>]) {
  FASTDL_UNROLL
  for (int j = 0; j < kWidthOf<T>; ++j) {
    T state[Rule::kStates + 1];
    FASTDL_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) state[k] = states[k][j];
    shared(rule, p[j], g[j], state);
    FASTDL_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) states[k][j] = state[k];
  }
}

// Rounds an operand of a vector from `index` on, where it is stored in 16 bits. Two slots share a stream's
// words (rounding.h): in the order of slots, each stream is drawn once.
template <class T>
FASTDL_DEVICE void round_slot(const volatile DeviceRecord& r, RoundingKey key, int64_t index, int slot,
                              T* values, uint32_t* words) {
  constexpr int kWidth = kWidthOf<T>;
  if (slot % 2 == 0) draw_words<kWidth>(key, index, rounding_stream(r.ordinal, slot), words);
  const Dtype dtype = slot == 0 ? r.param_dtype : r.state_dtype[slot - 1];
  if (!is_low_precision(dtype) || (slot == 0 && r.master)) return;
  round_stochastically<T, kWidth>(values, dtype, words, slot);
}

// volatile: the record, in shared memory, is read where it is used, instead of living in 30 registers.
template <class T, class Rule>
FASTDL_DEVICE void update_vector(const volatile DeviceRecord& r, const Prepared<T, Rule>& c, int i,
                                 Range range) {
  constexpr int kStates = Rule::kStates, kWidth = kWidthOf<T>;
  const bool has_master = r.master != nullptr;
  T p[kWidth], g[kWidth], states[kStates + 1][kWidth];
  read<T, kWidth>(has_master ? r.master : r.param, has_master ? kFloat32 : r.param_dtype, i, range, p);
  read<T, kWidth>(c.grad, r.grad_dtype, i, range, g);
  FASTDL_UNROLL
  for (int k = 0; k < kStates; ++k) read<T, kWidth>(r.state[k], r.state_dtype[k], i, range, states[k]);
  if (c.shared.has_l1()) {
    apply(c.shared, c.rule, p, g, states);
  } else {
    apply(Shared<T, false>(c.shared), c.rule, p, g, states);
  }
  uint32_t words[kWidth];
  FASTDL_UNROLL
  for (int slot = 0; slot <= kStates; ++slot) {
    T* const values = slot == 0 ? p : states[slot - 1];
    if (c.rounds) round_slot(r, c.key, range.begin + i, slot, values, words);
    if (slot > 0) write<T, kWidth>(r.state[slot - 1], r.state_dtype[slot - 1], i, range, values);
  }
  if (has_master) write<T, kWidth>(r.master, kFloat32, i, range, p);
  write<T, kWidth>(r.param, r.param_dtype, i, range, p);
  if (c.zeroes) {
    const T zeros[kWidth] = {};
    write<T, kWidth>(c.grad, r.grad_dtype, i, range, zeros);
  }
  if (r.ema) {
    if (!has_master && is_low_precision(r.param_dtype)) {  // of the parameter as rounded
      FASTDL_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        p[j] = r.param_dtype == kFloat16 ? T(convert<float>(convert<half>(p[j])))
                                         : T(convert<float>(convert<bfloat16>(p[j])));
      }
    }
    T ema[kWidth];
    read<T, kWidth>(r.ema, r.ema_dtype, i, range, ema);
    FASTDL_UNROLL
    for (int j = 0; j < kWidth; ++j) ema[j] = lerp(ema[j], p[j], c.ema_weight);
    write<T, kWidth>(r.ema, r.ema_dtype, i, range, ema);
  }
}

struct alignas(16) PreparedStorage {
  unsigned char bytes[160];
};

// The record at hand, for all threads. Thread 0's: the block's tiles, and the counter of a record that goes
// on in the next block, which is written once all blocks have read it. In shared memory: registers are
// scarce.
struct BlockState {
  DeviceRecord record;
  int first, end;
  void* counter;
  double step;
  Dtype dtype;
};

FASTDL_DEVICE void write_step(void* counter, Dtype dtype, double step) {
  write<double, 1>(counter, dtype, 0, {0, 1}, &step);
}

// One tile; thread 0 prepares the constants of a new record for all (powers and divisions in double), and
// counts its step.
template <class T, class Rule>
FASTDL_DEVICE void update_tile(const Step& a, const Tile& t, double factor, PreparedStorage& storage,
                               BlockState& block) {
  using prepared_t = Prepared<T, Rule>;
  static_assert(sizeof(prepared_t) <= sizeof(PreparedStorage));
  const DeviceRecord& r = block.record;
  if (t.is_new) {
    __syncthreads();  // others may still read the record before
    if (threadIdx.x == 0) {
      block.record = t.record;
      const Row& row = a.rows[r.row];
      const double lr = row.lr ? read_one(row.lr, row.lr_dtype) : row.options.lr;
      const double step = r.step ? read_one(r.step, r.step_dtype) + 1 : 0;
      new (storage.bytes) prepared_t(row.options, lr, step, factor, r, t.grad);
      if (r.step && r.first_tile >= block.first) {
        if (r.first_tile + tiles_of(r.numel) <= block.end) {
          write_step(r.step, r.step_dtype, step);
        } else {
          block.counter = r.step, block.step = step, block.dtype = r.step_dtype;
        }
      }
    }
    __syncthreads();
  }
  const prepared_t& prepared = *reinterpret_cast<const prepared_t*>(storage.bytes);
  for_each_vector<kWidthOf<T>>(r.param, r.param_dtype, t.range, [&](int i) FASTDL_INLINED {
    update_vector<T, Rule>(r, prepared, i, t.range);
  });
}

// All parameters float32 or 16-bit and under one rule type: the usual case, with the registers for three
// blocks a multiprocessor; for two where it has three states, with nearly the bytes in flight.
template <class Rule>
struct Uniform {
  static constexpr int kBlocksPerMultiprocessor = Rule::kStates < 3 ? 3 : 2;
  template <class F>
  FASTDL_DEVICE static void select(const Options&, bool, F f) {
    f.template operator()<float, Rule>();
  }
};

// Parameters whose rules differ by a flag (amsgrad in one group only), or some of them float64.
template <RuleName kRule>
struct Mixed {
  static constexpr int kBlocksPerMultiprocessor = 1;
  template <class F>
  FASTDL_DEVICE static void select(const Options& o, bool in_double, F f) {
    if (in_double)
      return with_rule<double>(kRule, o,
                               [&]<class Rule>() FASTDL_INLINED { f.template operator()<double, Rule>(); });
    with_rule<float>(kRule, o, [&]<class Rule>() FASTDL_INLINED { f.template operator()<float, Rule>(); });
  }
};

// What the gradients are multiplied with: unscaled, clipped. False where the step is to be skipped.
FASTDL_DEVICE bool find_factor(const Step& a, double& factor) {
  if (a.found_inf && *a.found_inf != 0) return false;
  factor = a.grad_scale ? double(float(1.0 / double(*a.grad_scale))) : 1.0;
  if (a.max_grad_norm > 0) {
    const double norm = a.grad_norm ? double(*a.grad_norm) : grad_norm(a, factor);
    if (a.found_inf && !isfinite(norm)) return false;
    const double clip = a.max_grad_norm / (norm + 1e-6);
    factor *= clip > 1 ? 1 : clip;  // a NaN stays: without a GradScaler it must show
  }
  return true;
}

template <class Kind, int kBytes>
__global__ void __launch_bounds__(kThreads, Kind::kBlocksPerMultiprocessor)
    step_kernel(const __grid_constant__ LaunchArguments<kBytes> arguments) {
  const Step a(arguments);
  double factor;
  if (!find_factor(a, factor)) return zero_gradients(a);
  FASTDL_SHARED(storage, PreparedStorage);
  FASTDL_SHARED(block, BlockState);
  if (threadIdx.x == 0) {
    block.first = first_tile(a, blockIdx.x), block.end = first_tile(a, blockIdx.x + 1);
    block.counter = nullptr;
  }
  for_each_tile(a, a.max_grad_norm > 0, [&](const Tile& t) FASTDL_INLINED {
    Kind::select(a.rows[t.record.row].options, t.record.in_double, [&]<class T, class Rule>() FASTDL_INLINED {
      update_tile<T, Rule>(a, t, factor, storage, block);
    });
  });
  if (a.counts) {
    grid_sync();  // every block has read the counters
    if (threadIdx.x == 0 && block.counter) write_step(block.counter, block.dtype, block.step);
  }
}

}  // namespace fastdl::optim
