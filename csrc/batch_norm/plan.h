// How blocks share a tensor: pure functions of sizes and device. The unit is a vector of 16 bytes. Contiguous
// (N, C, S): a row of a channel, S elements, is cut at multiples of eight elements of the tensor, so that its
// first and last vectors may belong to a neighbour in part. Channels last and (N, C): a row, C elements, is
// cut into slices of up to 128 bytes, a pack of channels each.
#pragma once
#include <algorithm>
#include <cstdint>

#include "batch_norm/problem.h"
#include "divisor.cuh"

namespace fastdl::batch_norm {

constexpr int kThreads = 256;  // of a block, at most
constexpr int kMaxPack = 8;

// In the order of preference. A team of blocks takes a pack of channels at a time; what is read stays in its
// shared memory until it is written: one read.
enum class Regime : int32_t {
  kApply,    // nothing to reduce: one pass
  kBlock,    // a team is a block
  kCluster,  // a team is a cluster, merging through distributed shared memory
  kGroup,    // teams of a cooperative launch, merging through global memory; several channels in flight
  kStream,   // nothing stays: sums first, then apply from the end, where the caches still hold the data
};

struct Plan {
  Regime regime;
  bool rows;  // channels last
  int32_t threads;
  int32_t pack;              // neighbouring channels that a team takes together
  int32_t team;              // blocks of a team; kApply and kStream: of a pack
  int64_t packs, teams;      // all there are, and those in flight
  uint32_t vectors;          // of a row of a pack, at most
  uint32_t channel_vectors;  // of a row of a channel, at most
  int64_t slots;             // vectors of a pack
  int32_t share;             // vectors of a block; channels last, of a multiple of eight rows
  int64_t shared_bytes;
  Divisor positions;  // of an image
  FASTDL_HOST_DEVICE int64_t blocks() const { return team * teams; }
  FASTDL_HOST_DEVICE int64_t totals() const { return rows ? pack : 1; }  // that a block reduces at a time
};

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // of a block that has a multiprocessor to itself; 0: nothing may stay in it
  bool clusters;
};

namespace plan_detail {

// Shared memory that kernels declare; that CUDA keeps.
constexpr int64_t kStatic = 1024, kRowStatic = 14 << 10, kReserved = 1024;
constexpr int64_t kSmallRow = 256, kCacheLine = 128, kWaveBytes = 8 << 10;
constexpr int kMaxCluster = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors of a row of `length` elements.
inline int64_t vectors_of(const Sizes& size, int64_t length, int64_t vector) {
  const bool exact = length % kOctet == 0 && (size.n == 1 || size.c * size.s % kOctet == 0);
  const int64_t octets = exact ? length / kOctet : (length + 2 * kOctet - 2) / kOctet;
  return std::max<int64_t>(octets, 1) * (kOctet / vector);
}

inline void set_pack(Plan& p, const Sizes& size, int64_t vector, int pack) {
  p.pack = pack, p.packs = ceil_div(size.c, pack);
  p.vectors = uint32_t(vectors_of(size, size.s * pack, vector));
  p.channel_vectors = uint32_t(vectors_of(size, size.s, vector));
  if (pack > 1 && size.s % kOctet) {  // a channel may begin anywhere in an octet of the pack
    p.channel_vectors = uint32_t((size.s + 2 * kOctet - 2) / kOctet * (kOctet / vector));
  }
  p.slots = size.n * p.vectors;
}

// Completes a plan of packs. `grain`: vectors that stay together; `slot_bytes` that a vector takes in shared
// memory; `shares`: several blocks may take a pack.
inline Plan choose_regime(Plan p, int64_t grain, int64_t slot_bytes, bool shares, bool reduces,
                          const DeviceLimits& device) {
  const int64_t fixed = p.rows ? kRowStatic : kStatic, enough = 2 * device.multiprocessors;
  const int64_t full = std::max<int64_t>(0, device.shared_bytes - fixed);
  const int64_t half = std::max<int64_t>(0, (device.shared_bytes + kReserved) / 2 - fixed - kReserved);
  const auto in_teams = [&](Regime regime, int64_t team, int64_t teams) {
    p.regime = regime, p.team = int32_t(team), p.teams = teams;
    p.share = int32_t(ceil_div(ceil_div(p.slots, grain), team) * grain);
    const bool resident = regime != Regime::kApply && regime != Regime::kStream;
    p.shared_bytes = resident ? p.share * slot_bytes : 0;
    return p;
  };
  const auto slices = [&](int64_t least) {  // blocks of a pack that streams
    const int64_t wanted = ceil_div(8 * device.multiprocessors, p.packs);
    return std::clamp<int64_t>(p.slots / least, 1, std::max<int64_t>(wanted, p.slots / (64 * kThreads)));
  };
  if (!reduces) return in_teams(Regime::kApply, slices(4 * kThreads), p.packs);
  const int64_t bytes = p.slots * slot_bytes;
  // One block a pack leaves multiprocessors idle where packs are few and long.
  int64_t team = 1;
  if (device.clusters && shares) {
    while (team < kMaxCluster &&
           (bytes > half * team || (p.packs * team < enough && bytes / (2 * team) >= kWaveBytes))) {
      team *= 2;
    }
  }
  const int64_t block_limit = device.clusters ? half : full;
  if (team == 1 && ceil_div(p.slots, grain) * grain * slot_bytes <= block_limit) {
    while (shares && p.threads > 64 && p.slots < 2 * p.threads) p.threads /= 2;
    return in_teams(Regime::kBlock, 1, p.packs);
  }
  const bool few = p.packs * team < device.multiprocessors / 4 && bytes > 128 * kWaveBytes;
  if (team > 1 && bytes <= full * team && !few) {
    const Plan cluster = in_teams(Regime::kCluster, team, p.packs);
    if (cluster.shared_bytes <= full) return cluster;
  }
  if (half > 0) {
    for (int64_t teams = std::min({enough * half / bytes, p.packs, enough}); teams > 0; --teams) {
      const int64_t even = ceil_div(p.packs, ceil_div(p.packs, teams));  // as many rounds, all of them full
      const Plan group = in_teams(Regime::kGroup, enough / even, even);
      if (group.shared_bytes <= half) return group;
    }
  }
  return in_teams(Regime::kStream, slices(4 * kThreads), p.packs);
}

}  // namespace plan_detail

