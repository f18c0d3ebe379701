// Which thread runs next, and what is said when none can.
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include "machine.h"

namespace fastdl::emulator {

__thread Fiber* current;
__thread dim3 current_block_dim, current_grid_dim;
__thread Group* group;
RaceChecker* race = nullptr;
BankCounter* banks = nullptr;

uint32_t Group::random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return uint32_t(random_state >> 11);
}

void wake(Fiber* fiber, bool front) {
  fiber->wait = Wait::kReady;
  group->polls = 0;
  if (front) {
    group->ready.push_front(fiber);
  } else {
    group->ready.push_back(fiber);
  }
}

bool late() {
  const Completion when = settings().completion;
  return when == Completion::kLazy || (when == Completion::kRandom && (group->random() & 1));
}

void fail_text(const std::string& text) {
  if (!group || !current) throw std::runtime_error("kernel: " + text);
  const uint3 b = current->block_index, t = current->thread_index;
  char place[128];
  snprintf(place, sizeof place, ": block (%u,%u,%u) thread (%u,%u,%u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  group->error = group->launch->name + place + text;
  group->failed = true;
  switch_to_root();  // exceptions do not cross stacks
  __builtin_unreachable();
}

void fail(Site site, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail_text((site.file ? std::string(site.file) + ":" + std::to_string(site.line) + ": " : "") + text);
}

void fail_block(const Block& block, const std::string& text) {
  char place[96];
  snprintf(place, sizeof place, ": block (%u,%u,%u): ", block.index.x, block.index.y, block.index.z);
  group->failed = true;
  group->error = group->launch->name + place + text;
}

static std::string describe(const Fiber& fiber) {
  static const char* const kNames[] = {
      "not started", "ready",        "barrier",         "warp collective", "warpgroup collective",
      "mbarrier",    "grid barrier", "cluster barrier", "spinning",        "exited"};
  if (fiber.wait == Wait::kDone) return "exited";
  char text[512];
  const char* file = fiber.site.file ? fiber.site.file : "?";
  if (fiber.wait == Wait::kMbarrier) {
    snprintf(text, sizeof text, "mbarrier shared+0x%x parity %u, %s:%d", fiber.wait_argument,
             fiber.wait_parity, file, fiber.site.line);
  } else {
    snprintf(text, sizeof text, "%s, %s:%d", kNames[int(fiber.wait)], file, fiber.site.line);
  }
  return text;
}

static std::string describe_all() {
  std::map<std::string, std::vector<unsigned>> places;
  for (unsigned i = 0; i < group->fiber_count(); ++i) places[describe(group->fibers[i])].push_back(i);
  std::string text;
  for (const auto& [place, threads] : places) {
    text += "\n    " + std::to_string(threads.size()) + " thread(s), first " +
            std::to_string(threads.front()) + ", last " + std::to_string(threads.back()) + ": " + place;
  }
  for (unsigned i = 0; i < group->block_count && i < 4; ++i) text += describe_mbarriers(group->blocks[i]);
  return text;
}

Fiber* pick() {
  for (;;) {
    std::deque<Fiber*>& ready = group->ready;
    if (!ready.empty()) {
      if (settings().order == Order::kRandom && ready.size() > 1) {
        std::swap(ready.front(), ready[group->random() % ready.size()]);
      }
      Fiber* fiber = ready.front();
      ready.pop_front();
      return fiber;
    }
    if (!complete_one_load()) fail_text("DEADLOCK: no thread can run" + describe_all());
  }
}

void block_here(Wait wait, Site site, uint32_t argument, uint32_t parity) {
  Fiber* self = current;
  self->wait = wait;
  self->site = site;
  self->wait_argument = argument;
  self->wait_parity = parity;
  Fiber* next = pick();
  if (next != self) switch_to(next);
}

void yield(Site site) {
  // Every wake resets the count: this many polls without one mean that nobody will ever write.
  if (++group->polls > 2000ull * group->live + 100000)
    fail_text("LIVELOCK: every thread spins" + describe_all());
  if (group->polls > group->live) complete_one_load();
  Fiber* self = current;
  self->wait = Wait::kPoll;
  self->site = site;
  group->ready.push_back(self);
  Fiber* next = pick();
  if (next != self) switch_to(next);
  self->wait = Wait::kReady;
}

void on_exit(Fiber* fiber) {
  if (fiber->copies) finish_thread(fiber);
  fiber->wait = Wait::kDone;
  group->polls = 0;
  Block& block = *fiber->block;
  ++block.exited;
  Warp& warp = *fiber->warp;
  warp.exited |= 1u << fiber->lane;
  if (banks) banks->leave(fiber);
  complete_without(warp);
  for (const Barrier& barrier : block.barriers) {
    if (barrier.arrived && barrier.whole_block) {
      fail(barrier.site, "a thread exits while %d threads of its block wait at this barrier",
           barrier.arrived);
    }
  }
}

}  // namespace fastdl::emulator
