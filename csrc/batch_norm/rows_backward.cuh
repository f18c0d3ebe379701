// Backward, channels last.
#pragma once
#include "batch_norm/rows.cuh"

namespace fastdl::batch_norm {

// Of a multiprocessor. Two would spill the doubles of GELU's error function.
template <class scalar_t>
constexpr int kBackwardBlocks = sizeof(scalar_t) == 8 ? 1 : 2;

// What a column needs beyond input and grad_output to find g, the gradient behind the normalization.
template <class scalar_t>
struct BehindRows {
  static constexpr int kSize = kVectorSize<scalar_t>;
  using acc_t = accumulator_t<scalar_t>;
  const BackwardArguments& a;
  const Column<scalar_t>& column;
  OfColumn<Constants<acc_t>, kSize> constants;
  RowReader<scalar_t> residual;
  RowMask<scalar_t> mask;
  RowDropout<scalar_t> dropout;

  FASTDL_DEVICE BehindRows(const BackwardArguments& a, const Divisor& positions,
                           const Column<scalar_t>& column, const RowConstants<scalar_t>& constants)
      : a(a),
        column(column),
        constants(constants, column.lane),
        residual(a.residual, a.size, positions, column),
        mask(a.mask, a.size, column),
        dropout(a.epilogue, a.size, positions, column) {}

  // f(row, g, centered) for every row of the column; read(row, grad, x) gives a row's vectors.
  template <int kBatch, class F, class G>
  FASTDL_DEVICE void for_rows(F read, G f) const {
    for_row_batches<kBatch>(column, dropout, [&](int first, int step, uint32_t kept) {
      Packet grads[kBatch]{}, inputs[kBatch]{};  // no row: zeros
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int row = first + b * step;
        if (row < column.count && column.valid) read(row, grads[b], inputs[b]);
      }
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int row = first + b * step;
        if (row >= column.count || !column.valid) continue;
        Packet z{};
        if (needs_residual(a)) z = residual.read(row);
        Values<scalar_t> g = widen<scalar_t>(grads[b]), x = widen<scalar_t>(inputs[b]);
        const uint32_t keep = dropout.by_octets() ? kept >> (kOctet * b) : dropout.row(row);
        backward_vector(a, g, x, constants, widen<scalar_t>(z), keep, a.mask ? mask.read(row) : 0);
        f(row, g, x);
      }
    });
  }

  // Sums over the column, few enough rows for the type they are computed in.
  template <int kBatch, class F>
  FASTDL_DEVICE void sum(F read, Sums (&totals)[kSize]) const {
    Values<scalar_t> sum{}, dot{};
    for_rows<kBatch>(read, [&](int, const Values<scalar_t>& g, const Values<scalar_t>& x) {
      for_each<kSize>([&](int j) { sum[j] += g[j], dot[j] += g[j] * x[j]; });
    });
    for_each<kSize>([&](int j) { totals[j] = {double(sum[j]), double(dot[j])}; });
  }

  // grad_input and grad_residual of the column; done(row) follows each row.
  template <int kBatch, class F, class G>
  FASTDL_DEVICE void apply(const RowCorrections<scalar_t>& corrections, F read, G done) const {
    const auto correction = [&](int j) { return corrections[column.lane * kSize + j]; };
    const RowWriter<scalar_t> grad_input(a.grad_input, a.size, column);
    const RowWriter<scalar_t> grad_residual(a.grad_residual, a.size, column);
    for_rows<kBatch>(read, [&](int row, Values<scalar_t>& g, const Values<scalar_t>& x) {
      if (grad_residual.data) grad_residual.write(row, g);
      input_gradient(a, g, x, constants, correction);
      if (grad_input.data) grad_input.write(row, g);
      done(row);
    });
  }
};

