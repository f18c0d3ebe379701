// Backward over contiguous (N, C, S).
#pragma once
#include "batch_norm/channels.cuh"

namespace fastdl::batch_norm {

// What is read of a pack beyond input and grad_output to find g, the gradient behind the normalization.
template <class scalar_t>
struct Behind {
  static constexpr int kSize = kVectorSize<scalar_t>;
  const BackwardArguments& a;
  Dropout dropout;
  int64_t c0;

  FASTDL_DEVICE Behind(const BackwardArguments& a, int64_t c0) : a(a), dropout(a.epilogue), c0(c0) {}

  // grad in place to g, x in place to centered; k(j): the constants of element j.
  template <class K>
  FASTDL_DEVICE void step(const Place& p, const Split& split, K k, Values<scalar_t>& grad,
                          Values<scalar_t>& x) const {
    Packet z{};
    if (needs_residual(a)) z = Reader<scalar_t>(a.residual, a.size, c0).read(p);
    const uint32_t keep = dropout.bits<kSize>(p.at);
    const uint32_t branch =
        a.mask ? read_mask<scalar_t>(a.mask, p, MaskRows(p, a.size, c0, split), split) : 0;
    backward_vector(a, grad, x, k, widen<scalar_t>(z), keep, branch);
  }
};

// Sums over the slots [first, first + count) of one channel's rows; read(i, place, grad, x) gives a slot.
template <int kBatch, class scalar_t, class F>
FASTDL_DEVICE Sums gather_sums(const Behind<scalar_t>& behind, const Rows<kVectorSize<scalar_t>>& rows,
                               int64_t first, int count, int thread, int threads,
                               const Constants<accumulator_t<scalar_t>>& constants, F read) {
  constexpr int kSize = kVectorSize<scalar_t>;
  using acc_t = accumulator_t<scalar_t>;
  Sums total = Sums::none();
  rows.template for_each<kBatch>(first, count, thread, threads, [&](int i, const Place(&p)[kBatch]) {
    Packet grads[kBatch]{}, inputs[kBatch]{};  // no vector: zeros
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      if (p[b].valid) read(i + b * threads, p[b], grads[b], inputs[b]);
    }
    acc_t sum = 0, dot = 0;  // of a batch, in the type it is computed in
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      if (p[b].valid == 0) continue;
      Values<scalar_t> g = widen<scalar_t>(grads[b]), x = widen<scalar_t>(inputs[b]);
      behind.step(p[b], {0, kSize}, [&](int) { return constants; }, g, x);
      if (p[b].valid == kWhole<scalar_t>) {
        for_each<kSize>([&](int j) { sum += g[j], dot += g[j] * x[j]; });
      } else {
        for_each<kSize>([&](int j) {
          const bool valid = p[b].valid >> j & 1;
          sum += valid ? g[j] : acc_t(0), dot += valid ? g[j] * x[j] : acc_t(0);
        });
      }
    }
    total.g += double(sum), total.dot += double(dot);
  });
  return total;
}

// As apply_forward.
template <int kBatch, class scalar_t, bool kPacked, class F, class G>
FASTDL_DEVICE void apply_backward(const Behind<scalar_t>& behind, const Rows<kVectorSize<scalar_t>>& rows,
                                  int channels, int64_t first, int count,
                                  const Constants<accumulator_t<scalar_t>>* constants,
                                  const Correction<accumulator_t<scalar_t>>* corrections, F read, G done) {
  using acc_t = accumulator_t<scalar_t>;
  const BackwardArguments& a = behind.a;
  const Constants<acc_t> one = constants[0];
  const Correction<acc_t> one_correction = corrections[0];
  rows.template for_each<kBatch>(
      first, count, int(threadIdx.x), int(blockDim.x), [&](int i, const Place(&p)[kBatch]) {
        Packet grads[kBatch]{}, inputs[kBatch]{};  // no vector: zeros
        FASTDL_UNROLL
        for (int b = 0; b < kBatch; ++b) {
          if (p[b].valid) read(i + b * int(blockDim.x), p[b], grads[b], inputs[b]);
        }
        FASTDL_UNROLL
        for (int b = 0; b < kBatch; ++b) {
          const Split split = Split::of<kPacked>(rows, p[b], channels, a.size.s);
          const Pick<kPacked, Constants<acc_t>> k(constants, one, split, channels);
          const Pick<kPacked, Correction<acc_t>> correction(corrections, one_correction, split, channels);
          Values<scalar_t> g = widen<scalar_t>(grads[b]), x = widen<scalar_t>(inputs[b]);
          behind.step(p[b], split, k, g, x);
          if (a.grad_residual && p[b].valid) write<scalar_t>(a.grad_residual, p[b], g);
          input_gradient(a, g, x, k, correction);
          if (a.grad_input && p[b].valid) write<scalar_t>(a.grad_input, p[b], g);
          done(i + b * int(blockDim.x), p[b]);
        }
      });
}

