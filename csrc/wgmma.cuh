// The wgmma instruction in its 32 widths. Included by ptx.cuh under nvcc only; asm needs every register
// spelled out, so the lists are built by the preprocessor, 4 registers for each 8 columns.
#pragma once

namespace fastdl::ptx {

// wgmma: wgmma_fence, products, wgmma_commit, wgmma_wait<groups that may be under way>.
FASTDL_DEVICE void wgmma_fence() { FASTDL_ASM90A("wgmma.fence.sync.aligned;" :: : "memory"); }
FASTDL_DEVICE void wgmma_commit() { FASTDL_ASM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }
template <int kPending>
FASTDL_DEVICE void wgmma_wait() {
  FASTDL_ASM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define FASTDL_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FASTDL_NAMES_8 "%0,%1,%2,%3"
#define FASTDL_REGISTERS_8 FASTDL_D(0)
#define FASTDL_NAMES_16 \
  FASTDL_NAMES_8        \
  ","                   \
  "%4,%5,%6,%7"
#define FASTDL_REGISTERS_16 FASTDL_REGISTERS_8, FASTDL_D(4)
#define FASTDL_NAMES_24 \
  FASTDL_NAMES_16       \
  ","                   \
  "%8,%9,%10,%11"
#define FASTDL_REGISTERS_24 FASTDL_REGISTERS_16, FASTDL_D(8)
#define FASTDL_NAMES_32 \
  FASTDL_NAMES_24       \
  ","                   \
  "%12,%13,%14,%15"
#define FASTDL_REGISTERS_32 FASTDL_REGISTERS_24, FASTDL_D(12)
#define FASTDL_NAMES_40 \
  FASTDL_NAMES_32       \
  ","                   \
  "%16,%17,%18,%19"
#define FASTDL_REGISTERS_40 FASTDL_REGISTERS_32, FASTDL_D(16)
#define FASTDL_NAMES_48 \
  FASTDL_NAMES_40       \
  ","                   \
  "%20,%21,%22,%23"
#define FASTDL_REGISTERS_48 FASTDL_REGISTERS_40, FASTDL_D(20)
#define FASTDL_NAMES_56 \
  FASTDL_NAMES_48       \
  ","                   \
  "%24,%25,%26,%27"
#define FASTDL_REGISTERS_56 FASTDL_REGISTERS_48, FASTDL_D(24)
#define FASTDL_NAMES_64 \
  FASTDL_NAMES_56       \
  ","                   \
  "%28,%29,%30,%31"
#define FASTDL_REGISTERS_64 FASTDL_REGISTERS_56, FASTDL_D(28)
#define FASTDL_NAMES_72 \
  FASTDL_NAMES_64       \
  ","                   \
  "%32,%33,%34,%35"
#define FASTDL_REGISTERS_72 FASTDL_REGISTERS_64, FASTDL_D(32)
#define FASTDL_NAMES_80 \
  FASTDL_NAMES_72       \
  ","                   \
  "%36,%37,%38,%39"
#define FASTDL_REGISTERS_80 FASTDL_REGISTERS_72, FASTDL_D(36)
#define FASTDL_NAMES_88 \
  FASTDL_NAMES_80       \
  ","                   \
  "%40,%41,%42,%43"
#define FASTDL_REGISTERS_88 FASTDL_REGISTERS_80, FASTDL_D(40)
#define FASTDL_NAMES_96 \
  FASTDL_NAMES_88       \
  ","                   \
  "%44,%45,%46,%47"
#define FASTDL_REGISTERS_96 FASTDL_REGISTERS_88, FASTDL_D(44)
#define FASTDL_NAMES_104 \
  FASTDL_NAMES_96        \
  ","                    \
  "%48,%49,%50,%51"
#define FASTDL_REGISTERS_104 FASTDL_REGISTERS_96, FASTDL_D(48)
#define FASTDL_NAMES_112 \
  FASTDL_NAMES_104       \
  ","                    \
  "%52,%53,%54,%55"
#define FASTDL_REGISTERS_112 FASTDL_REGISTERS_104, FASTDL_D(52)
#define FASTDL_NAMES_120 \
  FASTDL_NAMES_112       \
  ","                    \
  "%56,%57,%58,%59"
#define FASTDL_REGISTERS_120 FASTDL_REGISTERS_112, FASTDL_D(56)
#define FASTDL_NAMES_128 \
  FASTDL_NAMES_120       \
  ","                    \
  "%60,%61,%62,%63"
#define FASTDL_REGISTERS_128 FASTDL_REGISTERS_120, FASTDL_D(60)
#define FASTDL_NAMES_136 \
  FASTDL_NAMES_128       \
  ","                    \
  "%64,%65,%66,%67"
#define FASTDL_REGISTERS_136 FASTDL_REGISTERS_128, FASTDL_D(64)
#define FASTDL_NAMES_144 \
  FASTDL_NAMES_136       \
  ","                    \
  "%68,%69,%70,%71"
#define FASTDL_REGISTERS_144 FASTDL_REGISTERS_136, FASTDL_D(68)
#define FASTDL_NAMES_152 \
  FASTDL_NAMES_144       \
  ","                    \
  "%72,%73,%74,%75"
#define FASTDL_REGISTERS_152 FASTDL_REGISTERS_144, FASTDL_D(72)
#define FASTDL_NAMES_160 \
  FASTDL_NAMES_152       \
  ","                    \
  "%76,%77,%78,%79"
#define FASTDL_REGISTERS_160 FASTDL_REGISTERS_152, FASTDL_D(76)
#define FASTDL_NAMES_168 \
  FASTDL_NAMES_160       \
  ","                    \
  "%80,%81,%82,%83"
#define FASTDL_REGISTERS_168 FASTDL_REGISTERS_160, FASTDL_D(80)
#define FASTDL_NAMES_176 \
  FASTDL_NAMES_168       \
  ","                    \
  "%84,%85,%86,%87"
#define FASTDL_REGISTERS_176 FASTDL_REGISTERS_168, FASTDL_D(84)
#define FASTDL_NAMES_184 \
  FASTDL_NAMES_176       \
  ","                    \
  "%88,%89,%90,%91"
#define FASTDL_REGISTERS_184 FASTDL_REGISTERS_176, FASTDL_D(88)
#define FASTDL_NAMES_192 \
  FASTDL_NAMES_184       \
  ","                    \
  "%92,%93,%94,%95"
#define FASTDL_REGISTERS_192 FASTDL_REGISTERS_184, FASTDL_D(92)
#define FASTDL_NAMES_200 \
  FASTDL_NAMES_192       \
  ","                    \
  "%96,%97,%98,%99"
#define FASTDL_REGISTERS_200 FASTDL_REGISTERS_192, FASTDL_D(96)
#define FASTDL_NAMES_208 \
  FASTDL_NAMES_200       \
  ","                    \
  "%100,%101,%102,%103"
#define FASTDL_REGISTERS_208 FASTDL_REGISTERS_200, FASTDL_D(100)
#define FASTDL_NAMES_216 \
  FASTDL_NAMES_208       \
  ","                    \
  "%104,%105,%106,%107"
#define FASTDL_REGISTERS_216 FASTDL_REGISTERS_208, FASTDL_D(104)
#define FASTDL_NAMES_224 \
  FASTDL_NAMES_216       \
  ","                    \
  "%108,%109,%110,%111"
#define FASTDL_REGISTERS_224 FASTDL_REGISTERS_216, FASTDL_D(108)
#define FASTDL_NAMES_232 \
  FASTDL_NAMES_224       \
  ","                    \
  "%112,%113,%114,%115"
#define FASTDL_REGISTERS_232 FASTDL_REGISTERS_224, FASTDL_D(112)
#define FASTDL_NAMES_240 \
  FASTDL_NAMES_232       \
  ","                    \
  "%116,%117,%118,%119"
#define FASTDL_REGISTERS_240 FASTDL_REGISTERS_232, FASTDL_D(116)
#define FASTDL_NAMES_248 \
  FASTDL_NAMES_240       \
  ","                    \
  "%120,%121,%122,%123"
#define FASTDL_REGISTERS_248 FASTDL_REGISTERS_240, FASTDL_D(120)
#define FASTDL_NAMES_256 \
  FASTDL_NAMES_248       \
  ","                    \
  "%124,%125,%126,%127"
#define FASTDL_REGISTERS_256 FASTDL_REGISTERS_248, FASTDL_D(124)

// For a width n with h = n / 2 accumulators: the numbers of the operands behind them.
#define FASTDL_WGMMA(n, type, h0, h1, h2, h3, h4)                                                       \
  FASTDL_ASM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" #h2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n   \
                "k16.f32." type " {" FASTDL_NAMES_##n "}, %" #h0 ", %" #h1 ", p, 1, 1, %" #h3 ", %" #h4 \
                                                      ";\n}\n" : FASTDL_REGISTERS_##n : "l"(a),         \
                "l"(b), "r"(int(accumulate)), "n"(int(kAMajor)), "n"(int(kBMajor)))
#define FASTDL_WGMMA_REGISTERS(n, type, h0, h1, h2, h3, h4, h5, h6)                                     \
  FASTDL_ASM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" #h5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n   \
                "k16.f32." type " {" FASTDL_NAMES_##n "}, {%" #h0 ",%" #h1 ",%" #h2 ",%" #h3 "}, %" #h4 \
                                                      ", p, 1, 1, %" #h6                                \
                                                      ";\n}\n" : FASTDL_REGISTERS_##n : "r"(a[0]),      \
                "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kBMajor)))
