// The race checker: every load and store of a kernel against vector clocks that follow the emulator's own
// synchronisation. Kernels are compiled with -fsanitize=thread, and linked with the entry points at the end
// of this file instead of ThreadSanitizer's library.
#include "race.h"
#include <cstdio>

namespace fastdl::emulator {

State& state = *new State;

namespace {

// Accesses ----------------------------------------------------------------------------------------
// The
// record of a byte; `run_length`: how many records follow one another from there.
Byte* find_bytes(const unsigned char* pointer, bool& shared, size_t& run_length) {
  for (unsigned i = 0; i < group->block_count; ++i) {
    const uintptr_t offset = uintptr_t(pointer) - uintptr_t(group->blocks[i].window);
    if (offset >= kWindowBytes) continue;
    shared = true;
    run_length = kWindowBytes - offset;
    return &state.shared[i][offset];
  }
  shared = false;
  const uintptr_t page = uintptr_t(pointer) / 256, offset = uintptr_t(pointer) % 256;
  run_length = 256 - offset;
  if (page != state.last_page_number) {
    std::unique_ptr<Page>& memory = state.global[page];
    if (!memory) memory = std::make_unique<Page>();
    state.last_page_number = page;
    state.last_page = memory.get();
  }
  return &state.last_page->bytes[offset];
}

struct Now {  // the access being checked
  const Clock& clock;
  Access access;
  bool write, atomic, async;
  Site site;
  bool mine(const Access& other) const { return other.run == access.run && other.thread == access.thread; }
};

void check_readers(const Byte& byte, const unsigned char* pointer, const Now& now) {
  const auto check = [&](const Access& reader) {
    if (!now.mine(reader) && !ordered(reader, now.clock)) {
      report("DATA RACE", pointer, &reader, false, now.access, true, now.site);
    }
  };
  if (!(byte.flags & kRead)) return;
  if (!(byte.flags & kManyReaders)) return check(byte.read);
  for (const Access& reader : state.reader_sets[byte.readers]) check(reader);
}

void record_reader(Byte& byte, const Now& now) {
  if (!(byte.flags & kRead) ||
      (!(byte.flags & kManyReaders) && (now.mine(byte.read) || ordered(byte.read, now.clock)))) {
    byte.read = now.access;
    byte.flags |= kRead;
    return;
  }
  if (!(byte.flags & kManyReaders)) {
    byte.flags |= kManyReaders;
    byte.readers = uint32_t(state.reader_sets.size());
    state.reader_sets.push_back({byte.read});
  }
  std::vector<Access>& readers = state.reader_sets[byte.readers];
  const auto known =
      std::find_if(readers.begin(), readers.end(), [&](const Access& r) { return now.mine(r); });
  if (known != readers.end()) {
    *known = now.access;
  } else if (readers.size() < kMaxReaders) {
    readers.push_back(now.access);
  }
}

void check_byte(Byte& byte, const unsigned char* pointer, bool shared, const Now& now) {
  const bool both_atomic = now.atomic && (byte.flags & kByAtomic);
  if ((byte.flags & kWritten) && !both_atomic && !now.mine(byte.write) && !ordered(byte.write, now.clock)) {
    report("DATA RACE", pointer, &byte.write, true, now.access, now.write, now.site);
  }
  if (shared && !now.write) {
    if (!(byte.flags & kInitialised)) {
      report("UNINITIALISED SHARED MEMORY", pointer, nullptr, false, now.access, false, now.site);
    }
    const bool by_thread = byte.write.run == state.run && byte.write.thread < state.thread_count;
    if (now.async && (byte.flags & kWritten) && !(byte.flags & kByAsync) && by_thread &&
        state.threads[byte.write.thread].proxy_fence < byte.write.epoch) {
      report("MISSING fence_proxy_async", pointer, &byte.write, true, now.access, false, now.site);
    }
  }
  if (!now.write) return record_reader(byte, now);
  check_readers(byte, pointer, now);
  if (byte.flags & kManyReaders) state.reader_sets[byte.readers].clear();
  byte.write = now.access;
  byte.flags = uint8_t(kInitialised | kWritten | (now.atomic ? kByAtomic : 0) | (now.async ? kByAsync : 0));
}

void check_range(const void* pointer, size_t bytes, const Now& now) {
  const unsigned char* p = static_cast<const unsigned char*>(pointer);
  while (bytes) {
    bool shared;
    size_t run_length;
    Byte* record = find_bytes(p, shared, run_length);
    const size_t count = std::min(bytes, run_length);
    for (size_t i = 0; i < count; ++i) check_byte(record[i], p + i, shared, now);
    bytes -= count;
    p += count;
  }
}

Now now_of(const Fiber* fiber, bool write, Site site, uint32_t program_counter = 0) {
  const Clock& clock = thread_of(fiber).clock;
  const Access access{state.run, clock.own[fiber->global], program_counter, uint16_t(fiber->global)};
  return {clock, access, write, false, false, site};
}

// Hooks -------------------------------------------------------------------------------------------
void begin_launch() {
  state.global.clear();
  state.reader_sets.clear();
  state.atomics.clear();
  state.last_page_number = ~uintptr_t(0);
  state.run = 0;
}

void begin_group() {
  ++state.run;
  state.thread_count = group->fiber_count();
  state.clock_size = state.thread_count + kAsyncSlots;
  state.next_slot = 0;
  state.snapshots.clear();
  state.clocks.clear();
  state.slot_epochs.assign(kAsyncSlots, 0);
  state.on = state.thread_count <= kMaxThreads && !banks;
  if (banks) return;
  if (!state.on) {
    fprintf(stderr, "emulator: no race check of %u threads together\n", state.thread_count);
    return;
  }
  state.threads.assign(state.thread_count, Thread{});
  for (uint32_t i = 0; i < state.thread_count; ++i) {
    state.threads[i].clock.own.assign(state.clock_size, 0);
    state.threads[i].clock.own[i] = 1;
  }
  if (state.shared.size() < group->block_count) state.shared.resize(group->block_count);
  for (unsigned i = 0; i < group->block_count; ++i) state.shared[i].resize(kWindowBytes);
}

void end_group() { state.on = false; }

void allocate(const Block& block, const void* pointer, size_t bytes) {
  if (!state.on) return;
  std::vector<Byte>& records = state.shared[size_t(&block - group->blocks.data())];
  const size_t offset = size_t(static_cast<const unsigned char*>(pointer) - block.window);
  std::fill_n(records.begin() + long(offset), bytes, Byte{});
}

void synchronize(const std::vector<Fiber*>& members, const std::vector<Fiber*>& waiters) {
  if (!state.on) return;
  Clock merged, released;
  bool any_released = false;
  for (const Fiber* fiber : members) {
    const Thread& thread = thread_of(fiber);
    join(merged, thread.clock);
    if (thread.has_released) join_foreign(released, thread.released), any_released = true;
  }
  for (const Fiber* fiber : members) advance(fiber);
  for (const Fiber* fiber : waiters) {
    Thread& thread = thread_of(fiber);
    const uint32_t own = thread.clock.own[fiber->global];
    thread.clock = merged;
    thread.clock.own[fiber->global] = own;
    // Fence by all, barrier, atomic by one: that the barrier carries the fences is what code in the field
    // relies on.
    if (any_released) thread.released = released, thread.has_released = true;
  }
}

void reset(Clock*& clock) {
  state.clocks.push_back(std::make_unique<Clock>());
  clock = state.clocks.back().get();
  clock->own.assign(state.clock_size, 0);
}

void release(Clock*& clock, Fiber* fiber) {
  if (!state.on) return;
  if (!clock) reset(clock);
  join(*clock, thread_of(fiber).clock);
  advance(fiber);
}

void acquire(Clock* clock, Fiber* fiber) {
  if (state.on && clock) join(thread_of(fiber).clock, *clock);
}

void check_access(Fiber* fiber, const void* pointer, size_t bytes, bool write, bool async_proxy, Site site) {
  if (!state.on) return;
  Now now = now_of(fiber, write, site);
  now.async = async_proxy;
  check_range(pointer, bytes, now);
}

void check_atomic(Fiber* fiber, const void* pointer, size_t bytes, Site site) {
  if (!state.on) return;
  Thread& thread = thread_of(fiber);
  Now now = now_of(fiber, true, site);
  now.atomic = true;
  check_range(pointer, bytes, now);
  if (thread.has_released) join(state.atomics[pointer], thread.released);
  thread.atomics.push_back(pointer);
  if (thread.atomics.size() > kRecentAtomics) thread.atomics.erase(thread.atomics.begin());
}

// After an atomic a fence acquires what that address carries; for the next atomic it releases the thread's
// past.
void fence(Fiber* fiber) {
  if (!state.on) return;
  Thread& thread = thread_of(fiber);
  for (const void* address : thread.atomics) {
    const auto published = state.atomics.find(address);
    if (published == state.atomics.end()) continue;
    join_foreign(thread.clock, published->second);
    const auto here =
        published->second.foreign ? published->second.foreign->find(state.run) : Foreign::const_iterator{};
    if (published->second.foreign && here != published->second.foreign->end()) {  // from this very group
      for (size_t i = 0; i < here->second->size(); ++i) {
        thread.clock.own[i] = std::max(thread.clock.own[i], (*here->second)[i]);
      }
    }
  }
  thread.atomics.clear();
  Clock past;
  past.foreign =
      std::make_shared<Foreign>(Foreign{{state.run, std::make_shared<const Epochs>(thread.clock.own)}});
  join_foreign(past, thread.clock);
  thread.released = past;
  thread.has_released = true;
  advance(fiber);
}

void proxy_fence(Fiber* fiber) {
  if (!state.on || !fiber) return;
  Thread& thread = thread_of(fiber);
  thread.proxy_fence = thread.clock.own[fiber->global];
  advance(fiber);
}

Snapshot* take_snapshot(Fiber* fiber) {
  if (!state.on) return nullptr;
  const uint32_t slot = state.next_slot++ % kAsyncSlots;
  state.snapshots.push_back(
      std::make_unique<Snapshot>(Snapshot{thread_of(fiber).clock, state.thread_count + slot}));
  Snapshot* snapshot = state.snapshots.back().get();
  snapshot->clock.own[snapshot->slot] = ++state.slot_epochs[slot];
  advance(fiber);
  return snapshot;
}

void async_access(Snapshot* snapshot, const void* pointer, size_t bytes, bool write, Site site) {
  if (!state.on || !snapshot) return;
  const Access access{state.run, snapshot->clock.own[snapshot->slot], 0, uint16_t(snapshot->slot)};
  check_range(pointer, bytes, {snapshot->clock, access, write, false, true, site});
}

void async_done(Snapshot* snapshot, Clock*& clock) {
  if (!state.on || !snapshot) return;
  if (!clock) reset(clock);
  join(*clock, snapshot->clock);
}

RaceChecker checker{begin_launch, begin_group,   end_group,    synchronize,  release,
                    reset,        acquire,       check_access, check_atomic, fence,
                    proxy_fence,  take_snapshot, async_access, async_done,   allocate};
const bool installed = (race = &checker, true);

}  // namespace

// An ordinary load or store of the kernel. Its own stack, the launch's arguments and the built-in variables
// are no memory of the GPU.
void plain_access(const void* pointer, size_t bytes, bool write, const void* return_address) {
  Fiber* fiber = current;
  if (!fiber || uintptr_t(pointer) - uintptr_t(fiber->stack) < kStackBytes) return;
  const auto within = [&](const void* begin, size_t size) {
    return uintptr_t(pointer) - uintptr_t(begin) < size;
  };
  if (within(group->fibers.data(), group->fibers.size() * sizeof(Fiber)) ||
      within(group->arguments, group->launch->argument_bytes) || within(&current_block_dim, sizeof(dim3)) ||
      within(&current_grid_dim, sizeof(dim3)) || within(&current, sizeof current)) {
    return;
  }
  if (banks) banks->touch(fiber, pointer, bytes, write, uintptr_t(return_address), {});
  if (!state.on) return;
  const uint32_t program_counter = uint32_t(uintptr_t(return_address) - library_base());
  check_range(pointer, bytes, now_of(fiber, write, {}, program_counter));
}

}  // namespace fastdl::emulator
