// Every tile of wgmma_kernel by an explicit plan: layouts, edges, parts of k, pairs of blocks, and all that
// an epilogue does, compared with sums in double. Small integers, so that products are exact.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>
#include "gemm/api.h"
#include "gemm/plan.h"
#include "vector.cuh"

extern "C" void fastdl_emulator_device(int multiprocessors, int shared_bytes, int capability);

using namespace fastdl;
using namespace fastdl::gemm;

namespace {

struct Tile {
  int m, n;
  WgmmaTurns turns;
  int cluster;
};

struct Case {
  std::string what;
  Tile tile;
  int64_t m, n, k, batch;
  bool a_deep, b_deep;
  int splits;
  bool odd = false, full = false, backward = false, columns = false, row_sums = false, near = false,
       biased = false;
};

void require(bool holds, const Case& c, const char* what, int64_t where) {
  if (holds) return;
  printf(
      "FAILED: %s: %s at %lld (tile %d x %d, turns %d, cluster %d, %lld x %lld x %lld, deep %d %d, splits "
      "%d%s)\n",
      c.what.c_str(), what, static_cast<long long>(where), c.tile.m, c.tile.n, c.tile.turns, c.tile.cluster,
      static_cast<long long>(c.m), static_cast<long long>(c.n), static_cast<long long>(c.k), c.a_deep,
      c.b_deep, c.splits, c.near ? " of a cluster" : "");
  exit(1);
}

uint64_t state = 12345;
int small(int range) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return int((state >> 33) % uint64_t(2 * range + 1)) - range;
}

// A matrix inside NaNs; `shift` elements past an aligned address.
template <class T>
struct Block {
  int64_t rows, columns, pitch, first;
  std::vector<T> memory;
  T* begin;

  Block(int64_t count, int64_t rows, int64_t columns, int64_t more, int shift)
      : rows(rows), columns(columns), pitch(columns + more), first(32 + shift) {
    memory.assign(size_t(first + count * rows * pitch + 64),
                  convert<T>(std::numeric_limits<float>::quiet_NaN()));
    const size_t past = reinterpret_cast<uintptr_t>(memory.data()) / sizeof(T) % 32;
    begin = memory.data() + (past ? 32 - past : 0) + shift;
  }
  T& at(int64_t b, int64_t r, int64_t c) { return begin[(b * rows + r) * pitch + c]; }
  template <class F>
  void fill(int64_t count, F f) {
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) at(b, r, c) = convert<T>(float(f()));
      }
    }
  }
  // Whether what lies around the matrix is as it was.
  int64_t numbers(int64_t count) const {
    int64_t found = 0;
    for (const T& x : memory) found += convert<float>(x) == convert<float>(x);
    return found - count * rows * columns;
  }
};

template <class T>
void check_partials(const Case& c, Block<T>& output, const std::vector<float>& sums,
                    const std::vector<float>& mean, const std::vector<float>& m2) {
  for (int64_t block = 0; block * c.tile.m < c.m; ++block) {
    const int64_t end = std::min(c.m, (block + 1) * c.tile.m), rows = end - block * c.tile.m;
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0, squares = 0;
      for (int64_t i = block * c.tile.m; i < end; ++i) sum += convert<float>(output.at(0, i, j));
      for (int64_t i = block * c.tile.m; i < end; ++i) {
        squares += std::pow(double(convert<float>(output.at(0, i, j))) - sum / double(rows), 2);
      }
      const size_t at = size_t(block * c.n + j);
      require(std::fabs(sums[at] - sum) <= 1e-6 * std::fabs(sum) + 1e-3, c, "column sum", int64_t(at));
      require(std::fabs(mean[at] - sum / double(rows)) <= 1e-6 * std::fabs(sum / double(rows)) + 1e-5, c,
              "mean", int64_t(at));
      require(std::fabs(m2[at] - squares) <= 1e-4 * squares + 1e-3, c, "m2", int64_t(at));
    }
  }
  require(sums.back() != sums.back(), c, "past the partials", c.n);
}

