// Barriers of a block, a cluster and the grid; collectives of warps and warpgroups; shuffles and votes.
#include <algorithm>
#include "machine.h"

namespace fastdl::emulator {
namespace {

void release(Barrier& barrier) {
  if (race) race->synchronize(barrier.members, barrier.waiters);
  barrier.result = barrier.count;
  barrier.count = barrier.arrived = barrier.expected = 0;
  ++barrier.phase;
  std::vector<Fiber*> waiters;
  waiters.swap(barrier.waiters);
  barrier.members.clear();
  const bool forward = settings().order == Order::kForward;
  std::sort(waiters.begin(), waiters.end(),
            [&](Fiber* a, Fiber* b) { return forward ? a->global < b->global : a->global > b->global; });
  for (Fiber* fiber : waiters) {
    if (fiber != current) wake(fiber, false);
  }
}

bool same(Site a, Site b) { return a.line == b.line && !strcmp(a.file, b.file); }

void arrive(Barrier& barrier, int expected, bool wait, Wait kind, int id, bool whole_block, Site site) {
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.whole_block = whole_block;
    barrier.site = site;
  }
  const Site first = barrier.site;
  if (barrier.expected != expected) {
    fail(site, "barrier %d with %d threads; at %s:%d it was said to have %d", id, expected, first.file,
         first.line, barrier.expected);
  }
  if (whole_block && !same(first, site)) {
    fail(site, "DIVERGENT BARRIER: %d threads wait at %s:%d", barrier.arrived, first.file, first.line);
  }
  ++barrier.arrived;
  if (race) barrier.members.push_back(current);
  if (wait) barrier.waiters.push_back(current);
  if (banks && wait) banks->meet(current);
  if (barrier.arrived == barrier.expected) {
    release(barrier);
  } else if (wait) {
    block_here(kind, site, uint32_t(id));
  }
}

void wake_lanes(const Warp& warp, uint32_t lanes) {
  for (int i = 0; i < 32; ++i) {
    const int lane = settings().order == Order::kForward ? 31 - i : i;  // the last one pushed runs first
    if (lanes >> lane & 1) wake(warp.lanes[lane], true);
  }
}

void complete(Warp& warp, int index) {
  const PendingWarp done = warp.pending[index];
  warp.pending[index] = warp.pending[--warp.pending_count];
  if (race && done.operation == 0) {
    std::vector<Fiber*> lanes;
    for (int lane = 0; lane < 32; ++lane) {
      if (done.arrived >> lane & 1) lanes.push_back(warp.lanes[lane]);
    }
    race->synchronize(lanes, lanes);
  }
  if (done.complete) done.complete(const_cast<void**>(done.payload), done.arrived);
  wake_lanes(warp, done.arrived & ~(1u << current->lane));
}

}  // namespace

void barrier(int id, int threads, bool wait, Site site) {
  Block& block = *current->block;
  const bool whole_block = threads == 0;
  if (id < 0 || id > 15) fail(site, "barrier %d: a block has barriers 0 to 15", id);
  if (threads % 32) fail(site, "barrier %d with %d threads, not a multiple of 32", id, threads);
  if (threads > int(block.threads))
    fail(site, "barrier %d with %d threads, block of %u", id, threads, block.threads);
  if (whole_block && block.exited)
    fail(site, "barrier after %u threads of the block have exited", block.exited);
  arrive(block.barriers[id], whole_block ? int(block.threads) : threads, wait, Wait::kBarrier, id,
         whole_block, site);
}

int barrier_count(bool predicate, Site site) {
  Barrier& first = current->block->barriers[0];
  first.count += predicate;
  barrier(0, 0, true, site);
  return first.result;
}

void grid_barrier(Site site) {
  if (!group->launch->cooperative) fail(site, "grid barrier in a launch that is not cooperative");
  arrive(group->grid_barrier, int(group->fiber_count()), true, Wait::kGrid, 0, true, site);
}

