// Shared memory's passes as tests read them, by plain C functions. In the race flavour alone, which sees
// ordinary loads and stores.
#include "banks.h"
#include <algorithm>
#include "race.h"

namespace fastdl::emulator {
namespace {

struct CountedKernel {
  Passes total;
  std::map<uintptr_t, Passes> places;
};
struct WarpTrace {
  std::vector<Touch> lanes[32];
  uint32_t arrived = 0;  // at the warp's next meeting
};
struct BankState {
  std::map<std::string, CountedKernel> kernels;
  std::map<uintptr_t, Site> sites;
  std::vector<WarpTrace> warps;
  std::string text;  // of the last answer
};
BankState& banks_state() {
  static BankState& one = *new BankState;
  return one;
}

WarpTrace& trace_of(const Fiber* fiber) {
  return banks_state().warps[size_t(fiber->warp - group->warps.data())];
}

// Above every address that an instruction has.
uintptr_t key_of(Site site) {
  const uintptr_t key = uintptr_t(site.file) << 16 | uintptr_t(site.line);
  banks_state().sites[key] = site;
  return key;
}

uint32_t offset_of(const Fiber* fiber, const void* pointer) {
  return uint32_t(std::min(uintptr_t(pointer) - uintptr_t(fiber->block->window), uintptr_t(kWindowBytes)));
}

void count(uintptr_t place, const Passes& passes) {
  CountedKernel& kernel = banks_state().kernels[group->launch->name];
  kernel.total += passes;
  kernel.places[place] += passes;
}

void flush(WarpTrace& trace) {
  for (const WarpAccess& access : warp_accesses(trace.lanes)) count(access.place, passes_of(access));
  for (std::vector<Touch>& touches : trace.lanes) touches.clear();
  trace.arrived = 0;
}

// Hooks -------------------------------------------------------------------------------------------
void begin_group() {
  std::vector<WarpTrace>& warps = banks_state().warps;
  if (warps.size() < group->warps.size()) warps.resize(group->warps.size());
  for (WarpTrace& trace : warps) {
    for (std::vector<Touch>& touches : trace.lanes) touches.clear();
    trace.arrived = 0;
  }
}

void touch(const Fiber* fiber, const void* pointer, size_t bytes, bool write, uintptr_t place, Site site) {
  const uint32_t offset = offset_of(fiber, pointer);
  if (offset == kWindowBytes) return;  // global memory, or another block's
  trace_of(fiber).lanes[fiber->lane].push_back(
      {site.file ? key_of(site) : place, offset, uint32_t(bytes), write});
}

// A pass for each matrix whose rows lie in different banks.
void matrices(uint16_t* const (*rows)[8], int number, bool write, Site site) {
  Passes all{1, 0, 0};
  for (int m = 0; m < number; ++m) {
    WarpAccess access{0, 0xFF, 16, write, {}};
    for (int r = 0; r < 8; ++r) access.offset[r] = offset_of(current, rows[m][r]);
    const Passes passes = passes_of(access);
    all.passes += passes.passes, all.least += passes.least;
  }
  count(key_of(site), all);
}

void meet(const Fiber* fiber) {
  WarpTrace& trace = trace_of(fiber);
  const Warp& warp = *fiber->warp;
  trace.arrived |= 1u << fiber->lane;
  if ((trace.arrived | warp.exited) == warp.existing) flush(trace);
}

void leave(const Fiber* fiber) {
  const Warp& warp = *fiber->warp;
  WarpTrace& trace = trace_of(fiber);
  if ((trace.arrived | warp.exited) == warp.existing) flush(trace);
}

BankCounter counter{begin_group, touch, matrices, meet, leave};

std::string text_of(uintptr_t place) {
  const auto site = banks_state().sites.find(place);
  if (site == banks_state().sites.end()) return source_line(uint32_t(place - library_base()));
  const std::string file = site->second.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site->second.line);
}

}  // namespace
}  // namespace fastdl::emulator

extern "C" {
using namespace fastdl::emulator;

// Counts from zero, or no longer. Meanwhile races are not looked for.
void fastdl_emulator_count_banks(int on) {
  banks = on ? &counter : nullptr;
  if (on) banks_state().kernels.clear();
}
// Sums of all kernels whose name contains `part`; an empty part means all.
void fastdl_emulator_banks(const char* part, uint64_t* accesses, uint64_t* passes, uint64_t* least) {
  Passes total;
  for (const auto& [name, kernel] : banks_state().kernels) {
    if (name.find(part) != std::string::npos) total += kernel.total;
  }
  *accesses = total.accesses, *passes = total.passes, *least = total.least;
}
// Where conflicts are, "FILE:LINE PASSES LEAST" a line, the worst first; valid until the next call.
const char* fastdl_emulator_bank_places(const char* part) {
  std::map<std::string, Passes> by_line;
  for (const auto& [name, kernel] : banks_state().kernels) {
    if (name.find(part) == std::string::npos) continue;
    for (const auto& [place, passes] : kernel.places) {
      if (passes.passes > passes.least) by_line[text_of(place)] += passes;
    }
  }
  std::vector<std::pair<std::string, Passes>> places(by_line.begin(), by_line.end());
  std::stable_sort(places.begin(), places.end(), [](const auto& a, const auto& b) {
    return a.second.passes - a.second.least > b.second.passes - b.second.least;
  });
  std::string& text = banks_state().text;
  text.clear();
  for (const auto& [line, passes] : places) {
    text += line + " " + std::to_string(passes.passes) + " " + std::to_string(passes.least) + "\n";
  }
  return text.c_str();
}
}