template <class T>
void run(const Case& c) {
  if (getenv("VERBOSE")) fprintf(stderr, "%s %d %d\n", c.what.c_str(), c.a_deep, c.b_deep);
  const int shift = c.odd ? 1 : 0;
  Block<T> a(c.batch, c.a_deep ? c.m : c.k, c.a_deep ? c.k : c.m, 8, 8);
  Block<T> b(c.batch, c.b_deep ? c.n : c.k, c.b_deep ? c.k : c.n, 8, 8);
  a.fill(c.batch, [] { return small(4); });
  b.fill(c.batch, [] { return small(4); });
  Block<T> output(c.batch, c.m, c.n, c.odd ? 3 : 16 - c.n % 8, shift), before(c.batch, c.m, c.n, 0, 0),
      saved(c.batch, c.m, c.n, 0, 0), residual(c.batch, c.m, c.n, c.odd ? 1 : 8, shift),
      bias(1, 1, c.n, 0, shift), row_sums(1, 1, c.m, 0, 0);
  bias.fill(1, [&] { return c.columns ? 512 + small(8) : small(8); });
  residual.fill(c.batch, [] { return small(9); });
  saved.fill(c.batch, [] { return small(1); });
  const int64_t row_blocks = (c.m + c.tile.m - 1) / c.tile.m;
  const std::vector<float> nans(size_t(row_blocks * c.n + 1), std::nanf(""));
  std::vector<float> sums = nans, mean = nans, m2 = nans;
  const int64_t seed = 77;

  Problem p{};
  p.m = c.m, p.n = c.n, p.k = c.k, p.batch = c.batch;
  p.dtype = std::is_same_v<T, half> ? kFloat16 : std::is_same_v<T, float> ? kFloat32 : kBfloat16;
  p.precision = kHigh;
  p.a = {a.begin, c.a_deep ? a.pitch : 1, c.a_deep ? 1 : a.pitch, a.rows * a.pitch};
  p.b = {b.begin, c.b_deep ? 1 : b.pitch, c.b_deep ? b.pitch : 1, b.rows * b.pitch};
  p.output = output.begin, p.output_row = output.pitch, p.output_batch = output.rows * output.pitch;
  if (c.row_sums) p.a_sums = row_sums.begin;
  Epilogue& e = p.epilogue;
  if (c.full || c.columns || c.biased) e.bias = bias.begin;
  if (c.full) {
    e.activation = 1, e.preactivation = before.begin;
    e.residual = residual.begin, e.residual_row = residual.pitch,
    e.residual_batch = residual.rows * residual.pitch;
    e.seed = &seed, e.keep = KeepRule::of(0.5), e.keep_scale = 2;
  }
  if (c.backward) e.activation = 1, e.saved = saved.begin;
  if (c.columns) e.column_sums = sums.data(), e.mean = mean.data(), e.m2 = m2.data();
  align(p);
  Plan plan{kWgmma, c.tile.m, c.tile.n, wgmma_depth(p.dtype), c.splits, 0};
  plan.turns = c.tile.turns, plan.cluster = c.near ? 1 : c.tile.cluster, plan.near = c.near;
  plan.repacks_a = !wgmma_reads_a(p), plan.repacks_b = !wgmma_reads_b(p);
  plan.workspace_bytes = aligned_split_bytes(p, plan.parts_in_memory());
  if (plan.repacks_a) plan.workspace_bytes += packed_a(p).bytes;
  if (plan.repacks_b) plan.workspace_bytes += packed_b(p).bytes;
  Block<float> workspace(1, 1, plan.workspace_bytes / 4, 0, 0);
  const char* error = launch_product(p, plan, workspace.begin, nullptr);
  require(!error, c, error ? error : "", 0);

  for (int64_t x = 0; x < c.batch; ++x) {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          sum += double(convert<float>(c.a_deep ? a.at(x, i, k) : a.at(x, k, i))) *
                 double(convert<float>(c.b_deep ? b.at(x, j, k) : b.at(x, k, j)));
        }
        const int64_t where = (x * c.m + i) * c.n + j;
        if (e.bias) sum += double(convert<float>(bias.at(0, 0, j)));
        if (c.full) {
          require(convert<float>(before.at(x, i, j)) == convert<float>(convert<T>(float(sum))), c,
                  "preactivation", where);
          sum = sum <= 0 || !keep_element(uint64_t(seed), uint64_t(where), e.keep) ? 0 : 2 * sum;
          sum += double(convert<float>(residual.at(x, i, j)));
        }
        if (c.backward && convert<float>(saved.at(x, i, j)) <= 0) sum = 0;
        require(convert<float>(output.at(x, i, j)) == convert<float>(convert<T>(float(sum))), c, "output",
                where);
      }
    }
  }
  require(output.numbers(c.batch) == 0, c, "around the output", 0);
  if (c.columns) check_partials(c, output, sums, mean, m2);
  for (int64_t i = 0; c.row_sums && i < c.m; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < c.k; ++k) sum += double(convert<float>(c.a_deep ? a.at(0, i, k) : a.at(0, k, i)));
    require(convert<float>(row_sums.at(0, 0, i)) == convert<float>(convert<T>(float(sum))), c, "row sum", i);
  }
}

