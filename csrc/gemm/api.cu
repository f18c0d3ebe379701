// Which launch a plan means, and the passes around products.
#include "gemm/backward.cuh"
#include "gemm/dispatch.h"
#include "gemm/repack.cuh"
#include "gemm/repack.h"
#include "gemm/split.cuh"

namespace fastdl::gemm {

// Code for 9.0, not 9.0a, lacks wgmma: setup.py tells.
#if defined(FASTDL_WGMMA) || !defined(__CUDACC__)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

Machine machine() {
  const DeviceProperties d = device_properties();
  return {d.multiprocessors, d.capability, d.shared_bytes_per_block, d.capability == 90 && kHasWgmma};
}

namespace {

constexpr int64_t kMaxGrid = 0x7FFFFFFF;

// How the backward pass is cut; of the shape alone, so that sums have one order everywhere.
struct BackwardCut {
  int lanes;
  int64_t column_blocks, rows_per_block, row_blocks;

  explicit BackwardCut(const ActivationBackward& p) : lanes(1) {
    while (lanes < 32 && lanes * kBackwardColumns < p.n) lanes *= 2;
    column_blocks = ceil_div(p.n, int64_t(lanes) * kBackwardColumns);
    const int64_t at_once = kBackwardThreads / lanes, most = std::max<int64_t>(1, 1024 / column_blocks);
    rows_per_block = ceil_div(ceil_div(p.rows, at_once), most) * at_once;
    row_blocks = ceil_div(p.rows, rows_per_block);
  }
};

// float32, from where the lines themselves are adjacent.
const char* launch_transpose(const Matrix& x, const Packed& packed, void* to, int64_t batch, void* stream) {
  TransposeArguments a{};
  a.from = static_cast<const float*>(x.data), a.to = static_cast<Vector<float, 4>*>(to);
  a.from_batch = x.batch, a.to_batch = packed.matrix.batch / 4;
  a.from_inner = packed.down ? x.row : x.column;
  a.to_line = (packed.down ? packed.matrix.column : packed.matrix.row) / 4;
  a.lines = packed.lines, a.inner = packed.inner;
  a.across = Divisor(ceil_div(a.inner, kTransposeTile)), a.down = Divisor(ceil_div(a.lines, kTransposeTile));
  a.aligned = is_aligned(a.from) && (a.from_inner | (batch > 1 ? a.from_batch : 0)) % 4 == 0;
  const int64_t blocks = a.across.value * a.down.value * batch;
  if (blocks > kMaxGrid) return "more than 2^31 - 1 blocks; split the batch";
  LaunchConfig config{dim3(unsigned(blocks)), dim3(kTransposeThreads)};
  config.stream = stream;
  return launch(transpose_kernel, config, a);
}

// An operand to `to`, in lines that wgmma's maps can read.
const char* launch_repack(Matrix& from, const Packed& packed, void* to, int64_t batch, Dtype dtype,
                          void* stream) {
  const Matrix x = from;
  from = packed.matrix, from.data = to;
  if (x.batch == 0) batch = 1;
  if (dtype == kFloat32 && (packed.down ? x.column : x.row) == 1) {
    return launch_transpose(x, packed, to, batch, stream);
  }
  RepackArguments a{};
  a.from = x.data, a.to = to;
  a.from_batch = x.batch, a.to_batch = packed.matrix.batch;
  a.from_line = packed.down ? x.column : x.row, a.from_inner = packed.down ? x.row : x.column;
  a.to_line = packed.down ? packed.matrix.column : packed.matrix.row;
  a.inner = packed.inner, a.lines = Divisor(packed.lines);
  a.runs_of_line = Divisor(ceil_div(packed.inner, kRepackRun));
  a.runs = a.runs_of_line.value * packed.lines * batch;
  const int64_t blocks = ceil_div(a.runs, kRepackThreads / 32);
  if (blocks > kMaxGrid) return "more than 2^31 - 1 blocks; split the batch";
  LaunchConfig config{dim3(unsigned(blocks)), dim3(kRepackThreads)};
  config.stream = stream;
  return size_of(dtype) == 2 ? launch(repack_kernel<uint16_t>, config, a)
                             : launch(repack_kernel<uint32_t>, config, a);
}

// Repacks what the plan says, behind what the split has of the workspace.
const char* repack_operands(Problem& p, const Plan& plan, void* workspace, void* stream) {
  char* next = static_cast<char*>(workspace) + aligned_split_bytes(p, plan.parts_in_memory());
  if (plan.repacks_a) {
    const Packed packed = packed_a(p);
    if (const char* error = launch_repack(p.a, packed, next, p.batch, p.dtype, stream)) return error;
    next += packed.bytes;
  }
  return plan.repacks_b ? launch_repack(p.b, packed_b(p), next, p.batch, p.dtype, stream) : nullptr;
}

}  // namespace

const char* launch_product(const Problem& problem, const Plan& plan, void* workspace, void* stream) {
  Problem p = problem;
  if (const char* error = repack_operands(p, plan, workspace, stream)) return error;
  switch (plan.family) {
    case kSimt:
      return launch_simt(p, plan, workspace, stream);
    case kMma:
      return launch_mma(p, plan, workspace, stream);
    case kWgmma:
      return launch_wgmma(p, plan, workspace, stream);
    case kGemv:
      return launch_gemv(p, plan, workspace, stream);
    case kEmulatedMma:
    case kEmulatedWgmma:
      return launch_emulated(p, plan, workspace, stream);
  }
  return "unknown family";
}

const char* launch_split_sum(const Problem& p, int splits, void* workspace, void* stream) {
  const int64_t threads = p.batch * p.m * ceil_div(p.n, 4) + (p.a_sums ? p.m : 0),
                blocks = ceil_div(threads, 256);
  if (blocks > kMaxGrid) return "more than 2^31 - 1 blocks; split the batch";
  LaunchConfig config{dim3(unsigned(blocks)), dim3(256)};
  config.stream = stream;
  return with_type(p.dtype, [&](auto zero) {
    return launch(split_sum_kernel<decltype(zero)>, config, p, splits, workspace);
  });
}

int64_t activation_backward_workspace_bytes(const ActivationBackward& p) {
  return p.column_sums ? BackwardCut(p).row_blocks * p.n * accumulator_size(p.dtype) : 0;
}

const char* launch_activation_backward(const ActivationBackward& p, void* workspace, void* stream) {
  const BackwardCut cut(p);
  if (cut.column_blocks * cut.row_blocks > kMaxGrid) return "more than 2^31 - 1 blocks";
  LaunchConfig config{dim3(unsigned(cut.column_blocks * cut.row_blocks)), dim3(kBackwardThreads)};
  config.stream = stream;
  const char* error = with_type(p.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* partial = p.column_sums ? static_cast<accumulator_t<scalar_t>*>(workspace) : nullptr;
    return launch(activation_backward_kernel<scalar_t>, config, p, cut.lanes, cut.rows_per_block,
                  cut.column_blocks, partial);
  });
  if (error || !p.column_sums) return error;
  return launch_sum_partials(p.dtype, workspace, p.column_sums, cut.row_blocks, p.n, stream);
}

const char* launch_sum_partials(Dtype dtype, const void* partial, void* sum, int64_t count, int64_t n,
                                void* stream) {
  LaunchConfig config{dim3(unsigned(ceil_div(n, 32))), dim3(1024)};
  config.stream = stream;
  return with_type(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(sum_partials_kernel<scalar_t>, config, static_cast<const accumulator_t<scalar_t>*>(partial),
                  static_cast<scalar_t*>(sum), count, n);
  });
}

}  // namespace fastdl::gemm
