// wgmma in every width and layout: sm_90a alone. Operand tiles are written element by element where the
// layout of the PTX manual puts them, and the product is held against a plain loop.
#pragma once
#include "harness.h"

namespace fastdl::conformance {

using ptx::Major;
using ptx::Swizzle;

// Where element (mn, k) of an operand with `extent` rows along mn lies; one step of 32 bytes along k.
template <Major kMajor, Swizzle kSwizzle, int kSize = 2>
struct Layout {
  static constexpr int kRow = kSwizzle == Swizzle::kNone ? 16 : int(kSwizzle);  // bytes of a swizzle row
  static constexpr int kAtom = 8 * kRow, kPerRow = kRow / 2;
  // K-major: rows of kRow bytes along k. MN-major: rows along mn, 8 of them along k make an atom.
  static constexpr uint32_t leading(int extent) {
    if (kMajor == Major::kK) return kSwizzle == Swizzle::kNone ? uint32_t(extent / 8 * kAtom) : 16;
    return kSwizzle == Swizzle::kNone ? uint32_t(extent / 8 * kAtom) : uint32_t(2 * kAtom);
  }
  static constexpr uint32_t stride(int) {
    return uint32_t(kAtom);  // between groups of 8 rows; MN-major swizzled: between groups of 8 along k
  }
  static uint32_t offset(int mn, int k, int extent) {
    int plain;
    if (kMajor == Major::kK) {
      plain = kSwizzle == Swizzle::kNone
                  ? mn / 8 * kAtom + mn % 8 * 16 + k * kSize / 16 * int(leading(extent)) + k * kSize % 16
                  : mn / 8 * kAtom + mn % 8 * kRow + k * kSize;
    } else if (kSwizzle == Swizzle::kNone) {
      plain = mn / 8 * kAtom + mn % 8 * 2 + k % 8 * 16 + k / 8 * int(leading(extent));
    } else {
      plain = mn / kPerRow * int(leading(extent)) + mn % kPerRow * 2 + k % 8 * kRow + k / 8 * kAtom;
    }
    return ptx::swizzle_offset<kSwizzle>(uint32_t(plain));
  }
};

constexpr int kTileBytes = 64 * 1024;  // room for 256 rows of 128 bytes, twice

template <int kN, class scalar_t, Major kAMajor, Swizzle kASwizzle, Major kBMajor, Swizzle kBSwizzle,
          bool kRegisters>
__global__ void __launch_bounds__(128)
    wgmma_kernel(const uint4* tiles, const uint32_t* fragment, float* out) {
  FASTDL_DYNAMIC_SHARED(bytes);
  for (int i = int(threadIdx.x); i < 2 * kTileBytes / 16; i += 128)
    reinterpret_cast<uint4*>(bytes)[i] = tiles[i];
  ptx::fence_proxy_async();
  __syncthreads();
  const uint32_t a_tile = ptx::shared_address(bytes), b_tile = a_tile + kTileBytes;
  using A = Layout<kAMajor, kASwizzle>;
  using B = Layout<kBMajor, kBSwizzle>;
  const uint64_t a = ptx::matrix_descriptor<kASwizzle>(a_tile, A::leading(64), A::stride(64));
  const uint64_t b = ptx::matrix_descriptor<kBSwizzle>(b_tile, B::leading(kN), B::stride(kN));
  uint32_t registers[4];
  FASTDL_UNROLL
  for (int i = 0; i < 4; ++i) registers[i] = fragment[threadIdx.x * 4 + i];
  float d[kN / 2];
  FASTDL_UNROLL
  for (int i = 0; i < kN / 2; ++i) d[i] = float(threadIdx.x % 7);
  ptx::keep_registers(d);
  ptx::wgmma_fence();
  for (int pass = 0; pass < 2; ++pass) {  // the first replaces D, the second adds to it
    if constexpr (kRegisters) {
      ptx::wgmma<kN, scalar_t, kBMajor>(d, registers, b, pass == 1);
    } else {
      ptx::wgmma<kN, scalar_t, kAMajor, kBMajor>(d, a, b, pass == 1);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::keep_registers(d);
  FASTDL_UNROLL
  for (int i = 0; i < kN / 2; ++i) out[i * 128 + int(threadIdx.x)] = d[i];
}

inline float element(int row, int k, int salt) { return float((row * 7 + k * 5 + salt) % 11) - 5; }

template <int kN, class scalar_t, Major kAMajor, Swizzle kASwizzle, Major kBMajor, Swizzle kBSwizzle,
          bool kRegisters = false>
void check_wgmma() {
  constexpr int kSize = int(sizeof(scalar_t)), kDepth = 32 / kSize;
  constexpr size_t kElements = 2 * kTileBytes / kSize;
  Array<scalar_t> tiles(kElements), fragment(128 * 8);
  Array<float> out(64 * kN);
  std::vector<scalar_t> image(kElements, scalar_t(0.0f));
  for (int k = 0; k < kDepth; ++k) {
    for (int m = 0; m < 64; ++m)
      image[Layout<kAMajor, kASwizzle, kSize>::offset(m, k, 64) / kSize] = scalar_t(element(m, k, 1));
    for (int n = 0; n < kN; ++n) {
      image[(kTileBytes + Layout<kBMajor, kBSwizzle, kSize>::offset(n, k, kN)) / kSize] =
          scalar_t(element(n, k, 4));
    }
  }
  tiles.fill([&](size_t i) { return float(image[i]); });
  fragment.fill([](size_t i) {
    const int t = int(i / 8), j = int(i % 8);
    return element(t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8, t % 4 * 2 + j % 2 + j / 4 * 8, 1);
  });
  const auto kernel = wgmma_kernel<kN, scalar_t, kAMajor, kASwizzle, kBMajor, kBSwizzle, kRegisters>;
  accepted(launch(kernel, {1, 128, 2 * kTileBytes}, reinterpret_cast<const uint4*>(tiles.device),
                  reinterpret_cast<const uint32_t*>(fragment.device), out.device));
  const auto layout = [](Major major, Swizzle swizzle) {
    return std::string(major == Major::kK ? "K" : "MN") + std::to_string(int(swizzle));
  };
  const std::string name = std::string("wgmma ") +
                           (std::is_same_v<scalar_t, half>    ? "half"
                            : std::is_same_v<scalar_t, float> ? "tf32"
                                                              : "bfloat16") +
                           " n" + std::to_string(kN) + " A " +
                           (kRegisters ? "registers" : layout(kAMajor, kASwizzle)) + " B " +
                           layout(kBMajor, kBSwizzle);
  out.print(name);
  for (int t = 0; t < 128; ++t) {
    for (int j = 0; j < kN / 2; ++j) {
      const int row = t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + t % 4 * 2 + j % 2;
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += 2 * element(row, k, 1) * element(column, k, 4);
      require(out.host[size_t(j * 128 + t)] == sum, name + " differs from a plain loop");
    }
  }
}

template <class scalar_t, int... kEighths>
void check_widths(std::integer_sequence<int, kEighths...>) {
  (check_wgmma<8 * (kEighths + 1), scalar_t, Major::kK, Swizzle::k128, Major::kK, Swizzle::k128>(), ...);
}

template <int kN, Major kAMajor, Major kBMajor, Swizzle... kSwizzles>
void check_layouts() {
  (check_wgmma<kN, bfloat16, kAMajor, kSwizzles, kBMajor, kSwizzles>(), ...);
}

template <Swizzle... kSwizzles>
void check_tf32_layouts() {
  (check_wgmma<96, float, Major::kK, kSwizzles, Major::kK, kSwizzles>(), ...);
}

template <class scalar_t>
void check_register_operand() {
  check_wgmma<8, scalar_t, Major::kK, Swizzle::k128, Major::kK, Swizzle::k128, true>();
  check_wgmma<64, scalar_t, Major::kK, Swizzle::k128, Major::kMN, Swizzle::k128, true>();
  check_wgmma<256, scalar_t, Major::kK, Swizzle::k128, Major::kK, Swizzle::k64, true>();
}

void matrices() {
  check_widths<bfloat16>(std::make_integer_sequence<int, 32>{});
  check_widths<half>(std::integer_sequence<int, 0, 7, 15, 31>{});
  check_widths<float>(std::make_integer_sequence<int, 32>{});
  check_tf32_layouts<Swizzle::kNone, Swizzle::k32, Swizzle::k64>();
  check_layouts<128, Major::kK, Major::kK, Swizzle::kNone, Swizzle::k32, Swizzle::k64>();
  check_layouts<64, Major::kK, Major::kMN, Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128>();
  check_layouts<128, Major::kMN, Major::kK, Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128>();
  check_layouts<128, Major::kMN, Major::kMN, Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128>();
  check_register_operand<bfloat16>();
  check_register_operand<half>();
}

}  // namespace fastdl::conformance