unsigned cluster_rank() { return current->block->rank; }
unsigned cluster_size() { return group->cluster_size(); }

static Barrier& own_cluster_barrier() {
  return group->cluster_barriers[current->block - group->blocks.data() - current->block->rank];
}

void cluster_arrive(Site site) {
  Barrier& barrier = own_cluster_barrier();
  if (current->cluster_arrived) fail(site, "second arrival at the cluster barrier without a wait between");
  current->cluster_arrived = true;
  current->cluster_phase = barrier.phase;
  barrier.site = site;
  if (race) race->release(barrier.arriving, current);
  if (++barrier.arrived < int(group->threads * group->cluster_size())) return;
  barrier.arrived = 0;
  ++barrier.phase;
  std::swap(barrier.arriving, barrier.completed);
  if (race) race->reset(barrier.arriving);
  for (Fiber* fiber : barrier.waiters) wake(fiber, false);
  barrier.waiters.clear();
}

void cluster_wait(Site site) {
  Barrier& barrier = own_cluster_barrier();
  if (!current->cluster_arrived) fail(site, "wait at the cluster barrier without an arrival");
  if (barrier.phase == current->cluster_phase) {
    barrier.waiters.push_back(current);
    block_here(Wait::kCluster, site);
  }
  current->cluster_arrived = false;
  if (race) race->acquire(barrier.completed, current);
}

void warp_collective(uint32_t mask, int operation, void* payload, Complete complete_function, Site site) {
  Fiber* self = current;
  Warp& warp = *self->warp;
  const uint32_t bit = 1u << self->lane;
  if (!(mask & bit)) fail(site, "lane %u is not in its own mask 0x%08x", self->lane, mask);
  int index = -1;
  for (int i = 0; i < warp.pending_count; ++i) {
    const PendingWarp& other = warp.pending[i];
    if (other.mask == mask) {
      index = i;
    } else if (other.mask & mask) {
      fail(site, "DIVERGENT WARP: mask 0x%08x overlaps mask 0x%08x that waits at %s:%d", mask, other.mask,
           other.site.file, other.site.line);
    }
  }
  if (index < 0) {
    index = warp.pending_count++;
    warp.pending[index] = {mask, 0, operation, site, complete_function, {}};
  }
  PendingWarp& pending = warp.pending[index];
  if (pending.operation != operation || !same(pending.site, site)) {
    fail(site, "DIVERGENT WARP: lane %u is here, others of mask 0x%08x wait at %s:%d", self->lane, mask,
         pending.site.file, pending.site.line);
  }
  pending.payload[self->lane] = payload;
  pending.arrived |= bit;
  if (banks && (mask | warp.exited) == warp.existing) banks->meet(self);
  // As on the GPU, lanes that have exited are not waited for.
  if (pending.arrived == (mask & warp.existing & ~warp.exited)) {
    complete(warp, index);
  } else {
    block_here(Wait::kWarp, site);
  }
}

void complete_without(Warp& warp) {
  for (int i = 0; i < warp.pending_count; ++i) {
    const PendingWarp& pending = warp.pending[i];
    if (pending.arrived == (pending.mask & warp.existing & ~warp.exited)) complete(warp, i--);
  }
}

void warpgroup_collective(int operation, void* payload, Complete complete_function, Site site) {
  Fiber* self = current;
  Block& block = *self->block;
  const unsigned number = self->linear / 128;
  if ((number + 1) * 128 > block.threads) fail(site, "warpgroup instruction in an incomplete warpgroup");
  Warpgroup& warpgroup = block.warpgroups[number];
  if (warpgroup.arrived == 0) {
    warpgroup.operation = operation;
    warpgroup.site = site;
  } else if (warpgroup.operation != operation || !same(warpgroup.site, site)) {
    fail(site, "DIVERGENT WARPGROUP: %u threads wait at %s:%d", warpgroup.arrived, warpgroup.site.file,
         warpgroup.site.line);
  }
  warpgroup.payload[self->linear % 128] = payload;
  if (banks) banks->meet(self);
  if (++warpgroup.arrived < 128) return block_here(Wait::kWarpgroup, site);
  warpgroup.arrived = 0;
  if (complete_function) complete_function(warpgroup.payload, 0);
  for (int i = 127; i >= 0; --i) {
    Fiber* fiber = &block.fibers[number * 128 + i];
    if (fiber != self) wake(fiber, true);
  }
}