// One read: a team's share of grad_output and input stays in shared memory between sums and gradients.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<scalar_t>)
    rows_backward_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ Plan plan,
                         void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  using Totals = SliceTotals<Sums, kSize>;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  FASTDL_SHARED(corrections, RowCorrections<scalar_t>);
  FASTDL_SHARED(table, typename Totals::Table);
  static_assert(sizeof constants + sizeof corrections + sizeof table + 16 <= plan_detail::kRowStatic);
  auto* grads = reinterpret_cast<Packet*>(memory);
  auto* inputs = grads + plan.share;
  const int thread = int(threadIdx.x);
  const Divisor& positions = plan.positions;
  Team team(plan, workspace);
  {
    const Column<scalar_t> column(a.size, plan, team.index, team.rank);
    fetch_column(column, RowReader<scalar_t>(a.grad_output, a.size, positions, column), grads);
    fetch_column(column, RowReader<scalar_t>(a.input, a.size, positions, column), inputs);
  }
  for (int64_t slice = team.index; slice < plan.packs; slice += plan.teams) {
    const Column<scalar_t> column(a.size, plan, slice, team.rank);
    const int64_t c = slice * plan.pack + thread;
    const bool finishes = thread < plan.pack && c < a.size.c;
    ptx::copy_async_commit();
    clear_beyond(constants, a.size, plan, slice), clear_beyond(corrections, a.size, plan, slice);
    if (finishes) constants[thread] = saved_constants<acc_t>(a, c);
    ptx::copy_async_wait<0>();
    __syncthreads();
    const BehindRows<scalar_t> behind(a, positions, column, constants);
    const auto read = [&](int row, Packet& g, Packet& x) {
      g = load(grads + column.slot(row)), x = load(inputs + column.slot(row));
    };
    Sums sums[kSize];
    behind.template sum<1>(read, sums);
    Totals(team, table).reduce(sums, AddSums(), [&](int k, const Sums& total) {
      if (finishes) corrections[k] = finish_backward<acc_t>(a, c, total, team.rank == 0);
    });
    const RowRefill<scalar_t> refill_grad(a.size, plan, column, slice, team.rank, a.grad_output, grads);
    const RowRefill<scalar_t> refill_input(a.size, plan, column, slice, team.rank, a.input, inputs);
    behind.template apply<1>(corrections, read, [&](int row) { refill_grad(row), refill_input(row); });
    __syncthreads();  // before the next slice's constants
  }
  team.leave();
}

// Two reads, first half: every block's sums.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    rows_sums_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ Plan plan,
                     void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  using Totals = SliceTotals<Sums, kSize>;
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  FASTDL_SHARED(table, typename Totals::Table);
  Team team(plan, workspace);
  const int64_t c = team.index * plan.pack + threadIdx.x;
  if (int(threadIdx.x) < plan.pack && c < a.size.c) constants[threadIdx.x] = saved_constants<acc_t>(a, c);
  clear_beyond(constants, a.size, plan, team.index);
  __syncthreads();
  const Column<scalar_t> column(a.size, plan, team.index, team.rank);
  const RowReader<scalar_t> grad(a.grad_output, a.size, plan.positions, column);
  const RowReader<scalar_t> input(a.input, a.size, plan.positions, column);
  Sums sums[kSize];
  BehindRows<scalar_t>(a, plan.positions, column, constants)
      .template sum<2>([&](int row, Packet& g, Packet& x) { g = grad.read(row), x = input.read(row); }, sums);
  Totals(team, table).reduce(sums, AddSums(), [&](int k, const Sums& total) {
    publish(team.exchange() + (team.rank * plan.pack + k) * Team::kExchange, total);
  });
}

// Two reads, second half, from the end; where nothing is to be summed, all there is.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<scalar_t>)
    rows_apply_backward_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ Plan plan,
                               void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  FASTDL_SHARED(corrections, RowCorrections<scalar_t>);
  const int64_t block = int64_t(gridDim.x) - 1 - blockIdx.x, slice = block / plan.team;
  const int64_t rank = block % plan.team, c = slice * plan.pack + threadIdx.x;
  if (int(threadIdx.x) < plan.pack && c < a.size.c) {
    constants[threadIdx.x] = saved_constants<acc_t>(a, c);
    corrections[threadIdx.x] = {acc_t(0), acc_t(0)};  // nothing summed: evaluation
    if (plan.regime == Regime::kStream) {
      const auto sums =
          published<Sums>(Team::exchange(plan, workspace, slice, 1) + threadIdx.x * Team::kExchange);
      corrections[threadIdx.x] = finish_backward<acc_t>(a, c, sums, rank == 0);
    }
  }
  if (!a.grad_input && !a.grad_residual) return;
  clear_beyond(constants, a.size, plan, slice), clear_beyond(corrections, a.size, plan, slice);
  __syncthreads();
  const Column<scalar_t> column(a.size, plan, slice, rank);
  const RowReader<scalar_t> grad(a.grad_output, a.size, plan.positions, column);
  const RowReader<scalar_t> input(a.input, a.size, plan.positions, column);
  const bool reads_input = needs_input(a);
  BehindRows<scalar_t>(a, plan.positions, column, constants)
      .template apply<2>(
          corrections,
          [&](int row, Packet& g, Packet& x) {
            g = grad.read(row);
            if (reads_input) x = input.read(row);
          },
          [](int) {});
}

}  // namespace fastdl::batch_norm