template <class T>
bool sums_rows(const Tile& t) {
  return t.turns == kHalves ? t.m == 128 : t.turns == kAlternate && t.m == 64 && sizeof(T) == 2;
}

// Parts of k that the blocks of a cluster add.
template <class T>
void run_near(const Tile& t) {
  Case c{"near parts of k", t, t.m + 8, t.n + 24, 136, 1, true, true, 2};
  c.near = true;
  run<T>(c);
  c.what = "near epilogue", c.splits = 4, c.k = 264, c.full = true, c.batch = 2;
  run<T>(c);
  c.what = "odd near epilogue", c.splits = 8, c.k = 520, c.odd = true, c.batch = 1, c.m = t.m - 3, c.n -= 19;
  run<T>(c);
  c.what = "near backward", c.splits = 2, c.full = c.odd = false, c.backward = true;
  run<T>(c);
  c.backward = false, c.row_sums = sums_rows<T>(t);
  for (int parts : {2, 4, 8}) {
    c.what = "near layouts", c.m = 2 * t.m - 8, c.n = 40, c.splits = parts, c.k = kWgmmaDepth * parts;
    c.a_deep = t.turns == kTokens, c.b_deep = false;
    run<T>(c);
  }
}

template <class T>
void run_tile(const Tile& t) {
  // Edges in rows and columns, more tiles than multiprocessors, and k that ends inside a step.
  const bool tokens = t.turns == kTokens;
  const int64_t m = t.m * t.cluster + 8, n = t.n + 24;
  for (int layout = 0; layout < 4; ++layout) {
    const bool a_deep = layout & 1, b_deep = layout & 2;
    if (tokens && !a_deep) continue;
    run<T>({"layouts", t, m, n, 200, 1, a_deep, b_deep, 1});
    if (!tokens && layout == 0)
      run<T>({"row sums", t, m, n, 136, 1, a_deep, b_deep, 1, false, false, false, false, sums_rows<T>(t)});
  }
  run<T>({"batches", t, t.m + 8, 40, 72, 3, true, false, 1});
  run<T>({"parts of k", t, m, n, 520, 1, true, true, 2});
  run<T>({"deep", t, 24, 40, 1032, 1, true, true, 1});
  run<T>({"bias", t, m, n, 64, 1, true, true, 1, false, false, false, false, false, false, true});
  run<T>({"ragged columns of aligned rows", t, m, 2 * t.n - 43, 72, 2, true, true, 1});
  run<T>({"odd", t, t.m - 3, t.n + 5, 64, 1, true, true, 1, true});
  run<T>({"epilogue", t, m, n, 64, 2, true, true, 1, false, true});
  run<T>({"epilogue in parts", t, m, n, 512, 1, true, true, 2, false, true});
  run<T>({"odd epilogue", t, t.m + 5, t.n - 7, 64, 1, true, true, 1, true, true});
  run<T>({"backward", t, m, n, 64, 1, true, true, 1, false, false, true});
  if (t.cluster == 1) run_near<T>(t);
  if (tokens) return;
  run<T>({"columns", t, m, n, 64, 1, true, true, 1, false, false, false, true});
  run<T>({"columns of all", t, 3 * t.m + 1, 2 * t.n, 64, 1, true, true, 1, true, true, false, true});
  if (sums_rows<T>(t)) {
    run<T>({"row sums", t, m, n, 200, 1, false, false, 1, false, false, false, true, true});
    run<T>({"row sums in parts", t, m, 40, 640, 1, false, false, 2, false, false, false, false, true});
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Tile tiles[] = {{128, 256, kHalves, 1},    {128, 256, kHalves, 2},   {128, 192, kHalves, 1},
                        {128, 192, kHalves, 2},    {128, 64, kHalves, 1},    {128, 64, kHalves, 2},
                        {64, 256, kAlternate, 1},  {64, 256, kAlternate, 2}, {128, 128, kAlternate, 1},
                        {128, 128, kAlternate, 2}, {16, 128, kTokens, 1},    {32, 128, kTokens, 1},
                        {64, 128, kTokens, 1},     {256, 128, kHalves, 1},   {256, 128, kHalves, 2}};
  fastdl_emulator_device(4, 227 << 10, 90);  // few: a block takes several tiles
  const int only = argc > 1 ? atoi(argv[1]) : -1;
  for (int i = 0; i < int(std::size(tiles)); ++i) {
    if (only >= 0 && i != only) continue;
    if (argc > 2 && std::string(argv[2]) == "tf32") {
      run_tile<float>(tiles[i]);
      continue;
    }
    run_tile<bfloat16>(tiles[i]);
    if (i % 2 == 0) run_tile<half>(tiles[i]);
  }
  printf("wgmma: ok\n");
}