// Whether the kernels' 32 bits hold an image's number and a vector's in its row.
inline bool plan_fits(const Sizes& size, int element_bytes) {
  return size.channels_last ||
         (size.n <= UINT32_MAX && plan_detail::vectors_of(size, size.s, 16 / element_bytes) <= UINT32_MAX);
}

// Contiguous. `operands` stay in shared memory: input, and backward grad_output too. `reduces`: there are
// statistics to take. `packs`: rows of neighbouring channels follow each other in every operand.
inline Plan plan_channels(const Sizes& size, int element_bytes, int operands, bool reduces, bool packs,
                          const DeviceLimits& device) {
  using namespace plan_detail;
  const int64_t vector = 16 / element_bytes, slot_bytes = 16 * operands;
  const int64_t half = (device.shared_bytes + kReserved) / 2 - kStatic - kReserved;
  Plan p{};
  p.threads = kThreads;
  set_pack(p, size, vector, 1);
  // Short rows, whose vectors would straddle channels or leave cache lines half used, are taken several at a
  // time, while blocks suffice.
  if (packs && size.s >= kOctet && size.s < kSmallRow &&
      (size.s % kOctet || size.s * element_bytes < kCacheLine)) {
    for (int pack = kMaxPack; pack > 1; pack /= 2) {
      Plan q = p;
      set_pack(q, size, vector, pack);
      if (q.packs < device.multiprocessors || (reduces && q.slots * slot_bytes > half)) continue;
      p = q;
      break;
    }
  }
  return choose_regime(p, kOctet / vector, slot_bytes, p.pack == 1, reduces, device);
}

// Channels last and (N, C), as above.
inline Plan plan_rows(const Sizes& size, int element_bytes, int operands, bool reduces,
                      const DeviceLimits& device) {
  using namespace plan_detail;
  const int64_t vector = 16 / element_bytes, rows = size.n * size.s;
  Plan p{};
  p.rows = true, p.threads = kThreads, p.positions = Divisor(size.s);
  const auto padded = [&](int64_t lanes) { return ceil_div(size.c, lanes * vector) * lanes * vector; };
  int64_t lanes = kCacheLine / 16;
  if (padded(lanes) * 8 > padded(lanes / 2) * 9) lanes /= 2;  // 96 channels: three slices of 32
  while (lanes * vector > kOctet && lanes * vector / 2 >= size.c) lanes /= 2;
  // Without clusters more slices make more blocks, as long as a slice fills sectors of 32 bytes.
  while (reduces && !device.clusters && lanes * vector > kOctet && lanes > 2 &&
         ceil_div(size.c, lanes * vector) < device.multiprocessors) {
    lanes /= 2;
  }
  const auto of_lanes = [&](int64_t count) {
    p.pack = int32_t(count * vector), p.packs = ceil_div(size.c, p.pack);
    p.vectors = p.channel_vectors = uint32_t(count), p.slots = rows * count;
    return choose_regime(p, kOctet * count, 16 * operands, true, reduces, device);
  };
  const Plan wide = of_lanes(lanes);
  // Half as wide, a slice may fit where a whole one must stream, and in groups fewer blocks wait for each
  // other; 64 bytes are what memory gives at a time.
  const bool large = wide.regime == Regime::kStream || (wide.regime == Regime::kGroup && wide.teams < 4);
  if (large && lanes == kCacheLine / 16) {
    const Plan narrow = of_lanes(lanes / 2);
    if (narrow.regime != Regime::kStream) return narrow;
  }
  return wide;
}

}  // namespace fastdl::batch_norm
