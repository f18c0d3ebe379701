// Forward over contiguous (N, C, S).
#pragma once
#include "batch_norm/channels.cuh"

namespace fastdl::batch_norm {

// Vectors whose statistics are taken at once, in registers.
template <class scalar_t>
constexpr int kRun = 4;

// Moments of the slots [first, first + count) of a row set; read(i, place) gives slot i's vector.
template <class scalar_t, class F>
FASTDL_DEVICE Moments<double> gather_moments(const Rows<kVectorSize<scalar_t>>& rows, int64_t first,
                                             int count, int thread, int threads, F read) {
  constexpr int kSize = kVectorSize<scalar_t>, kBatch = kRun<scalar_t>;
  using acc_t = accumulator_t<scalar_t>;
  Moments<double> total = Moments<double>::none();
  rows.template for_each<kBatch>(first, count, thread, threads, [&](int i, const Place(&p)[kBatch]) {
    Packet packets[kBatch]{};
    uint32_t valid = 0;
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      if (p[b].valid) packets[b] = read(i + b * threads, p[b]);
      valid |= p[b].valid << (kSize * b);
    }
    const auto value = [&](int j) { return element<scalar_t>(packets, j); };
    add_run<acc_t, kSize * kBatch>(total, value, valid);
  });
  return total;
}

// output of the slots [first, first + count) of a pack from c0 on; read as above, done(i, place) follows it.
template <int kBatch, class scalar_t, bool kPacked, class F, class G>
FASTDL_DEVICE void apply_forward(const ForwardArguments& a, const Rows<kVectorSize<scalar_t>>& rows,
                                 int64_t c0, int channels, int64_t first, int count,
                                 const Constants<accumulator_t<scalar_t>>* constants, F read, G done) {
  constexpr int kSize = kVectorSize<scalar_t>;
  const Reader<scalar_t> residual(a.residual, a.size, c0);
  const Dropout dropout(a.epilogue);
  const Constants<accumulator_t<scalar_t>> one = constants[0];
  rows.template for_each<kBatch>(
      first, count, int(threadIdx.x), int(blockDim.x), [&](int i, const Place(&p)[kBatch]) {
        Packet x[kBatch]{}, z[kBatch]{};  // no vector: zeros
        FASTDL_UNROLL
        for (int b = 0; b < kBatch; ++b) {
          if (p[b].valid) x[b] = read(i + b * int(blockDim.x), p[b]);
          if (p[b].valid && residual.data) z[b] = residual.read(p[b]);
        }
        FASTDL_UNROLL
        for (int b = 0; b < kBatch; ++b) {
          const Split split = Split::of<kPacked>(rows, p[b], channels, a.size.s);
          const Pick<kPacked, Constants<accumulator_t<scalar_t>>> k(constants, one, split, channels);
          Values<scalar_t> values = widen<scalar_t>(x[b]);
          const uint32_t keep = dropout.bits<kSize>(p[b].at);
          const uint32_t bits = forward_vector(a, values, k, widen<scalar_t>(z[b]), keep);
          if (a.mask) write_mask<scalar_t>(a.mask, p[b], MaskRows(p[b], a.size, c0, split), split, bits);
          if (p[b].valid) write<scalar_t>(a.output, p[b], values);
          done(i + b * int(blockDim.x), p[b]);
        }
      });
}

