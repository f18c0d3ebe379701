// Passes of shared memory: what its 32 banks of 4 bytes need for the accesses of a warp, against the least.
#pragma once
#include <vector>
#include "machine.h"

namespace fastdl::emulator {

struct Passes {
  uint64_t accesses = 0, passes = 0, least = 0;

  Passes& operator+=(const Passes& other) {
    accesses += other.accesses, passes += other.passes, least += other.least;
    return *this;
  }
};

// What one lane did to its block's shared memory.
struct Touch {
  uintptr_t place;  // in the program: an instruction's address, or a key of a Site
  uint32_t offset, bytes;
  bool write;
};

// The same access by lanes of a warp.
struct WarpAccess {
  uintptr_t place;
  uint32_t lanes, bytes;
  bool write;
  uint32_t offset[32];
};

// Of one access of `bytes` (1, 2, 4, 8 or 16) a lane, aligned to them: a pass serves 32 lanes of 4 bytes or
// less, 16 of 8 or 8 of 16, each bank with one word, which any number of lanes may share.
Passes passes_of(const WarpAccess& access);

// Puts what the lanes did one by one together: n-th by n-th of a place, in the first lane's order, neighbours
// joined to as much as 16 bytes, longer ones cut to them.
std::vector<WarpAccess> warp_accesses(const std::vector<Touch> (&lanes)[32]);

}  // namespace fastdl::emulator
