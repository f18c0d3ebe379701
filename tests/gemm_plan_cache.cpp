// Plans out of the cache are the plans themselves: over random problems that often share a key, and for every
// input alone. With an argument: nanoseconds a plan, without and with the cache.
#include "gemm/plan_cache.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include "gemm/plan.h"

using namespace fastdl::gemm;

namespace {

uint64_t state = 1;
template <class T, size_t kCount>
T any_of(const T (&values)[kCount]) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return values[(state >> 33) % kCount];
}
bool coin() { return any_of({false, true}); }
void* address() { return reinterpret_cast<void*>(any_of<uintptr_t>({4096, 4098, 4104, 8192})); }
void* maybe() { return coin() ? address() : nullptr; }

Matrix any_matrix(int64_t rows, int64_t columns) {
  const int64_t step = any_of<int64_t>({1, 1, 1, 2}), more = any_of<int64_t>({0, 1, 4, 8});
  Matrix x{address(), columns * step + more, step, any_of<int64_t>({0, rows * columns * step + 8, 3})};
  if (coin()) x = {x.data, step, rows * step + more, x.batch};
  if (coin()) x.row = 1;  // as a lone row has
  return x;
}

Problem any_problem() {
  Problem p{};
  p.m = any_of<int64_t>({1, 3, 16, 64, 65, 128, 1024, 4096}),
  p.n = any_of<int64_t>({1, 4, 72, 128, 1000, 4096});
  p.k = any_of<int64_t>({0, 1, 64, 200, 1024, 70000}), p.batch = any_of<int64_t>({1, 1, 2});
  p.dtype = any_of({kFloat32, kFloat64, kFloat16, kBfloat16});
  p.precision = any_of({kHighest, kHigh, kEmulated, kAlwaysEmulated});
  p.a = any_matrix(p.m, p.k), p.b = any_matrix(p.k, p.n);
  p.output = address(), p.output_row = p.n + any_of<int64_t>({0, 3, 8}), p.output_batch = p.m * p.output_row;
  p.a_sums = any_of<int>({0, 0, 1}) ? address() : nullptr;
  Epilogue& e = p.epilogue;
  e.activation = any_of({0, 1, 2, 3, 5});
  e.bias = maybe(), e.preactivation = maybe(), e.saved = maybe(), e.residual = maybe();
  e.residual_row = p.n, e.residual_batch = p.m * p.n;
  e.seed = static_cast<const int64_t*>(maybe());
  if (any_of<int>({0, 0, 1})) e.column_sums = address();
  if (any_of<int>({0, 0, 1})) e.mean = e.m2 = address();
  align(p);
  return p;
}

Machine any_machine() {
  const int capability = any_of({75, 80, 89, 90});
  return {any_of({1, 8, 108, 132}), capability, any_of({64 << 10, 227 << 10}), capability == 90 && coin()};
}

void require(bool holds, const char* what) {
  if (holds) return;
  printf("FAILED: %s\n", what);
  exit(1);
}

// Some of one problem, the rest of another.
Problem mixed(const Problem& p, const Problem& other) {
  Problem q = p;
  switch (any_of({0, 1, 2, 3, 4, 5, 6, 7, 8})) {
    case 0:
      q.a = other.a;
      break;
    case 1:
      q.b = other.b;
      break;
    case 2:
      q.a.data = other.a.data, q.b.data = other.b.data;
      break;
    case 3:
      q.a.row = other.a.row, q.b.column = other.b.column;
      break;
    case 4:
      q.a.batch = other.a.batch, q.b.batch = other.b.batch;
      break;
    case 5:
      q.output = other.output, q.output_row = other.output_row, q.a_sums = other.a_sums;
      break;
    case 6:
      q.dtype = other.dtype, q.precision = other.precision;
      break;
    case 7:
      q.m = other.m;
      break;
    default:
      q.epilogue = other.epilogue;
  }
  align(q);
  return q;
}

void random_problems() {
  int made = 0, shared = 0;
  constexpr int kProblems = 300000, kEach = 200;
  Problem first = any_problem();
  Machine machine = any_machine();
  for (int i = 0; i < kProblems; ++i) {
    if (i % kEach == 0) first = any_problem(), machine = any_machine();
    const Problem p = mixed(first, any_problem());
    const uint64_t generation = 1 + uint64_t(i) / 100000;
    const int before = made;
    const Plan found = cached_plan(p, machine, generation, [&] { return ++made, plan(p, machine); });
    require(found == plan(p, machine), "a plan of the cache is another problem's");
    shared += made == before;
    const Plan again = cached_plan(p, machine, generation, [&] { return ++made, Plan{}; });
    require(again == found, "a plan is not found again");
  }
  require(shared > kProblems / 4 && made > kProblems / 20, "the problems say little");
}