// Shuffles and votes ------------------------------------------------------------------------------
namespace {

struct ShufflePayload {
  uint64_t in, out;
  unsigned argument;
  int width;
  Shuffle mode;
};

int source_lane(const ShufflePayload& p, int lane) {
  const int segment = lane & ~(p.width - 1), end = segment + p.width, argument = int(p.argument);
  int source = lane;
  switch (p.mode) {
    case Shuffle::kIndex:
      return segment + (argument & (p.width - 1));
    case Shuffle::kUp:
      source = lane - argument;
      return source < segment ? lane : source;
    case Shuffle::kDown:
      source = lane + argument;
      break;
    case Shuffle::kXor:
      source = lane ^ argument;
      break;
  }
  return source >= end ? lane : source;
}

void complete_shuffle(void** payload, uint32_t lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto& p = *static_cast<ShufflePayload*>(payload[lane]);
    const int source = source_lane(p, lane);
    // The value of a lane that takes no part is undefined: poison.
    p.out = lanes >> source & 1 ? static_cast<ShufflePayload*>(payload[source])->in : ~0ull;
  }
}

struct VotePayload {
  uint64_t in, out;
  Vote kind;
};

void complete_vote(void** payload, uint32_t lanes) {
  const auto at = [&](int lane) -> VotePayload& { return *static_cast<VotePayload*>(payload[lane]); };
  const int first = __builtin_ctz(lanes);
  const Vote kind = at(first).kind;
  uint64_t result = kind == Vote::kBallot ? 0 : at(first).in;
  for (int lane = first; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t value = at(lane).in;
    if (kind == Vote::kBallot) result |= value << lane;
    if (kind == Vote::kAll || kind == Vote::kAnd) result &= value;
    if (kind == Vote::kOr) result |= value;
    if (kind == Vote::kMax) result = std::max(result, value);
    if (kind == Vote::kMin) result = std::min(result, value);
    if (kind == Vote::kAdd && lane != first) result = uint32_t(result + value);
    if (kind == Vote::kMatch) {
      uint64_t same_value = 0;
      for (int other = first; other < 32; ++other) {
        if (lanes >> other & 1 && at(other).in == value) same_value |= 1ull << other;
      }
      at(lane).out = same_value;
    }
  }
  if (kind == Vote::kMatch) return;
  for (int lane = first; lane < 32; ++lane) {
    if (lanes >> lane & 1) at(lane).out = result;
  }
}

}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t value, unsigned argument, int width, Shuffle mode, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(site, "shuffle width %d: a power of two up to 32", width);
  ShufflePayload payload{value, 0, argument, width, mode};
  warp_collective(mask, 1 + int(mode), &payload, complete_shuffle, site);
  return payload.out;
}

uint64_t vote(uint32_t mask, uint64_t value, Vote kind, Site site) {
  VotePayload payload{value, 0, kind};
  warp_collective(mask, 8 + int(kind), &payload, complete_vote, site);
  return payload.out;
}

// Memory order ------------------------------------------------------------------------------------
void fence(Scope) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (race) race->fence(current);
}

void proxy_fence() {
  if (race) race->proxy_fence(current);
}

void access(const void* pointer, size_t bytes, bool write, Site site) {
  if (race) race->access(current, pointer, bytes, write, false, site);
}

void atomic_access(const void* pointer, size_t bytes, Site site) {
  if (uintptr_t(pointer) % bytes) fail(site, "atomic operation on the misaligned address %p", pointer);
  if (race) race->atomic(current, pointer, bytes, site);
}

}  // namespace fastdl::emulator