// One read: a team's share of grad_output and input stays in shared memory between sums and gradients.
template <class scalar_t, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    channel_backward_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ Plan plan,
                            void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(constants, Constants<acc_t>[kMaxPack]);
  FASTDL_SHARED(corrections, Correction<acc_t>[kMaxPack]);
  auto* grads = reinterpret_cast<Packet*>(memory);
  auto* inputs = grads + plan.share;
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  Team team(plan, workspace);
  const int64_t first = int64_t(team.rank) * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  fetch_pack<scalar_t>(a.size, plan, team.index, first, count, a.grad_output, grads);
  fetch_pack<scalar_t>(a.size, plan, team.index, first, count, a.input, inputs);
  for (int64_t pack = team.index; pack < plan.packs; pack += plan.teams) {
    const int64_t c0 = pack * plan.pack;
    const int channels = int(min(int64_t(plan.pack), a.size.c - c0));
    const Rows<kSize> rows(a.size, c0, channels, plan.vectors);
    ptx::copy_async_commit();
    if (thread < channels) constants[thread] = saved_constants<acc_t>(a, c0 + thread);
    ptx::copy_async_wait<0>();
    __syncthreads();
    const auto read = [&](int i, const Place&, Packet& g, Packet& x) {
      g = load(grads + i), x = load(inputs + i);
    };
    Sums sums = Sums::none();
    if constexpr (!kPacked) {
      sums = gather_sums<1>(Behind<scalar_t>(a, c0), rows, first, count, thread, threads, constants[0], read);
    } else {
      const int group = threads / plan.pack, j = thread / group;
      const Rows<kSize> channel(a.size, c0 + j, j < channels ? 1 : 0, plan.channel_vectors);
      sums = gather_sums<1>(Behind<scalar_t>(a, c0 + j), channel, 0, int(a.size.n * plan.channel_vectors),
                            thread % group, group, constants[min(j, channels - 1)],
                            [&](int, const Place& p, Packet& g, Packet& x) {
                              const int i = int(p.n * rows.vectors + rows.vector_of(p));
                              g = load(grads + i), x = load(inputs + i);
                            });
    }
    team.reduce(sums, AddSums(), [&](int k, const Sums& total) {
      if (k < channels) corrections[k] = finish_backward<acc_t>(a, c0 + k, total, team.rank == 0);
    });
    const Refill<scalar_t> refill_grad(a.size, plan, pack, count, a.grad_output, grads);
    const Refill<scalar_t> refill_input(a.size, plan, pack, count, a.input, inputs);
    apply_backward<1, scalar_t, kPacked>(Behind<scalar_t>(a, c0), rows, channels, first, count, constants,
                                         corrections, read, [&](int i, const Place& p) {
                                           refill_grad(i, p);
                                           refill_input(i, p);
                                         });
    __syncthreads();  // before the next pack's constants
  }
  team.leave();
}

// Two reads, first half: partial sums (packs, team, 3).
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    channel_sums_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ Plan plan,
                        void* partials) {
  using acc_t = accumulator_t<scalar_t>;
  Team team(plan, nullptr);
  const int64_t c = team.index;
  const Rows<kVectorSize<scalar_t>> rows(a.size, c, 1, plan.vectors);
  const Reader<scalar_t> grad(a.grad_output, a.size, c), input(a.input, a.size, c);
  const Constants<acc_t> constants = saved_constants<acc_t>(a, c);
  const int64_t first = int64_t(team.rank) * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  const Sums sums =
      gather_sums<2>(Behind<scalar_t>(a, c), rows, first, count, int(threadIdx.x), int(blockDim.x), constants,
                     [&](int, const Place& p, Packet& g, Packet& x) { g = grad.read(p), x = input.read(p); });
  team.reduce(sums, AddSums(), [&](int, const Sums& total) {
    publish(static_cast<double*>(partials) + int64_t(blockIdx.x) * Team::kExchange, total);
  });
}

// Two reads, second half, from the end; where nothing is to be summed, all there is.
template <class scalar_t, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    channel_apply_backward_kernel(const __grid_constant__ BackwardArguments a,
                                  const __grid_constant__ Plan plan, void* partials) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, Constants<acc_t>[kMaxPack]);
  FASTDL_SHARED(corrections, Correction<acc_t>[kMaxPack]);
  const int64_t block = int64_t(gridDim.x) - 1 - blockIdx.x, pack = block / plan.team, c0 = pack * plan.pack;
  const int64_t rank = block % plan.team;
  const int channels = int(min(int64_t(plan.pack), a.size.c - c0)), thread = int(threadIdx.x);
  if (thread < channels) {
    constants[thread] = saved_constants<acc_t>(a, c0 + thread);
    corrections[thread] = {acc_t(0), acc_t(0)};  // nothing summed: evaluation
  }
  __syncthreads();
  if (partials) {
    Team team(plan, nullptr);
    Sums sums = Sums::none();
    for (int i = thread; i < plan.team; i += int(blockDim.x)) {
      const double* slot = static_cast<double*>(partials) + (pack * plan.team + i) * Team::kExchange;
      sums = AddSums()(sums, published<Sums>(slot));
    }
    team.reduce(sums, AddSums(), [&](int, const Sums& total) {
      corrections[0] = finish_backward<acc_t>(a, c0, total, rank == 0);
    });
  }
  if (!a.grad_input && !a.grad_residual) return;
  const Rows<kVectorSize<scalar_t>> rows(a.size, c0, channels, plan.vectors);
  const Reader<scalar_t> grad(a.grad_output, a.size, c0), input(a.input, a.size, c0);
  const bool reads_input = needs_input(a);
  const int64_t first = rank * plan.share;
  const int count = int(min(plan.slots - first, int64_t(plan.share)));
  apply_backward<kPacked ? 1 : 2, scalar_t, kPacked>(
      Behind<scalar_t>(a, c0), rows, channels, first, count, constants, corrections,
      [&](int, const Place& p, Packet& g, Packet& x) {
        g = grad.read(p);
        if (reads_input) x = input.read(p);
      },
      [](int, const Place&) {});
}

}  // namespace fastdl::batch_norm
