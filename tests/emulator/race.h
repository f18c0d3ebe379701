// The race checker's state: vector clocks, and the last accesses of every byte.
#pragma once
#include <algorithm>
#include <memory>
#include <unordered_map>
#include "machine.h"

namespace fastdl::emulator {

using Epochs = std::vector<uint32_t>;
// What is known of threads of other groups (blocks that ran earlier), by the number of their run.
using Foreign = std::map<uint32_t, std::shared_ptr<const Epochs>>;

struct Clock {
  Epochs own;
  std::shared_ptr<const Foreign> foreign;
};
struct Snapshot {
  Clock clock;
  uint32_t slot;
};

constexpr uint32_t kAsyncSlots = 64;  // asynchronous copies take turns as pseudo-threads behind the real ones
constexpr uint32_t kMaxThreads = 4096;  // of a group; above, the clocks would not fit in memory
constexpr size_t kMaxReaders = 1024, kRecentAtomics = 8;

struct Access {
  uint32_t run = 0, epoch = 0, program_counter = 0;
  uint16_t thread = 0;
};
enum Flag : uint8_t {
  kInitialised = 1,
  kByAtomic = 2,
  kByAsync = 4,
  kManyReaders = 8,
  kWritten = 16,
  kRead = 32
};
struct Byte {  // the last write and the reads since, of one byte of memory
  Access write, read;
  uint8_t flags = 0;
  uint32_t readers = 0;  // index into State::reader_sets with kManyReaders
};
struct Thread {
  Clock clock, released;  // released: what its last fence published
  bool has_released = false;
  uint32_t proxy_fence = 0;
  std::vector<const void*> atomics;  // since its last fence
};
struct Page {
  Byte bytes[256];
};

struct State {
  bool on = false;
  uint32_t run = 0, thread_count = 0, clock_size = 0, next_slot = 0;
  std::vector<Thread> threads;
  std::vector<uint32_t> slot_epochs;
  std::vector<std::unique_ptr<Snapshot>> snapshots;
  std::vector<std::unique_ptr<Clock>> clocks;
  std::vector<std::vector<Byte>> shared;  // by block of the group
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> global;
  std::vector<std::vector<Access>> reader_sets;
  std::unordered_map<const void*, Clock> atomics;
  uintptr_t last_page_number = ~uintptr_t(0);
  Page* last_page = nullptr;
};
extern State& state;

// Clocks ------------------------------------------------------------------------------------------
inline void join_foreign(Clock& to, const Clock& from) {
  if (!from.foreign || from.foreign == to.foreign) return;
  if (!to.foreign) {
    to.foreign = from.foreign;
    return;
  }
  auto joined = std::make_shared<Foreign>(*to.foreign);
  for (const auto& [run, epochs] : *from.foreign) {
    std::shared_ptr<const Epochs>& known = (*joined)[run];
    if (!known) {
      known = epochs;
    } else if (known != epochs) {
      auto later = std::make_shared<Epochs>(*known);
      for (size_t i = 0; i < later->size(); ++i) (*later)[i] = std::max((*later)[i], (*epochs)[i]);
      known = later;
    }
  }
  to.foreign = joined;
}

inline void join(Clock& to, const Clock& from) {
  if (to.own.size() < from.own.size()) to.own.resize(from.own.size());
  for (size_t i = 0; i < from.own.size(); ++i) to.own[i] = std::max(to.own[i], from.own[i]);
  join_foreign(to, from);
}

inline bool ordered(const Access& earlier, const Clock& clock) {
  if (earlier.run == state.run) return clock.own[earlier.thread] >= earlier.epoch;
  if (!clock.foreign) return false;
  const auto known = clock.foreign->find(earlier.run);
  return known != clock.foreign->end() && (*known->second)[earlier.thread] >= earlier.epoch;
}

inline Thread& thread_of(const Fiber* fiber) { return state.threads[fiber->global]; }
inline void advance(const Fiber* fiber) { ++thread_of(fiber).clock.own[fiber->global]; }

// race_report.cpp
uintptr_t library_base();
std::string source_line(uint32_t program_counter);  // FILE:LINE of an instruction of the library
// Ends the launch with a report of an access, and of the earlier one that it is not ordered after (or null).
[[noreturn]] void report(const char* kind, const unsigned char* pointer, const Access* earlier,
                         bool earlier_write, const Access& now, bool write, Site site);

}  // namespace fastdl::emulator