// Both operands K-major: there are no bits to say otherwise.
#define FASTDL_WGMMA_TF32(n, h0, h1, h2)                                                                 \
  FASTDL_ASM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" #h2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n    \
                "k8.f32.tf32.tf32 {" FASTDL_NAMES_##n "}, %" #h0 ", %" #h1                               \
                                                      ", p, 1, 1;\n}\n" : FASTDL_REGISTERS_##n : "l"(a), \
                "l"(b), "r"(int(accumulate)))
#define FASTDL_FOR_EACH_WIDTH(_)            \
  _(8, 4, 5, 6, 7, 8, 9, 10)                \
  _(16, 8, 9, 10, 11, 12, 13, 14)           \
  _(24, 12, 13, 14, 15, 16, 17, 18)         \
  _(32, 16, 17, 18, 19, 20, 21, 22)         \
  _(40, 20, 21, 22, 23, 24, 25, 26)         \
  _(48, 24, 25, 26, 27, 28, 29, 30)         \
  _(56, 28, 29, 30, 31, 32, 33, 34)         \
  _(64, 32, 33, 34, 35, 36, 37, 38)         \
  _(72, 36, 37, 38, 39, 40, 41, 42)         \
  _(80, 40, 41, 42, 43, 44, 45, 46)         \
  _(88, 44, 45, 46, 47, 48, 49, 50)         \
  _(96, 48, 49, 50, 51, 52, 53, 54)         \
  _(104, 52, 53, 54, 55, 56, 57, 58)        \
  _(112, 56, 57, 58, 59, 60, 61, 62)        \
  _(120, 60, 61, 62, 63, 64, 65, 66)        \
  _(128, 64, 65, 66, 67, 68, 69, 70)        \
  _(136, 68, 69, 70, 71, 72, 73, 74)        \
  _(144, 72, 73, 74, 75, 76, 77, 78)        \
  _(152, 76, 77, 78, 79, 80, 81, 82)        \
  _(160, 80, 81, 82, 83, 84, 85, 86)        \
  _(168, 84, 85, 86, 87, 88, 89, 90)        \
  _(176, 88, 89, 90, 91, 92, 93, 94)        \
  _(184, 92, 93, 94, 95, 96, 97, 98)        \
  _(192, 96, 97, 98, 99, 100, 101, 102)     \
  _(200, 100, 101, 102, 103, 104, 105, 106) \
  _(208, 104, 105, 106, 107, 108, 109, 110) \
  _(216, 108, 109, 110, 111, 112, 113, 114) \
  _(224, 112, 113, 114, 115, 116, 117, 118) \
  _(232, 116, 117, 118, 119, 120, 121, 122) \
  _(240, 120, 121, 122, 123, 124, 125, 126) \
  _(248, 124, 125, 126, 127, 128, 129, 130) \
  _(256, 128, 129, 130, 131, 132, 133, 134)

