// Dropout's kernels at logical indices far beyond 2^32, on small windows of tensors that are not there.
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "dropout/dropout.cuh"
#include "dropout/transposed.cuh"

using namespace fastdl;
using namespace fastdl::dropout;

namespace {

using Plain = Pass<false, false, false>;
constexpr int64_t kSeed = -1234567890123456789;
const int64_t kFar[] = {0,
                        (int64_t(1) << 31) - 4096,
                        (int64_t(1) << 32) - 2048,
                        (int64_t(1) << 34) - 8,
                        (int64_t(1) << 35) - 4096,
                        (int64_t(1) << 40) + 8 * 12345,
                        (int64_t(1) << 50) - 2048};
const double kProbabilities[] = {0.0, 0.001, 0.3, 0.99, 1.0};

void require(bool holds, const char* what, int64_t index) {
  if (holds) return;
  printf("FAILED: %s at %lld\n", what, static_cast<long long>(index));
  exit(1);
}

bool kept(int64_t index, double p, int64_t group) {
  return keep_element(uint64_t(kSeed), uint64_t(index / group), KeepRule::of(p));
}

// Where a tensor begins whose element `first` is the window's.
template <class T>
T* begin_of(T* window, int64_t first) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(window) - uintptr_t(first) * sizeof(T));
}

template <class scalar_t>
void check_window(int64_t first, double p, int64_t group, bool vectors) {
  constexpr int kSize = kVectorSize<scalar_t>, kCount = kBlockElements<scalar_t>;
  static_assert(kCount % 8 == 0);
  std::vector<scalar_t> memory(kCount + 16, scalar_t(1.0f)), results(kCount + 16);
  const auto aligned = [](std::vector<scalar_t>& v) {
    return reinterpret_cast<scalar_t*>((reinterpret_cast<uintptr_t>(v.data()) + 15) / 16 * 16);
  };
  const scalar_t* input = aligned(memory);
  scalar_t* output = aligned(results);
  const int64_t missing = vectors ? 0 : 3;  // the tensor's last block is not full
  const Problem problem{begin_of(input, first),        nullptr, begin_of(output, first),
                        first + kCount - missing,      1.0,     Activation::kNone,
                        KeepMask::of(&kSeed, p, group)};
  const Linear layout{{vectors, vectors, vectors}, vectors};
  const MaskReader mask(problem.mask);
  for (int t = 0; t < kThreads; ++t) {
    if (vectors) {
      dropout_vectors<scalar_t, Plain>(problem, layout, mask, first + t * kSize);
    } else {
      dropout_elements<scalar_t, Plain>(problem, layout, mask, first + t * kSize);
    }
  }
  for (int64_t i = 0; i < kCount; ++i) {
    const bool expected = i < kCount - missing && kept(first + i, p, group);
    require((float(output[i]) != 0) == expected, vectors ? "vectors" : "elements", first + i);
  }
}

void check_rows(int64_t first, int64_t columns, double p) {
  const KeepMask keep = KeepMask::of(&kSeed, p, 1);
  const MaskReader mask(keep);
  RowMasks<8> masks(mask, first, columns);
  for (int64_t column = 0; column < 64; column += kOctet) {
    const uint64_t bits = masks.next();
    for (int j = 0; j < 64; ++j) {
      const int64_t index = first + j / 8 * columns + column + j % 8;
      require((bits >> j & 1) == kept(index, p, 1), "rows", index);
    }
  }
}

void check_strided() {
  constexpr int64_t kSizes[] = {5, (1 << 20) - 3, 7, (1 << 22) + 1};
  Strided layout{};
  layout.dims = 4;
  for (int d = 0; d < 4; ++d) {
    layout.size[d] = Divisor(kSizes[d]);
    for (int k = 0; k < kOperands; ++k) layout.stride[k][d] = (int64_t(k) + 2) << (10 * d);
  }
  const int64_t numel = 5 * kSizes[1] * 7 * kSizes[3];
  for (int64_t index = 0; index < numel; index += numel / 9973) {
    const Place place = layout.find(index);
    int64_t rest = index, offset[kOperands] = {};
    for (int d = 3; d >= 0; --d) {
      for (int k = 0; k < kOperands; ++k) offset[k] += rest % kSizes[d] * layout.stride[k][d];
      if (d == 3) require(place.following == kSizes[3] - 1 - rest % kSizes[3], "following", index);
      rest /= kSizes[d];
    }
    for (int k = 0; k < kOperands; ++k) require(place.offset[k] == offset[k], "offset", index);
  }
}

void check_divisor() {
  std::vector<int64_t> numbers;
  for (int shift = 0; shift < 63; ++shift) {
    for (int64_t d = -2; d <= 2; ++d) numbers.push_back((int64_t(1) << shift) + d);
    numbers.push_back(int64_t(0x9E3779B97F4A7C15ull >> (63 - shift)));
  }
  numbers.push_back(INT64_MAX);
  numbers.push_back(INT64_MAX - 1);
  for (int64_t d : numbers) {
    if (d < 1) continue;
    const Divisor divisor(d);
    for (int64_t n : numbers) {
      if (n >= 0) require(divisor.quotient(n) == n / d, "quotient", n);
    }
  }
}

}  // namespace

int main() {
  check_divisor();
  check_strided();
  for (int64_t first : kFar) {
    for (double p : kProbabilities) {
      for (int64_t group : {1, 5, 49, 1 << 20}) {
        for (bool vectors : {true, false}) {
          check_window<half>(first, p, group, vectors);
          check_window<float>(first, p, group, vectors);
          check_window<double>(first, p, group, vectors);
        }
      }
      check_rows(first, 49, p);
      check_rows(first + 3, 56, p);
    }
  }
  puts("far indices: ok");
  return 0;
}
