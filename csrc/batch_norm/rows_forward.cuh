// Forward, channels last.
#pragma once
#include "batch_norm/given.cuh"
#include "batch_norm/rows.cuh"

namespace fastdl::batch_norm {

// Moments of a thread's column; read(row) gives a row's vector. As add_run: shifted by the first row, and
// where squares overflow, again at 2^-70 the size. The plan keeps a thread's rows few enough for one such
// sum.
template <class scalar_t, class F>
FASTDL_DEVICE void gather_column(const Column<scalar_t>& column, F read,
                                 Moments<double> (&moments)[kVectorSize<scalar_t>]) {
  constexpr int kSize = kVectorSize<scalar_t>, kBatch = 4;
  using acc_t = accumulator_t<scalar_t>;
  for_each<kSize>([&](int j) { moments[j] = Moments<double>::none(); });
  if (column.valid == 0 || column.group >= column.count) return;
  const int groups = column.groups;
  const Packet first = read(column.group);
  Values<scalar_t> sum, squares, size;
  const auto pass = [&](auto scaled) {
    for_each<kSize>([&](int j) { sum[j] = squares[j] = acc_t(0); });
#pragma unroll 1
    for (int row = column.group + groups; row < column.count;
         row += kBatch * groups) {  // the first adds nothing
      Packet packets[kBatch];
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        packets[b] = row + b * groups < column.count ? read(row + b * groups) : first;  // neither does this
      }
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        for_each<kSize>([&](int j) {
          const acc_t d =
              scaled(element<scalar_t>(packets + b, j), j) - scaled(element<scalar_t>(&first, j), j);
          sum[j] += d, squares[j] += d * d;
        });
      }
    }
  };
  pass([](acc_t x, int) { return x; });
  bool finite = true;
  for_each<kSize>([&](int j) {
    size[j] = isfinite(squares[j]) ? acc_t(1) : acc_t(0x1p-70);
    finite = finite && isfinite(squares[j]);
  });
  if (!finite) pass([&](acc_t x, int j) { return x * size[j]; });
  const double count = (column.count - column.group + groups - 1) / groups;
  const acc_t share = reciprocal(acc_t(count));
  for_each<kSize>([&](int j) {
    const double grow = size[j] == acc_t(1) ? 1 : 0x1p70;
    const double m2 = double(squares[j] - sum[j] * sum[j] * share) * grow * grow;
    moments[j] = {count, double(element<scalar_t>(&first, j)) + double(sum[j] * share) * grow,
                  m2 < 0 ? 0 : m2};
  });
}

// output of a column; read(row) as above, done(row) follows each.
template <int kBatch, class scalar_t, class F, class G>
FASTDL_DEVICE void apply_forward(const ForwardArguments& a, const Divisor& positions,
                                 const Column<scalar_t>& column, const RowConstants<scalar_t>& constants,
                                 F read, G done) {
  constexpr int kSize = kVectorSize<scalar_t>;
  const OfColumn<Constants<accumulator_t<scalar_t>>, kSize> k(constants, column.lane);
  const RowReader<scalar_t> residual(a.residual, a.size, positions, column);
  const RowWriter<scalar_t> output(a.output, a.size, column);
  const RowMask<scalar_t> mask(a.mask, a.size, column);
  const RowDropout<scalar_t> dropout(a.epilogue, a.size, positions, column);
  for_row_batches<kBatch>(column, dropout, [&](int first, int step, uint32_t kept) {
    Packet x[kBatch]{}, z[kBatch]{};  // no row: zeros
    const auto exists = [&](int b) { return first + b * step < column.count && column.valid; };
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      if (exists(b)) x[b] = read(first + b * step);
      if (exists(b) && residual.data) z[b] = residual.read(first + b * step);
    }
    FASTDL_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      const int row = first + b * step;
      Values<scalar_t> values = widen<scalar_t>(x[b]);
      const uint32_t keep = dropout.by_octets() ? kept >> (kOctet * b) : dropout.row(row);
      const uint32_t bits = forward_vector(a, values, k, widen<scalar_t>(z[b]), keep);
      if (a.mask) mask.write(row, exists(b), bits);
      if (exists(b)) output.write(row, values);
      done(row);
    }
  });
}