// One read: a team's share of a pack stays in shared memory between statistics and output.
template <class scalar_t, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    channel_forward_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                           void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(constants, Constants<acc_t>[kMaxPack]);
  FASTDL_SHARED(totals, Moments<double>[kMaxPack]);
  static_assert(sizeof constants + sizeof totals + (kThreads / kWarpSize + 1) * sizeof(Moments<double>) <=
                plan_detail::kStatic);
  auto* slots = reinterpret_cast<Packet*>(memory);
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  Team team(plan, workspace);
  const int64_t first = int64_t(team.rank) * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  fetch_pack<scalar_t>(a.size, plan, team.index, first, count, a.input, slots);
  for (int64_t pack = team.index; pack < plan.packs; pack += plan.teams) {
    const int64_t c0 = pack * plan.pack;
    const int channels = int(min(int64_t(plan.pack), a.size.c - c0));
    const Rows<kSize> rows(a.size, c0, channels, plan.vectors);
    ptx::copy_async_commit();
    acc_t weight = 1, bias = 0;  // of the channel that this thread will finish
    const int mine = team.finishes();
    if (mine < channels) {
      weight = acc_t(read_channel(a.weight, c0 + mine, 1)), bias = acc_t(read_channel(a.bias, c0 + mine, 0));
    }
    ptx::copy_async_wait<0>();
    Moments<double> moments;
    if constexpr (!kPacked) {  // threads read back what they fetched themselves
      moments = gather_moments<scalar_t>(rows, first, count, thread, threads,
                                         [&](int i, const Place&) { return load(slots + i); });
    } else {
      __syncthreads();
      const int group = threads / plan.pack, j = thread / group;
      const Rows<kSize> channel(a.size, c0 + j, j < channels ? 1 : 0, plan.channel_vectors);
      moments = gather_moments<scalar_t>(
          channel, 0, int(a.size.n * plan.channel_vectors), thread % group, group,
          [&](int, const Place& p) { return load(slots + int(p.n * rows.vectors + rows.vector_of(p))); });
    }
    team.reduce(moments, MergeRuns<accumulator_t<scalar_t>>(), [&](int j, const Moments<double>& m) {
      if (j >= channels) return;
      constants[j] = batch_constants<acc_t>(a, m.mean, m.m2, double(weight), double(bias)), totals[j] = m;
    });
    const Refill<scalar_t> refill(a.size, plan, pack, count, a.input, slots);
    apply_forward<kPacked ? 1 : 2, scalar_t, kPacked>(
        a, rows, c0, channels, first, count, constants, [&](int i, const Place&) { return load(slots + i); },
        refill);
    if (team.rank == 0 && thread < channels) {  // last: nobody waits for it
      keep_statistics(a, c0 + thread, totals[thread].mean, totals[thread].m2);
    }
  }
  if (blockIdx.x == 0 && thread == 0 && !a.cumulative) advance_counter(a);
  team.leave();
}

// Two reads, first half: partial moments (packs, team, 3).
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    channel_moments_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                           void* partials) {
  Team team(plan, nullptr);
  const Rows<kVectorSize<scalar_t>> rows(a.size, team.index, 1, plan.vectors);
  const Reader<scalar_t> input(a.input, a.size, team.index);
  const int64_t first = int64_t(team.rank) * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  const auto moments = gather_moments<scalar_t>(rows, first, count, int(threadIdx.x), int(blockDim.x),
                                                [&](int, const Place& p) { return input.read(p); });
  team.reduce(moments, MergeRuns<accumulator_t<scalar_t>>(), [&](int, const Moments<double>& m) {
    publish(static_cast<double*>(partials) + int64_t(blockIdx.x) * Team::kExchange, m);
  });
}

// Two reads, second half, from the end; in evaluation all there is.
template <class scalar_t, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    channel_apply_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                         void* partials) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, Constants<acc_t>[kMaxPack]);
  const int64_t block = int64_t(gridDim.x) - 1 - blockIdx.x, pack = block / plan.team, c0 = pack * plan.pack;
  const int64_t rank = block % plan.team;
  const int channels = int(min(int64_t(plan.pack), a.size.c - c0));
  if (partials) {
    Team team(plan, nullptr);
    Moments<double> moments = Moments<double>::none();
    for (int i = int(threadIdx.x); i < plan.team; i += int(blockDim.x)) {
      const double* slot = static_cast<double*>(partials) + (pack * plan.team + i) * Team::kExchange;
      moments = MergeRuns<accumulator_t<scalar_t>>()(moments, published<Moments<double>>(slot));
    }
    team.reduce(moments, MergeRuns<accumulator_t<scalar_t>>(), [&](int, const Moments<double>& m) {
      constants[0] = finish_forward<acc_t>(a, c0, m.mean, m.m2, rank == 0);
    });
  } else {
    const int j = int(threadIdx.x);
    if (j < channels) constants[j] = evaluation_constants<acc_t>(a, c0 + j, rank == 0);
    __syncthreads();
  }
  const Rows<kVectorSize<scalar_t>> rows(a.size, c0, channels, plan.vectors);
  const Reader<scalar_t> input(a.input, a.size, c0);
  const int64_t first = rank * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  apply_forward<kPacked ? 2 : 4, scalar_t, kPacked>(
      a, rows, c0, channels, first, count, constants, [&](int, const Place& p) { return input.read(p); },
      [](int, const Place&) {});
  if (blockIdx.x == 0 && threadIdx.x == 0 && !a.cumulative) advance_counter(a);
}

}  // namespace fastdl::batch_norm
