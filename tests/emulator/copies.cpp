// cp.async, mbarrier, vectors from other blocks of the cluster.
#include <cstdio>
#include "instructions.h"
#include "machine.h"

namespace fastdl::emulator {
namespace {

PendingCopies& pending_copies() {
  if (!current->copies) current->copies = new PendingCopies;
  return *current->copies;
}

void execute(const CopyAsync& copy) {
  memcpy(copy.to, copy.from, size_t(copy.valid));
  memset(static_cast<char*>(copy.to) + copy.valid, 0, size_t(copy.bytes - copy.valid));
}

}  // namespace

void copy_async(uint32_t to, const void* from, int bytes, int valid, Site site) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail(site, "cp.async of %d bytes: 4, 8 or 16", bytes);
  if (valid < 0 || valid > bytes) fail(site, "cp.async reads %d of %d bytes", valid, bytes);
  check_aligned(from, size_t(bytes), site);
  void* target = shared_pointer(to, size_t(bytes), size_t(bytes), site);
  access(target, size_t(bytes), true, site);
  if (valid) access(from, size_t(valid), false, site);
  count_traffic(from, size_t(valid), false);
  const CopyAsync copy{target, from, bytes, valid, site};
  if (!late()) return execute(copy);
  memset(target, kPoison, size_t(bytes));
  pending_copies().open.push_back(copy);
}

void copy_async_commit() {
  PendingCopies& copies = pending_copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

void copy_async_wait(int groups) {
  PendingCopies& copies = pending_copies();
  while (int(copies.groups.size()) > (groups < 0 ? 0 : groups)) {
    for (const CopyAsync& copy : copies.groups.front()) execute(copy);
    copies.groups.pop_front();
  }
  if (groups >= 0) return;
  for (const CopyAsync& copy : copies.open) execute(copy);
  copies.open.clear();
}

void load_cluster(float* value, uint32_t address, Site site) {
  const void* from = shared_pointer(address, 16, 16, site);
  access(from, 16, false, site);
  memcpy(value, from, 16);
}

// mbarrier ----------------------------------------------------------------------------------------
// The memory holds a mark only, so that ordinary stores over it show; the state is in the block's list.
constexpr uint64_t kMark = 0x6D62617272696572ull;

static Mbarrier* find(Block& block, uint32_t offset) {
  for (Mbarrier& mbarrier : block.mbarriers) {
    if (mbarrier.offset == offset) return &mbarrier;
  }
  return nullptr;
}

Mbarrier& mbarrier_at(uint32_t address, Site site) {
  const void* memory = shared_pointer(address, 8, 8, site);
  uint64_t mark = 0;
  memcpy(&mark, memory, sizeof mark);
  Mbarrier* mbarrier = find(*block_of(address, site), address & kOffsetMask);
  if (!mbarrier) fail(site, "mbarrier shared+0x%x is used before its initialisation", address & kOffsetMask);
  if (mark != kMark) fail(site, "mbarrier shared+0x%x was overwritten by ordinary stores", mbarrier->offset);
  access(memory, 8, false, site);  // the initialisation has to be ordered before
  return *mbarrier;
}

void mbarrier_init(uint32_t address, uint32_t count, Site site) {
  void* memory = shared_pointer(address, 8, 8, site);
  if (count == 0 || count >= 1u << 20) fail(site, "mbarrier of %u arrivals: 1 to 2^20 - 1", count);
  access(memory, 8, true, site);
  memcpy(memory, &kMark, sizeof kMark);
  Block& block = *block_of(address, site);
  Mbarrier* mbarrier = find(block, address & kOffsetMask);
  if (!mbarrier) mbarrier = &block.mbarriers.emplace_back();
  if (!mbarrier->waiters.empty()) fail(site, "initialisation of an mbarrier on which threads wait");
  *mbarrier = Mbarrier{};
  mbarrier->offset = address & kOffsetMask;
  mbarrier->expected = mbarrier->pending = count;
}

void mbarrier_invalidate(uint32_t address, Site site) {
  Mbarrier& mbarrier = mbarrier_at(address, site);
  if (!mbarrier.waiters.empty()) fail(site, "invalidation of an mbarrier on which threads wait");
  void* memory = shared_pointer(address, 8, 8, site);
  access(memory, 8, true, site);
  memset(memory, kPoison, 8);
  std::vector<Mbarrier>& all = block_of(address, site)->mbarriers;
  all.erase(all.begin() + (&mbarrier - all.data()));
}

static void complete_phase(Mbarrier& mbarrier) {
  if (mbarrier.pending || mbarrier.transactions) return;
  mbarrier.phase ^= 1;
  mbarrier.pending = mbarrier.expected;
  std::swap(mbarrier.completed, mbarrier.arriving);
  if (race) race->reset(mbarrier.arriving);
  std::vector<Fiber*> waiters;
  waiters.swap(mbarrier.waiters);
  for (Fiber* fiber : waiters) {
    if (race) race->acquire(mbarrier.completed, fiber);
    wake(fiber, false);
  }
}

void mbarrier_expect(uint32_t address, uint32_t bytes, Site site) {
  Mbarrier& mbarrier = mbarrier_at(address, site);
  mbarrier.transactions += int32_t(bytes);
  if (mbarrier.transactions >= 1 << 20) fail(site, "mbarrier expects over 2^20 - 1 bytes");
}

void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t bytes, Site site) {
  mbarrier_expect(address, bytes, site);
  Mbarrier& mbarrier = mbarrier_at(address, site);
  if (count > mbarrier.pending) {
    fail(site, "mbarrier shared+0x%x: %u arrivals, %u pending in this phase", mbarrier.offset, count,
         mbarrier.pending);
  }
  mbarrier.pending -= count;
  if (race) race->release(mbarrier.arriving, current);
  complete_phase(mbarrier);
}

void complete_transaction(Block& block, uint32_t offset, uint32_t bytes, Snapshot* snapshot, Site site) {
  Mbarrier* mbarrier = find(block, offset);
  if (!mbarrier) fail(site, "bulk copy completes on shared+0x%x, which is no mbarrier", offset);
  mbarrier->transactions -= int32_t(bytes);
  if (race) race->async_done(snapshot, mbarrier->arriving);
  complete_phase(*mbarrier);
}

bool mbarrier_test(uint32_t address, uint32_t parity, Site site) {
  if (parity > 1) fail(site, "mbarrier parity %u", parity);
  Mbarrier& mbarrier = mbarrier_at(address, site);
  if (mbarrier.phase == parity) return false;
  if (race) race->acquire(mbarrier.completed, current);
  return true;
}

void mbarrier_wait(uint32_t address, uint32_t parity, Site site) {
  if (mbarrier_test(address, parity, site)) return;
  mbarrier_at(address, site).waiters.push_back(current);
  block_here(Wait::kMbarrier, site, address & kOffsetMask, parity);
}

std::string describe_mbarriers(const Block& block) {
  std::string text;
  for (const Mbarrier& m : block.mbarriers) {
    char line[200];
    snprintf(line, sizeof line,
             "\n    block (%u,%u,%u) mbarrier shared+0x%x: phase %u, %u of %u arrivals and %d bytes pending",
             block.index.x, block.index.y, block.index.z, m.offset, m.phase, m.pending, m.expected,
             m.transactions);
    text += line;
  }
  return text;
}

}  // namespace fastdl::emulator