// Whatever changes alone is another key.
void every_input() {
  Problem p{};
  p.m = p.n = p.k = 128, p.batch = 2, p.dtype = kBfloat16;
  p.a = {reinterpret_cast<void*>(4096), 128, 1, 16384}, p.b = p.a;
  p.epilogue.aligned = true;
  const Machine machine{132, 90, 227 << 10, true};
  const PlanKey key = plan_key(p, machine);
  int number = 0;
  const auto differs = [&](auto change) {
    Problem q = p;
    Machine other = machine;
    change(q, other);
    char text[64];
    snprintf(text, sizeof text, "input %d is not in the key", number++);
    require(plan_key(q, other) != key, text);
  };
  differs([](Problem& q, Machine&) { q.m = 129; });
  differs([](Problem& q, Machine&) { q.n = 129; });
  differs([](Problem& q, Machine&) { q.k = 129; });
  differs([](Problem& q, Machine&) { q.batch = 3; });
  differs([](Problem& q, Machine&) { q.dtype = kFloat16; });
  differs([](Problem& q, Machine&) { q.precision = kEmulated; });
  for (Matrix Problem::* x : {&Problem::a, &Problem::b}) {
    differs([x](Problem& q, Machine&) { q.*x = (q.*x).transposed(); });
    differs([x](Problem& q, Machine&) { (q.*x).row = 1; });
    differs([x](Problem& q, Machine&) { (q.*x).row = 129; });
    differs([x](Problem& q, Machine&) { (q.*x).column = 2; });
    differs([x](Problem& q, Machine&) { (q.*x).batch = 0; });
    differs([x](Problem& q, Machine&) { (q.*x).batch = 16385; });
    differs([x](Problem& q, Machine&) { (q.*x).data = reinterpret_cast<void*>(4098); });
  }
  differs([](Problem& q, Machine&) { q.a_sums = &q; });
  differs([](Problem& q, Machine&) { q.epilogue.aligned = false; });
  differs([](Problem& q, Machine&) { q.epilogue.activation = 1; });
  differs([](Problem& q, Machine&) { q.epilogue.activation = 3; });
  differs([](Problem& q, Machine&) { q.epilogue.preactivation = &q; });
  differs([](Problem& q, Machine&) { q.epilogue.saved = &q; });
  differs([](Problem& q, Machine&) { q.epilogue.residual = &q; });
  differs([](Problem& q, Machine&) { q.epilogue.seed = &q.m; });
  differs([](Problem& q, Machine&) { q.epilogue.column_sums = &q; });
  differs([](Problem& q, Machine&) { q.epilogue.mean = &q; });
  differs([](Problem&, Machine& other) { other.multiprocessors = 131; });
  differs([](Problem&, Machine& other) { other.capability = 100; });
  differs([](Problem&, Machine& other) { other.shared_bytes = 1; });
  differs([](Problem&, Machine& other) { other.wgmma = false; });
}

template <class F>
double nanoseconds(F f) {
  using Clock = std::chrono::steady_clock;
  constexpr int kTimes = 20000;
  double best = 1e300;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < kTimes; ++i) f();
    const std::chrono::duration<double, std::nano> taken = Clock::now() - start;
    best = std::min(best, taken.count() / kTimes);
  }
  return best;
}

void measure() {
  volatile int64_t sink = 0;
  const auto row = [&](const char* what, Problem p, const Machine& machine) {
    align(p);
    const double plain = nanoseconds([&] { sink = sink + plan(p, machine).workspace_bytes; });
    const double cached = nanoseconds(
        [&] { sink = sink + cached_plan(p, machine, 1, [&] { return plan(p, machine); }).workspace_bytes; });
    printf("%-40s %8.0f ns, cached %6.0f ns\n", what, plain, cached);
  };
  const Machine hopper{132, 90, 227 << 10, true}, ampere{108, 80, 163 << 10, false};
  Problem p{};
  p.m = p.n = p.k = 4096, p.batch = 1, p.dtype = kBfloat16, p.output_row = 4096;
  p.a = p.b = {reinterpret_cast<void*>(4096), 4096, 1, 0};
  row("4096 cubed, bfloat16, Hopper", p, hopper);
  row("4096 cubed, bfloat16, Ampere", p, ampere);
  Problem odd = p;
  odd.a.row = odd.b.row = 4097;
  row("4096 cubed, odd lines, Hopper", odd, hopper);
  Problem words = p;
  words.dtype = kFloat32;
  row("4096 cubed, float32, Hopper", words, hopper);
  words.precision = kEmulated;
  row("4096 cubed, float32 emulated, Hopper", words, hopper);
  p.m = 1;
  row("1 x 4096 x 4096, bfloat16, Hopper", p, hopper);
}

}  // namespace

int main(int count, char**) {
  if (count > 1) {
    measure();
    return 0;
  }
  random_problems();
  every_input();
  printf("plan cache: ok\n");
}