// One read: a team's share of a slice stays in shared memory between statistics and output.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    rows_forward_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                        void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSize = kVectorSize<scalar_t>;
  using Totals = SliceTotals<Moments<double>, kSize>;
  FASTDL_DYNAMIC_SHARED(memory);
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  FASTDL_SHARED(table, typename Totals::Table);
  static_assert(sizeof constants + sizeof table + 16 <= plan_detail::kRowStatic);
  auto* slots = reinterpret_cast<Packet*>(memory);
  const int thread = int(threadIdx.x);
  const Divisor& positions = plan.positions;
  Team team(plan, workspace);
  {
    const Column<scalar_t> column(a.size, plan, team.index, team.rank);
    fetch_column(column, RowReader<scalar_t>(a.input, a.size, positions, column), slots);
  }
  for (int64_t slice = team.index; slice < plan.packs; slice += plan.teams) {
    const Column<scalar_t> column(a.size, plan, slice, team.rank);
    ptx::copy_async_commit();
    clear_beyond(constants, a.size, plan, slice);
    const int64_t c = slice * plan.pack + thread;  // that this thread will finish
    const bool finishes = thread < plan.pack && c < a.size.c;
    acc_t weight = 1, bias = 0;
    if (finishes) weight = acc_t(read_channel(a.weight, c, 1)), bias = acc_t(read_channel(a.bias, c, 0));
    ptx::copy_async_wait<0>();
    __syncthreads();  // eight rows of a thread's dropout are not those that it fetched
    const auto read = [&](int row) { return load(slots + column.slot(row)); };
    Moments<double> moments[kSize];
    gather_column(column, read, moments);
    Totals(team, table).reduce(moments, MergeRuns<acc_t>(), [&](int k, const Moments<double>& m) {
      if (!finishes) return;
      constants[k] = batch_constants<acc_t>(a, m.mean, m.m2, double(weight), double(bias));
      if (team.rank == 0) keep_statistics(a, c, m.mean, m.m2);
    });
    const RowRefill<scalar_t> refill(a.size, plan, column, slice, team.rank, a.input, slots);
    apply_forward<2>(a, positions, column, constants, read, refill);
    __syncthreads();  // before the next slice's constants
  }
  if (blockIdx.x == 0 && thread == 0 && !a.cumulative) advance_counter(a);
  team.leave();
}

// Two reads, first half: every block's moments.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    rows_moments_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                        void* workspace) {
  constexpr int kSize = kVectorSize<scalar_t>;
  using Totals = SliceTotals<Moments<double>, kSize>;
  FASTDL_SHARED(table, typename Totals::Table);
  Team team(plan, workspace);
  const Column<scalar_t> column(a.size, plan, team.index, team.rank);
  const RowReader<scalar_t> input(a.input, a.size, plan.positions, column);
  Moments<double> moments[kSize];
  gather_column(column, [&](int row) { return input.read(row); }, moments);
  Totals(team, table)
      .reduce(moments, MergeRuns<accumulator_t<scalar_t>>(), [&](int k, const Moments<double>& m) {
        publish(team.exchange() + (team.rank * plan.pack + k) * Team::kExchange, m);
      });
}

// Two reads, second half, from the end; in evaluation, and behind a product that left moments, all there is.
template <class scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    rows_apply_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ Plan plan,
                      void* workspace) {
  using acc_t = accumulator_t<scalar_t>;
  FASTDL_SHARED(constants, RowConstants<scalar_t>);
  const int64_t block = int64_t(gridDim.x) - 1 - blockIdx.x, slice = block / plan.team;
  const int64_t rank = block % plan.team, c = slice * plan.pack + threadIdx.x;
  Moments<double> given = Moments<double>::none();
  if (a.given.mean && !workspace) given = given_moments<acc_t>(a, slice * plan.pack, plan.pack);
  if (int(threadIdx.x) < plan.pack && c < a.size.c) {
    if (plan.regime == Regime::kStream) {
      const auto m = published<Moments<double>>(Team::exchange(plan, workspace, slice, 1) +
                                                threadIdx.x * Team::kExchange);
      constants[threadIdx.x] = finish_forward<acc_t>(a, c, m.mean, m.m2, rank == 0);
    } else if (a.given.mean) {
      const auto* merged = static_cast<const double*>(workspace);
      const auto m = merged ? published<Moments<double>>(merged + c * Team::kExchange) : given;
      constants[threadIdx.x] = finish_forward<acc_t>(a, c, m.mean, m.m2, rank == 0);
    } else {
      constants[threadIdx.x] = evaluation_constants<acc_t>(a, c, rank == 0);
    }
  }
  clear_beyond(constants, a.size, plan, slice);
  __syncthreads();
  const Column<scalar_t> column(a.size, plan, slice, rank);
  const RowReader<scalar_t> input(a.input, a.size, plan.positions, column);
  apply_forward<4>(
      a, plan.positions, column, constants, [&](int row) { return input.read(row); }, [](int) {});
  if (blockIdx.x == 0 && threadIdx.x == 0 && !a.cumulative) advance_counter(a);
}

}  // namespace fastdl::batch_norm
