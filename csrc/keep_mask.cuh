// Dropout's decisions inside a kernel: those of keep_element (philox.cuh), several elements a Philox call.
#pragma once
#include "divisor.cuh"
#include "philox.cuh"
#include "vector.cuh"

namespace fastdl {

// Bit j: whether element index + j survives; kCount is 2, 4 or 8 and divides index.
template <int kCount>
FASTDL_DEVICE uint32_t keep_bits(uint64_t seed, uint64_t index, const KeepRule& rule) {
  if (rule.none) return 0;
  uint32_t bits = 0;
  if (!rule.wide) {
    const Philox4 r = philox(seed, index / 8);
    FASTDL_UNROLL
    for (int j = 0; j < 8; ++j) bits |= uint32_t(keep_in_word8(r, j, rule.threshold)) << j;
    return bits >> (index % 8);
  }
  FASTDL_UNROLL
  for (int from = 0; from < kCount; from += 4) {
    const Philox4 r = philox(seed, (index + unsigned(from)) / 4, kWideStream);
    FASTDL_UNROLL
    for (int j = 0; j < 4; ++j) bits |= uint32_t(r.word[j] >= rule.threshold) << (from + j);
  }
  return kCount < 4 ? bits >> (index % 4) : bits;
}

// An element is kept where its random bits are >= threshold. Both have 32 bits: 16-bit decisions stand in the
// upper half, and whatever is below does not change them.
struct KeepMask {
  enum class Draw : int32_t { kNothing, kHalves, kWords };
  const int64_t* seed;  // on the device: a replayed graph reads what is there by then
  uint32_t threshold;
  Draw draw;
  Divisor group;  // consecutive elements that share a decision

  static KeepMask of(const int64_t* seed, double p, int64_t group) {
    const KeepRule rule = KeepRule::of(p);
    const Divisor elements(group);
    if (rule.none) return {seed, 1, Draw::kNothing, elements};  // no bits: 0 < 1
    if (rule.threshold == 0) return {seed, 0, Draw::kNothing, elements};
    if (rule.wide) return {seed, rule.threshold, Draw::kWords, elements};
    return {seed, rule.threshold << 16, Draw::kHalves, elements};
  }
};

// The mask once a thread has read the seed.
class MaskReader {
 public:
  FASTDL_DEVICE explicit MaskReader(const KeepMask& mask)
      : mask_(mask), seed_(mask.draw == KeepMask::Draw::kNothing ? 0 : uint64_t(load(mask.seed))) {}

  FASTDL_DEVICE bool keeps(uint32_t bits) const { return bits >= mask_.threshold; }

  // bits[u][j]: those of element index + u * stride + j; kCount is 2, 4 or 8 and divides index and stride.
  template <int kUnits, int kCount>
  FASTDL_DEVICE void read(int64_t index, int64_t stride, uint32_t (&bits)[kUnits][kCount]) const {
    const auto each_unit = [&](auto f) {
      FASTDL_UNROLL
      for (int u = 0; u < kUnits; ++u) f(index + u * stride, bits[u]);
    };
    if (mask_.draw == KeepMask::Draw::kNothing) {
      each_unit([](int64_t, auto& unit) {
        FASTDL_UNROLL
        for (uint32_t& b : unit) b = 0;
      });
    } else if (mask_.group.value > 1) {
      each_unit([&](int64_t i, auto& unit) { read_groups(i, unit); });
    } else if (mask_.draw == KeepMask::Draw::kHalves) {
      each_unit([&](int64_t i, auto& unit) { read_halves(i, unit); });
    } else {
      each_unit([&](int64_t i, auto& unit) { read_words(i, unit); });
    }
  }

  // Eight decisions, bit j that of element index + j; 8 divides index.
  FASTDL_DEVICE uint32_t octet(int64_t index) const {
    uint32_t bits[1][8], kept = 0;
    read(index, 0, bits);
    FASTDL_UNROLL
    for (int j = 0; j < 8; ++j) kept |= keeps(bits[0][j]) ? 1u << j : 0u;
    return kept;
  }

 private:
  template <int kCount>
  FASTDL_DEVICE void read_halves(int64_t index, uint32_t (&bits)[kCount]) const {
    Philox4 r = philox(seed_, uint64_t(index) / 8);
    if (kCount <= 4 && index & 4) r.word[0] = r.word[2], r.word[1] = r.word[3];
    if (kCount <= 2 && index & 2) r.word[0] = r.word[1];
    FASTDL_UNROLL
    for (int j = 0; j < kCount; ++j) bits[j] = j % 2 ? r.word[j / 2] : r.word[j / 2] << 16;
  }

  template <int kCount>
  FASTDL_DEVICE void read_words(int64_t index, uint32_t (&bits)[kCount]) const {
    FASTDL_UNROLL
    for (int j = 0; j < kCount; j += 4) {
      Philox4 r = philox(seed_, uint64_t(index + j) / 4, kWideStream);
      if (kCount == 2 && index & 2) r.word[0] = r.word[2], r.word[1] = r.word[3];
      FASTDL_UNROLL
      for (int i = 0; i < 4 && i < kCount; ++i) bits[j + i] = r.word[i];
    }
  }

  template <int kCount>
  FASTDL_DEVICE void read_groups(int64_t index, uint32_t (&bits)[kCount]) const {
    int64_t group = mask_.group.quotient(index);
    for (int64_t begin = 0; begin < kCount; ++group) {  // as many turns as groups reach into these elements
      const uint32_t shared = bits_of_one(group);
      FASTDL_UNROLL
      for (int j = 0; j < kCount; ++j) bits[j] = j >= begin ? shared : bits[j];
      begin = (group + 1) * mask_.group.value - index;
    }
  }

  FASTDL_DEVICE uint32_t bits_of_one(int64_t index) const {
    const bool wide = mask_.draw == KeepMask::Draw::kWords;
    const Philox4 r = philox(seed_, uint64_t(index) / (wide ? 4 : 8), wide ? kWideStream : 0);
    const int64_t word = wide ? index : index / 2;
    const uint32_t low = word & 1 ? r.word[1] : r.word[0], high = word & 1 ? r.word[3] : r.word[2];
    const uint32_t bits = word & 2 ? high : low;
    return wide || index & 1 ? bits : bits << 16;
  }

  const KeepMask& mask_;  // in the kernel's parameters
  uint64_t seed_;
};

}  // namespace fastdl
