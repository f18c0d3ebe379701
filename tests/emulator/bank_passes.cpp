// From what single lanes did to accesses of warps, and from those to passes.
#include <algorithm>
#include "banks.h"

namespace fastdl::emulator {
namespace {

constexpr uint32_t kWidest = 16, kWord = 4, kBanks = 32;

// The largest power of two, 16 at most, that divides every lane's address and the length.
uint32_t granule(const WarpAccess& access) {
  uint32_t bits = access.bytes | kWidest;
  for (int lane = 0; lane < 32; ++lane) {
    if (access.lanes >> lane & 1) bits |= access.offset[lane];
  }
  return bits & -bits;
}

// Whether every lane goes on right behind what it did, so that a compiler may make one access of both.
bool continues(const WarpAccess& access, const WarpAccess& next) {
  if (next.lanes != access.lanes || next.write != access.write) return false;
  for (int lane = 0; lane < 32; ++lane) {
    if ((access.lanes >> lane & 1) && next.offset[lane] != access.offset[lane] + access.bytes) return false;
  }
  return true;
}

std::vector<WarpAccess> grouped(const std::vector<Touch> (&lanes)[32]) {
  std::vector<WarpAccess> all;
  std::map<std::pair<uintptr_t, uint32_t>, size_t> known;  // by place and how often a lane has been there
  for (int lane = 0; lane < 32; ++lane) {
    std::map<uintptr_t, uint32_t> times;
    for (const Touch& touch : lanes[lane]) {
      const std::pair<uintptr_t, uint32_t> key(touch.place, times[touch.place]++);
      const auto found = known.try_emplace(key, all.size());
      if (found.second) all.push_back({touch.place, 0, touch.bytes, touch.write, {}});
      WarpAccess& access = all[found.first->second];
      access.lanes |= 1u << lane;
      access.offset[lane] = touch.offset;
      access.bytes = std::max(access.bytes, touch.bytes);
    }
  }
  return all;
}

}  // namespace

Passes passes_of(const WarpAccess& access) {
  Passes result{1, 0, 0};
  const uint32_t words_each = std::max(access.bytes / kWord, 1u), together = kBanks / words_each;
  for (uint32_t first = 0; first < 32; first += together) {
    uint32_t word[kBanks], count = 0, of_bank[kBanks] = {}, most = 0;
    for (uint32_t lane = first; lane < first + together; ++lane) {
      if (!(access.lanes >> lane & 1)) continue;
      for (uint32_t i = 0; i < words_each; ++i) word[count++] = access.offset[lane] / kWord + i;
    }
    std::sort(word, word + count);
    const uint32_t* const end = std::unique(word, word + count);
    for (const uint32_t* w = word; w < end; ++w) most = std::max(most, ++of_bank[*w % kBanks]);
    result.passes += most;
    result.least += count > 0;
  }
  return result;
}

std::vector<WarpAccess> warp_accesses(const std::vector<Touch> (&lanes)[32]) {
  std::vector<WarpAccess> result;
  const std::vector<WarpAccess> all = grouped(lanes);
  for (size_t i = 0; i < all.size();) {
    WarpAccess joined = all[i];
    size_t end = i + 1;
    WarpAccess longer = joined;
    for (size_t j = i + 1; j < all.size() && longer.bytes < kWidest && continues(longer, all[j]); ++j) {
      longer.bytes += all[j].bytes;
      if (longer.bytes <= kWidest && granule(longer) == longer.bytes) joined = longer, end = j + 1;
    }
    const uint32_t each = std::min(granule(joined), joined.bytes);
    for (uint32_t at = 0; at < joined.bytes; at += each) {
      WarpAccess piece = joined;
      piece.bytes = each;
      for (uint32_t& offset : piece.offset) offset += at;
      result.push_back(piece);
    }
    i = end;
  }
  return result;
}

}  // namespace fastdl::emulator
