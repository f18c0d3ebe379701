// Operands of mma.sync: from global memory to swizzled shared memory, and from there to registers.
#pragma once
#include "gemm/schedule.h"
#include "ptx.cuh"
#include "vector.cuh"

namespace fastdl::gemm {

template <class scalar_t>
struct MmaMath {  // bfloat16, half
  static constexpr int kK = 16;
  static constexpr uint32_t kOne = std::is_same_v<scalar_t, half> ? 0x3C003C00u : 0x3F803F80u;
  FASTDL_DEVICE static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16<scalar_t>(sum, a, b);
  }
};

template <>
struct MmaMath<float> {
  static constexpr int kK = 8;
  static constexpr uint32_t kOne = 0x3F800000u;
  FASTDL_DEVICE static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k8_tf32(sum, a, b);
  }
};

// One operand's tiles of kLines x kDepth; `line` counts a's rows or b's columns. In shared memory, rows along
// the dimension of stride 1 (k where kDeep), in chunks of 16 bytes whose order is permuted so that the 8 rows
// of an ldmatrix lie in different banks.
template <class scalar_t, int kLines, int kDepth, int kThreads, bool kDeep>
struct MmaOperand {
  static constexpr int kChunk = 16 / int(sizeof(scalar_t)), kInner = kDeep ? kDepth : kLines,
                       kOuter = kDeep ? kLines : kDepth;
  static constexpr int kPitch = kInner * int(sizeof(scalar_t)), kBytes = kOuter * kPitch,
                       kAcross = kInner / kChunk;
  static constexpr int kRowsAtOnce = kThreads / kAcross, kCopies = kOuter / kRowsAtOnce;
  static constexpr bool kWords =
      sizeof(scalar_t) == 4 && !kDeep;  // read as words: ldmatrix moves 16-bit columns
  static_assert(kThreads % kAcross == 0 && kOuter % kRowsAtOnce == 0);

  const scalar_t* from;  // this thread's first chunk
  int granule;           // bytes that are aligned together
  int outer, inner;      // of that chunk, in the tile
  int lines;             // how many there are from the tile's first on
  int depth;             // how much of k is left

  FASTDL_DEVICE static uint32_t offset(int row, int chunk) {
    constexpr int kPerLine = kPitch < 128 ? 128 / kPitch : 1, kMask = kAcross < 8 ? kAcross - 1 : 7;
    const int turn = kWords ? row % 4 * 2 : row / kPerLine & kMask;
    return uint32_t(row * kPitch + ((chunk ^ turn) << 4));
  }

  FASTDL_DEVICE MmaOperand(const Matrix& operand, int64_t batch, int64_t first_line, int64_t all_lines,
                           const KRange& range) {
    outer = int(threadIdx.x) / kAcross, inner = int(threadIdx.x) % kAcross * kChunk;
    const int64_t left = all_lines - first_line;
    lines = left < kLines ? int(left) : kLines;
    depth = int(range.end - range.begin);
    const int line = kDeep ? outer : inner, deep = kDeep ? inner : outer;
    const scalar_t* base = static_cast<const scalar_t*>(operand.data) + batch * operand.batch +
                           first_line * operand.row + range.begin * operand.column;
    from = base + line * operand.row + deep * operand.column;
    const uint64_t bits =
        reinterpret_cast<uintptr_t>(base) | uint64_t(kDeep ? operand.row : operand.column) * sizeof(scalar_t);
    granule = bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 2;
  }

  // Sends the next step's tile on its way, zero where the operand ends.
  FASTDL_DEVICE void load_next(const Matrix& operand, unsigned char* stage) {
    const int inner_end = kDeep ? depth : lines, outer_end = kDeep ? lines : depth;
    const int64_t pitch = kDeep ? operand.row : operand.column;
    const int wide = inner_end - inner < kChunk ? inner_end - inner : kChunk;
    // An aligned address to name where nothing is read.
    const void* nowhere =
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(operand.data) & ~uintptr_t(15));
    FASTDL_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      const int row = outer + i * kRowsAtOnce;
      copy(stage + offset(row, inner / kChunk), from + i * kRowsAtOnce * pitch,
           row < outer_end && wide > 0 ? wide : 0, nowhere);
    }
    from += kDepth * operand.column, depth -= kDepth;
  }

  // `count` elements of a chunk, the rest zero.
  FASTDL_DEVICE void copy(unsigned char* to, const scalar_t* source, int count, const void* nowhere) const {
    const uint32_t address = ptx::shared_address(to);
    const int bytes = count * int(sizeof(scalar_t));
    if (granule == 16) {
      ptx::copy_async<16>(address, count > 0 ? source : nowhere, bytes);
    } else if (granule >= 4) {
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int have = bytes - 4 * i;
        const void* word = reinterpret_cast<const char*>(source) + 4 * i;
        // In a 4-aligned layout of 2-byte elements an odd count ends within a word.
        ptx::copy_async<4>(address + 4 * i, have > 0 ? word : nowhere, have <= 0 ? 0 : have < 4 ? have : 4);
      }
    } else {
      Vector<scalar_t, kChunk> chunk;
      FASTDL_UNROLL
      for (int i = 0; i < kChunk; ++i) chunk[i] = i < count ? load(source + i) : convert<scalar_t>(0.f);
      *reinterpret_cast<Vector<scalar_t, kChunk>*>(to) = chunk;
    }
  }

  // Matrix i = lane / 8 of 8 lines x 16 bytes of k: which lines, which k (in chunks) is the caller's choice.
  FASTDL_DEVICE static void read(uint32_t (&r)[4], const unsigned char* stage, int line, int k,
                                 int line_block, int k_block) {
    const int within = int(threadIdx.x) % 8;
    const int outer = kDeep ? line + 8 * line_block + within : k + 8 * k_block + within;
    const int chunk = kDeep ? k / kChunk + k_block : line / kChunk + line_block;
    ptx::ldmatrix<4, !kDeep>(r, ptx::shared_address(stage + offset(outer, chunk)));
  }
  // One float of a tile that lies along lines.
  FASTDL_DEVICE static uint32_t word(const unsigned char* stage, int line, int k) {
    return *reinterpret_cast<const uint32_t*>(stage + offset(k, line / 4) + line % 4 * 4);
  }

  // 16 lines as the left fragment of a multiplication.
  FASTDL_DEVICE static void read_left(uint32_t (&r)[4], const unsigned char* stage, int line, int k) {
    const int lane = int(threadIdx.x) % 32, matrix = lane / 8;
    if constexpr (kWords) {
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = word(stage, line + i % 2 * 8 + lane / 4, k + i / 2 * 4 + lane % 4);
    } else {
      read(r, stage, line, k, matrix % 2, matrix / 2);
    }
    round(r);
  }

  // Twice 8 lines as right fragments.
  FASTDL_DEVICE static void read_right(uint32_t (&first)[2], uint32_t (&second)[2],
                                       const unsigned char* stage, int line, int k) {
    const int lane = int(threadIdx.x) % 32, matrix = lane / 8;
    uint32_t r[4];
    if constexpr (kWords) {
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = word(stage, line + i / 2 * 8 + lane / 4, k + i % 2 * 4 + lane % 4);
    } else {
      read(r, stage, line, k, matrix / 2, matrix % 2);
    }
    round(r);
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  }

  // To tf32, nearest: the instruction alone would cut.
  FASTDL_DEVICE static void round(uint32_t (&r)[4]) {
    if constexpr (sizeof(scalar_t) == 4) {
      FASTDL_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = ptx::round_to_tf32(__uint_as_float(r[i]));
    }
  }
};

}  // namespace fastdl::gemm
