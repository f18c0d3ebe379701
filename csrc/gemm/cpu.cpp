// What Python asks of the plan and the schedule of matrix products. CPU tensors take torch's own products.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <array>
#include <string>
#include <vector>
#include "gemm/plan.h"
#include "gemm/schedule.h"

namespace py = pybind11;
using namespace fastdl::gemm;

namespace {

constexpr const char* kFamilies[] = {"simt", "mma", "wgmma", "gemv", "emulated mma", "emulated wgmma"};
constexpr const char* kTurnNames[] = {"halves", "alternate", "tokens"};

// "n": k is the dimension of stride 1 of a, or n of b; "t": the other; "s": neither.
Matrix matrix_of(char layout, int64_t rows, int64_t columns) {
  if (layout == 't') return {nullptr, 1, rows, rows * columns};
  if (layout == 's') return {nullptr, 2 * columns, 2, 2 * rows * columns};
  return {nullptr, columns, 1, rows * columns};
}

Dtype dtype_of(const std::string& name) {
  const std::array<const char*, 4> names = {"float32", "float64", "float16", "bfloat16"};
  for (size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) return Dtype(i);
  }
  throw py::value_error("gemm_plan: dtype must be float32, float64, float16 or bfloat16, got " + name);
}

py::dict gemm_plan(int64_t batch, int64_t m, int64_t n, int64_t k, const std::string& dtype,
                   const std::string& layouts, int precision, bool partials, int multiprocessors,
                   int capability, int shared_bytes) {
  if (layouts.size() != 2) throw py::value_error("gemm_plan: layouts must be two letters of n, t, s");
  Problem p{};
  p.m = m, p.n = n, p.k = k, p.batch = batch, p.dtype = dtype_of(dtype), p.precision = Precision(precision);
  p.a = matrix_of(layouts[0], m, k), p.b = matrix_of(layouts[1], k, n);
  p.output_row = n, p.output_batch = m * n;
  if (partials) p.epilogue.column_sums = &p;  // any address
  align(p);
  const Plan found = plan(p, {multiprocessors, capability, shared_bytes, capability == 90});
  py::dict result;
  result["family"] = kFamilies[found.family];
  result["tile"] = py::make_tuple(found.tile_m, found.tile_n, found.tile_k);
  result["repacks"] = std::string(found.repacks_a ? "a" : "") + (found.repacks_b ? "b" : "");
  result["splits"] = found.splits, result["workspace_bytes"] = found.workspace_bytes;
  result["turns"] = kTurnNames[found.turns], result["cluster"] = found.cluster;
  result["near"] = found.near;
  return result;
}

// (batch, split, row, column, k begin, k end) of every block of a launch.
std::vector<std::array<int64_t, 6>> gemm_tiles(int64_t batch, int64_t m, int64_t n, int64_t k, int tile_m,
                                               int tile_n, int tile_k, int splits, bool near) {
  Problem p{};
  p.m = m, p.n = n, p.k = k, p.batch = batch;
  Plan plan{kSimt, tile_m, tile_n, tile_k, splits, 0};
  plan.near = near;
  const TileGrid grid = tile_grid(p, plan);
  std::vector<std::array<int64_t, 6>> all;
  for (int64_t block = 0; block < grid.blocks(); ++block) {
    const TileWork w = tile_work(grid, block, k, tile_k);
    all.push_back({w.batch, w.split, w.row, w.column, w.range.begin, w.range.end});
  }
  return all;
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("gemm_plan", &gemm_plan, "How the kernels would cut a product on a device (csrc/gemm/plan.h)");
  m.def("gemm_tiles", &gemm_tiles, "The work of every block of a launch (csrc/gemm/schedule.h)");
}
