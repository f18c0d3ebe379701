// Which kernel, which launch.
#include "dropout/dropout.cuh"
#include "dropout/layout.h"
#include "dropout/transposed.cuh"

namespace fastdl::dropout {
namespace {

using Shape = std::vector<Dimension>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Problem problem_of(const Arguments& a, const Shape& shape) {
  int64_t numel = 1;
  for (const Dimension& d : shape) numel *= d.size;
  return {a.input,
          a.other,
          a.output,
          numel,
          KeepRule::scale(a.p),
          Activation(a.activation),
          KeepMask::of(a.seed, a.p, a.group)};
}

// Whether an operand can be accessed by vectors along the dimension `along`: nothing else moves it off their
// alignment.
template <class scalar_t>
bool takes_vectors(const void* data, const Shape& shape, size_t along, Operand operand) {
  constexpr int64_t kSize = kVectorSize<scalar_t>;
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || shape[along].stride[operand] != 1) return false;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (d != along && shape[d].stride[operand] % kSize != 0) return false;
  }
  return true;
}

// Fills in `vector` for each operand; returns whether all that are there take vectors.
template <class scalar_t>
bool find_vectors(bool (&vector)[kOperands], const Problem& p, const Shape& shape, size_t along) {
  if (shape[along].size % kVectorSize<scalar_t> != 0 && shape.size() > 1) return false;
  const void* data[kOperands] = {p.input, p.other, p.output};
  bool all = true;
  for (Operand k : {kInput, kOther, kOutput}) {
    vector[k] = takes_vectors<scalar_t>(data[k], shape, along, k);
    all = all && (vector[k] || !data[k]);
  }
  return all;
}

LaunchConfig one_dimensional(int64_t blocks, void* stream) {
  LaunchConfig config;
  config.grid = dim3(unsigned(blocks));
  config.block = dim3(kThreads);
  config.stream = stream;
  return config;
}

template <class scalar_t, class Pass, class Layout>
const char* launch_in_order(const Problem& problem, const Layout& layout, void* stream) {
  const int64_t blocks = ceil_div(problem.numel, kBlockElements<scalar_t>);
  return launch(dropout_kernel<scalar_t, Pass, Layout>, one_dimensional(blocks, stream), problem, layout);
}

template <class scalar_t, class Pass>
const char* launch_transposed(const Problem& problem, const Shape& shape, void* stream) {
  const size_t n = shape.size();
  const Dimension &rows = shape[n - 2], &columns = shape[n - 1];
  Transposed t{};
  bool vector[kOperands];
  t.vectors = find_vectors<scalar_t>(vector, problem, shape, n - 2);
  t.rows = rows.size, t.columns = columns.size;
  const int64_t batch = n == 3 ? shape[0].size : 1, bundles = ceil_div(t.rows, kVectorSize<scalar_t>);
  for (int k = 0; k < kOperands; ++k) {
    t.batch_stride[k] = n == 3 ? shape[0].stride[k] : 0, t.column_stride[k] = columns.stride[k];
  }
  // Long runs draw less twice; short ones give a small tensor enough threads.
  const int64_t enough = int64_t(device_properties().multiprocessors) * 2 * kThreads;
  t.run = 8 * kOctet;
  while (t.run > kOctet && batch * bundles * ceil_div(t.columns, t.run) < enough) t.run /= 2;
  t.bundles = Divisor(bundles), t.runs = Divisor(ceil_div(t.columns, t.run));
  t.threads = batch * t.bundles.value * t.runs.value;
  return launch(dropout_transposed_kernel<scalar_t, Pass>,
                one_dimensional(ceil_div(t.threads, kThreads), stream), problem, t);
}

template <class scalar_t, class Pass>
const char* launch_pass(const Arguments& arguments, void* stream) {
  const Shape shape = joined(arguments.shape);
  const Problem problem = problem_of(arguments, shape);
  const size_t inner = shape.size() - 1;
  if (is_linear(shape)) {
    Linear layout{};
    layout.all_vectors = find_vectors<scalar_t>(layout.vector, problem, shape, inner);
    return launch_in_order<scalar_t, Pass>(problem, layout, stream);
  }
  if (is_transposed(shape)) return launch_transposed<scalar_t, Pass>(problem, shape, stream);
  Strided layout{};
  layout.all_vectors = find_vectors<scalar_t>(layout.vector, problem, shape, inner);
  layout.dims = int(shape.size());
  if (layout.dims > kMaxDims) return "more than 64 dimensions";
  for (int d = 0; d < layout.dims; ++d) {
    layout.size[d] = Divisor(shape[d].size);
    for (int k = 0; k < kOperands; ++k) layout.stride[k][d] = shape[d].stride[k];
  }
  return launch_in_order<scalar_t, Pass>(problem, layout, stream);
}

template <class scalar_t>
const char* launch_typed(const Arguments& a, void* stream) {
  if (a.activation != 0 && a.backward) return launch_pass<scalar_t, Pass<true, true, true>>(a, stream);
  if (a.activation != 0) {
    return a.other ? launch_pass<scalar_t, Pass<false, true, true>>(a, stream)
                   : launch_pass<scalar_t, Pass<false, true, false>>(a, stream);
  }
  return a.other && !a.backward ? launch_pass<scalar_t, Pass<false, false, true>>(a, stream)
                                : launch_pass<scalar_t, Pass<false, false, false>>(a, stream);
}

}  // namespace

const char* dropout(const Arguments& arguments, Dtype dtype, void* stream) {
  switch (dtype) {
    case Dtype::kFloat:
      return launch_typed<float>(arguments, stream);
    case Dtype::kDouble:
      return launch_typed<double>(arguments, stream);
    case Dtype::kHalf:
      return launch_typed<half>(arguments, stream);
    case Dtype::kBfloat16:
      return launch_typed<bfloat16>(arguments, stream);
  }
  return "unknown dtype";
}

}  // namespace fastdl::dropout
