// A block's shared memory: dynamic part first, variables behind it, red zones between, all bytes NaN at
// first.
#include <sys/mman.h>
#include <cstdio>
#include "machine.h"

namespace fastdl::emulator {
namespace {

constexpr uint32_t kDynamicOffset = 1024, kZone = 256;
constexpr unsigned char kCanary = 0xC5;

void add_zone(Block& block, uint32_t offset, uint32_t bytes) {
  if (!FASTDL_ASAN) memset(block.window + offset, kCanary, bytes);
  ASAN_POISON_MEMORY_REGION(block.window + offset, bytes);
  block.red_zones.push_back({offset, bytes});
}

void allocate(Block& block, uint32_t offset, uint32_t bytes) {
  memset(block.window + offset, kPoison, bytes);
  if (race && bytes) race->allocate(block, block.window + offset, bytes);
  add_zone(block, offset + bytes, kZone);
}

}  // namespace

void begin_shared(Block& block, size_t dynamic_bytes) {
  if (!block.window) {
    constexpr size_t kAlignment = 1 << 18;
    void* memory = mmap(nullptr, kWindowBytes + kAlignment, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail_text("no memory for a block's shared memory");
    block.window = reinterpret_cast<unsigned char*>((uintptr_t(memory) + kAlignment - 1) & ~(kAlignment - 1));
  }
  ASAN_UNPOISON_MEMORY_REGION(block.window, kWindowBytes);
  block.variables.clear();
  block.red_zones.clear();
  block.mbarriers.clear();
  block.dynamic_bytes = uint32_t(dynamic_bytes);
  add_zone(block, kDynamicOffset - kZone, kZone);
  allocate(block, kDynamicOffset, block.dynamic_bytes);
  if (group->shared_layout.empty()) group->shared_top = kDynamicOffset + block.dynamic_bytes + kZone;
}

void end_shared(Block& block) {
  ASAN_UNPOISON_MEMORY_REGION(block.window, kWindowBytes);
  if (FASTDL_ASAN || group->failed) return;
  for (const auto& [offset, bytes] : block.red_zones) {
    for (uint32_t i = offset; i < offset + bytes; ++i) {
      if (block.window[i] == kCanary) continue;
      const char* name = "the dynamic shared memory";
      for (const SharedVariable& variable : block.variables) {
        if (variable.offset <= offset) name = variable.name;
      }
      char text[256];
      snprintf(text, sizeof text, "write past the end of %s (shared+0x%x)", name, i);
      return fail_block(block, text);
    }
  }
}

void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name) {
  Block& block = *current->block;
  for (const SharedVariable& variable : block.variables) {
    if (variable.key == key) return block.window + variable.offset;
  }
  const SharedVariable* variable = nullptr;
  for (const SharedVariable& known : group->shared_layout) {
    if (known.key == key) variable = &known;
  }
  if (!variable) {
    size_t used = block.dynamic_bytes + bytes;
    for (const SharedVariable& known : group->shared_layout) used += known.bytes;
    if (used > size_t(device().shared_bytes_per_block)) {
      fail({}, "%s makes %zu bytes of shared memory, a block has %d", name, used,
           device().shared_bytes_per_block);
    }
    const uint32_t align = uint32_t(alignment < 16 ? 16 : alignment);
    const uint32_t offset = (group->shared_top + align - 1) & ~(align - 1);
    group->shared_top = offset + uint32_t(bytes) + kZone;
    group->shared_layout.push_back({key, offset, uint32_t(bytes), name});
    variable = &group->shared_layout.back();
  }
  block.variables.push_back(*variable);
  allocate(block, variable->offset, variable->bytes);
  return block.window + variable->offset;
}

void* dynamic_shared() { return current->block->window + kDynamicOffset; }

uint32_t shared_address(const void* pointer, Site site) {
  const Block& block = *current->block;
  const ptrdiff_t offset = static_cast<const unsigned char*>(pointer) - block.window;
  if (offset < 0 || offset >= ptrdiff_t(kWindowBytes)) {
    fail(site, "pointer %p is not in this block's shared memory", pointer);
  }
  return uint32_t(offset) | block.rank << kRankShift;
}

Block* block_of(uint32_t address, Site site) {
  Block* own = current->block;
  const uint32_t rank = address >> kRankShift;
  if (rank == own->rank) return own;
  if (rank >= group->cluster_size()) {
    fail(site, "address 0x%x names block %u of a cluster of %u", address, rank, group->cluster_size());
  }
  Block* other = own - own->rank + rank;
  if (other->exited == other->threads) {
    fail(site, "access to the shared memory of block %u of the cluster, which has exited", rank);
  }
  return other;
}

void* shared_pointer(uint32_t address, size_t bytes, size_t alignment, Site site) {
  Block& block = *block_of(address, site);
  const uint32_t offset = address & kOffsetMask;
  if (alignment > 1 && offset % alignment) {
    fail(site, "shared address 0x%x is not aligned to %zu bytes", offset, alignment);
  }
  const auto inside = [&](uint32_t begin, size_t size) {
    return offset >= begin && offset + bytes <= begin + size;
  };
  bool valid = inside(kDynamicOffset, block.dynamic_bytes);
  for (const SharedVariable& variable : block.variables) valid |= inside(variable.offset, variable.bytes);
  if (!valid) fail(site, "shared access [0x%x, +%zu) is outside every shared variable", offset, bytes);
  return block.window + offset;
}

uint32_t map_address(uint32_t address, unsigned rank, Site site) {
  if (rank >= group->cluster_size()) fail(site, "block %u of a cluster of %u", rank, group->cluster_size());
  return (address & kOffsetMask) | rank << kRankShift;
}

void* map_shared(const void* pointer, unsigned rank, Site site) {
  const uint32_t offset = shared_address(pointer, site) & kOffsetMask;
  return block_of(rank << kRankShift | offset, site)->window + offset;
}

void check_aligned(const void* pointer, size_t alignment, Site site) {
  if (uintptr_t(pointer) % alignment)
    fail(site, "address %p is not aligned to %zu bytes", pointer, alignment);
}

}  // namespace fastdl::emulator
