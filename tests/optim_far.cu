// The optimizer's kernel far beyond 2^32 elements: on windows of parameters whose other tiles are not there.
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "optim/api.h"
#include "optim/update.cuh"

using namespace fastdl;
using namespace fastdl::optim;

namespace {

constexpr uint64_t kSeed = 0x123456789ABCDull;
constexpr int kCount = kTile - 3;  // the last tile is not full

// Where a tensor begins whose element `first` is the window's.
template <class T>
T* begin_of(std::vector<T>& window, int64_t first) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(window.data()) - uintptr_t(first) * sizeof(T));
}

void require(bool holds, const char* what, int64_t tile, int i) {
  if (holds) return;
  printf("FAILED: %s, element %d of tile %lld\n", what, i, static_cast<long long>(tile));
  exit(1);
}

// AdamW on the last tile of a parameter of `tile` tiles before it; bfloat16 rounds by the element's whole
// index.
template <class scalar_t>
void check(int64_t tile, Dtype dtype) {
  const int64_t first = tile * kTile;
  std::vector<scalar_t> p(kTile, convert<scalar_t>(7.f)), m(kTile), v(kTile);
  std::vector<float> g(kTile);
  float step = 4;  // the record's first block counts it
  for (int i = 0; i < kCount; ++i)
    p[size_t(i)] = convert<scalar_t>(1.f), g[size_t(i)] = 0.01f * float(i % 17 - 8);
  for (int i = 0; i < kTile; ++i) m[size_t(i)] = v[size_t(i)] = convert<scalar_t>(0.f);

  Options o{};
  o.lr = 0.01, o.lr_index = -1, o.ema_decay = -1, o.beta1 = 0.9, o.beta2 = 0.99, o.eps = 1e-8;
  o.stochastic_rounding = dtype == kBfloat16, o.rounding_seed = double(kSeed);
  DeviceRecord r{};
  r.param = begin_of(p, first), r.state[0] = begin_of(m, first), r.state[1] = begin_of(v, first),
  r.step = &step;
  r.numel = first + kCount;
  r.first_tile = int32_t(-tile);  // so that the launch's tile 0 is the parameter's last
  r.param_dtype = r.state_dtype[0] = r.state_dtype[1] = dtype;
  std::vector<double> partials(kMaxBlocks);
  StepArguments a{};
  a.records = &r, a.tiles = 1, a.count = 1, a.row_count = 1, a.counts = true, a.partials = partials.data();
  struct {
    Row row;
    const void* grad;
  } table{{o, nullptr, kFloat32}, begin_of(g, first)};
  static_assert(sizeof table == table_bytes(1, 1));
  const char* error = launch_step(kAdam, true, o, a, &table, nullptr);
  require(error == nullptr, error ? error : "", tile, 0);

  const Shared<float> shared(o, o.lr, 1);
  const Adam<float, false> rule(o, o.lr, 5);
  require(step == (tile == 0 ? 5 : 4), "step", tile, 0);
  for (int i = 0; i < kTile; ++i) {
    float expected = i < kCount ? 1.f : 7.f, state[2] = {};
    if (i < kCount) {
      shared(rule, expected, g[size_t(i)], state);
      const uint64_t index = uint64_t(first + i);
      if (o.stochastic_rounding != 0) {
        const uint32_t bits = rounding_half(rounding_word(rounding_words({kSeed, 5}, index, 0), index), 0);
        expected = __uint_as_float(uint32_t(round_to_bfloat16(expected, bits)) << 16);
      }
    }
    require(convert<float>(p[size_t(i)]) == expected, "parameter", tile, i);
  }
}

}  // namespace

int main() {
  for (const int64_t tile :
       {int64_t(0), int64_t(1) << 19, (int64_t(1) << 20) + 1, int64_t(1) << 24, int64_t(1) << 30}) {
    check<float>(tile, kFloat32);
    check<bfloat16>(tile, kBfloat16);
  }
  printf("ok\n");
}