enum class Major { kK = 0, kMN = 1 };  // which index of an operand runs along rows of shared memory

// D (64 x kN) = A (64 x 16) B (16 x kN) [+ D]: of a warpgroup, both operands in shared memory, by descriptor.
// float: as tf32, of which 8 make the same 32 bytes of k; the low 13 bits are ignored.
template <int kN, class scalar_t, Major kAMajor = Major::kK, Major kBMajor = Major::kK>
FASTDL_DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  static_assert(sizeof(scalar_t) == 2 || (kAMajor == Major::kK && kBMajor == Major::kK));
#define FASTDL_CASE(n, h0, h1, h2, h3, h4, ...)             \
  if constexpr (kN == n) {                                  \
    if constexpr (std::is_same_v<scalar_t, bfloat16>) {     \
      FASTDL_WGMMA(n, "bf16.bf16", h0, h1, h2, h3, h4);     \
    } else if constexpr (std::is_same_v<scalar_t, float>) { \
      FASTDL_WGMMA_TF32(n, h0, h1, h2);                     \
    } else {                                                \
      FASTDL_WGMMA(n, "f16.f16", h0, h1, h2, h3, h4);       \
    }                                                       \
  }
  FASTDL_FOR_EACH_WIDTH(FASTDL_CASE)
#undef FASTDL_CASE
}

// The same with A in registers, laid out as for mma_m16n8k16 (warp w of the group holds rows 16 w on).
template <int kN, class scalar_t, Major kBMajor = Major::kK>
FASTDL_DEVICE void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256 && sizeof(scalar_t) == 2);
#define FASTDL_CASE(n, ...)                                \
  if constexpr (kN == n) {                                 \
    if constexpr (std::is_same_v<scalar_t, bfloat16>) {    \
      FASTDL_WGMMA_REGISTERS(n, "bf16.bf16", __VA_ARGS__); \
    } else {                                               \
      FASTDL_WGMMA_REGISTERS(n, "f16.f16", __VA_ARGS__);   \
    }                                                      \
  }
  FASTDL_FOR_EACH_WIDTH(FASTDL_CASE)
#undef FASTDL_CASE
}

}  // namespace fastdl::ptx
