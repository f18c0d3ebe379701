// The TMA unit: bulk copies between global tensors (or plain ranges) and shared memory.
#include <algorithm>
#include "instructions.h"
#include "machine.h"

namespace fastdl::emulator {
namespace {

constexpr uint64_t kMapMark = 0x746D616465736372ull;
constexpr int kMaxRank = 5;

struct Map {  // what encode_tensor_map writes into the 128 bytes
  uint64_t mark;
  unsigned char* base;
  uint64_t stride[kMaxRank];  // bytes; [0] is the element's size
  uint32_t size[kMaxRank];
  uint16_t box[kMaxRank];
  uint8_t rank, swizzle_bits;
  bool rounds_to_tf32;
  uint32_t box_bytes() const {
    uint32_t bytes = uint32_t(stride[0]);
    for (int i = 0; i < rank; ++i) bytes *= box[i];
    return bytes;
  }
};
static_assert(sizeof(Map) <= sizeof(TensorMap));

Map read_map(const void* memory, Site site) {
  Map map;
  memcpy(&map, memory, sizeof map);
  if (map.mark != kMapMark) fail(site, "not a tensor map; pass it as a __grid_constant__ parameter");
  return map;
}

// Calls f(shared offset, global element or null where the box leaves the tensor) for each element of the box.
template <class F>
void for_each_element(const Map& map, uint32_t shared, const int* coordinate, F&& f) {
  const uint32_t element = uint32_t(map.stride[0]), count = map.box_bytes() / element;
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t rest = i;
    unsigned char* global = map.base;
    bool inside = true;
    for (int d = 0; d < map.rank; ++d) {
      const int64_t position = int64_t(coordinate[d]) + rest % map.box[d];
      rest /= map.box[d];
      inside = inside && position >= 0 && position < map.size[d];
      if (inside) global += uint64_t(position) * map.stride[d];
    }
    uint32_t offset = shared + i * element;
    offset ^= (offset >> 7 & ((1u << map.swizzle_bits) - 1)) << 4;
    f(offset, inside ? global : nullptr);
  }
}

// To nearest, ties to even; infinities and NaN stay.
void round_to_tf32(unsigned char* element) {
  uint32_t bits;
  memcpy(&bits, element, sizeof bits);
  if ((bits & 0x7F800000u) == 0x7F800000u) return;
  bits = (bits + 0xFFFu + (bits >> 13 & 1)) & 0xFFFFE000u;
  memcpy(element, &bits, sizeof bits);
}

void execute_load(const BulkCopy& copy) {
  unsigned char* window = copy.block->window;
  const auto note = [&](uint32_t offset) {
    if (race && offset % 16 == 0) race->async_access(copy.snapshot, window + offset, 16, true, copy.site);
  };
  if (copy.global) {
    memcpy(window + copy.offset, copy.global, copy.bytes);
    for (uint32_t i = 0; i < copy.bytes; i += 16) note(copy.offset + i);
  } else {
    const Map map = read_map(copy.map, copy.site);
    for_each_element(map, copy.offset, copy.coordinate, [&](uint32_t offset, const unsigned char* global) {
      if (global) {
        memcpy(window + offset, global, map.stride[0]);
        if (map.rounds_to_tf32) round_to_tf32(window + offset);
      } else {
        memset(window + offset, 0, map.stride[0]);
      }
      note(offset);
    });
  }
  complete_transaction(*copy.block, copy.mbarrier, copy.bytes, copy.snapshot, copy.site);
}

void launch_load(BulkCopy copy, uint32_t blocks, uint32_t to, uint32_t mbarrier) {
  Block* first = current->block - current->block->rank;
  for (uint32_t rank = 0; rank < 16; ++rank) {
    if (!(blocks >> rank & 1)) continue;
    if (rank >= cluster_size())
      fail(copy.site, "multicast mask 0x%x in a cluster of %u", blocks, cluster_size());
    const uint32_t there = rank << kRankShift;
    void* target = shared_pointer((to & kOffsetMask) | there, copy.bytes, copy.global ? 16 : 128, copy.site);
    mbarrier_at((mbarrier & kOffsetMask) | there, copy.site);
    copy.block = first + rank;
    copy.offset = to & kOffsetMask;
    copy.mbarrier = mbarrier & kOffsetMask;
    copy.snapshot = race ? race->snapshot(current) : nullptr;
    if (late()) {
      memset(target, kPoison, copy.bytes);
      group->loads.push_back(copy);
    } else {
      execute_load(copy);
    }
  }
}

void execute_store(const BulkCopy& copy) {
  const unsigned char* window = copy.block->window;
  if (copy.global) {
    memcpy(const_cast<unsigned char*>(copy.global), window + copy.offset, copy.bytes);
    return;
  }
  const Map map = read_map(copy.map, copy.site);
  for_each_element(map, copy.offset, copy.coordinate, [&](uint32_t offset, unsigned char* global) {
    if (!global) return;
    if (copy.reduce) {
      float sum, addend;
      memcpy(&sum, global, sizeof sum);
      memcpy(&addend, window + offset, sizeof addend);
      sum += addend;
      memcpy(global, &sum, sizeof sum);
    } else {
      memcpy(global, window + offset, map.stride[0]);
    }
  });
}

// At the issue and again when its wait is over: in between nobody may overwrite what it reads.
void note_reads(const BulkCopy& copy) {
  for (uint32_t i = 0; race && i < copy.bytes; i += 16) {
    race->access(current, copy.block->window + copy.offset + i, 16, false, true, copy.site);
  }
}

void note_writes(const BulkCopy& copy) {
  if (!race || copy.reduce) return;
  if (copy.global) return race->access(current, copy.global, copy.bytes, true, false, copy.site);
  const Map map = read_map(copy.map, copy.site);
  for_each_element(map, copy.offset, copy.coordinate, [&](uint32_t, const unsigned char* global) {
    if (global) race->access(current, global, map.stride[0], true, false, copy.site);
  });
}

uint64_t hash_of_source(const BulkCopy& copy) {  // FNV-1a, of words
  uint64_t hash = 1469598103934665603ull;
  for (uint32_t i = 0; i < copy.bytes; i += 8) {
    uint64_t word;
    memcpy(&word, copy.block->window + copy.offset + i, sizeof word);
    hash = (hash ^ word) * 1099511628211ull;
  }
  return hash;
}

void launch_store(BulkCopy copy, uint32_t from) {
  shared_pointer(from, copy.bytes, copy.global ? 16 : 128, copy.site);
  copy.block = current->block;
  copy.offset = from & kOffsetMask;
  note_reads(copy);
  note_writes(copy);
  copy.source = hash_of_source(copy);
  copy.executed = !late();
  if (copy.executed) execute_store(copy);
  if (!current->copies) current->copies = new PendingCopies;
  current->copies->open_stores.push_back(copy);
}

uint32_t inside_bytes(const Map& map, const int* coordinate) {
  uint32_t bytes = 0;
  for_each_element(map, 0, coordinate,
                   [&](uint32_t, const unsigned char* global) { bytes += global ? map.stride[0] : 0; });
  return bytes;
}

BulkCopy tensor_copy(const TensorMap* memory, const int* coordinate, int rank, bool write, Site site) {
  if (uintptr_t(memory) % 64) fail(site, "the tensor map is not aligned to 64 bytes");
  const Map map = read_map(memory, site);
  if (rank != map.rank) fail(site, "%d coordinates for a tensor map of %d dimensions", rank, map.rank);
  BulkCopy copy{};
  memcpy(copy.map, memory, sizeof copy.map);
  std::copy(coordinate, coordinate + rank, copy.coordinate);
  copy.bytes = map.box_bytes();
  copy.site = site;
  count_traffic(map.base, inside_bytes(map, coordinate), write);
  return copy;
}

BulkCopy plain_copy(const void* global, uint32_t bytes, bool write, Site site) {
  check_aligned(global, 16, site);
  if (bytes == 0 || bytes % 16) fail(site, "bulk copy of %u bytes: a positive multiple of 16", bytes);
  BulkCopy copy{};
  copy.global = static_cast<const unsigned char*>(global);
  copy.bytes = bytes;
  copy.site = site;
  count_traffic(global, bytes, write);
  return copy;
}

}  // namespace

const char* encode_tensor_map(TensorMap* map, int element_bytes, const void* base, int rank,
                              const uint64_t* size, const uint64_t* stride_bytes, const uint32_t* box,
                              int swizzle_bytes, bool rounds_to_tf32) {
  if (uintptr_t(base) % 16) return "tensor map: the base is not aligned to 16 bytes";
  if (rank < 1 || rank > kMaxRank) return "tensor map: rank must be 1 to 5";
  Map encoded{};
  encoded.mark = kMapMark;
  encoded.base = static_cast<unsigned char*>(const_cast<void*>(base));
  encoded.rank = uint8_t(rank);
  encoded.stride[0] = uint64_t(element_bytes);
  encoded.rounds_to_tf32 = rounds_to_tf32;
  encoded.swizzle_bits = swizzle_bytes == 128 ? 3 : swizzle_bytes == 64 ? 2 : swizzle_bytes == 32 ? 1 : 0;
  for (int i = 0; i < rank; ++i) {
    if (!size[i] || size[i] > 0xFFFFFFFFull) return "tensor map: a size is not in 1 to 2^32 - 1";
    if (!box[i] || box[i] > 256) return "tensor map: a box size is not in 1 to 256";
    encoded.size[i] = uint32_t(size[i]);
    encoded.box[i] = uint16_t(box[i]);
    if (i == 0) continue;
    encoded.stride[i] = stride_bytes[i - 1];
    if (encoded.stride[i] % 16 || encoded.stride[i] >> 40)
      return "tensor map: a stride is not a multiple of 16 bytes";
  }
  const uint32_t row_bytes = box[0] * uint32_t(element_bytes);
  if (row_bytes % 16) return "tensor map: the box's rows are not a multiple of 16 bytes";
  if (swizzle_bytes && row_bytes > uint32_t(swizzle_bytes))
    return "tensor map: the box's rows exceed the swizzle";
  memset(map, 0, sizeof *map);
  memcpy(map, &encoded, sizeof encoded);
  return nullptr;
}

void tma_load(uint32_t to, const TensorMap* map, const int* coordinate, int rank, uint32_t mbarrier,
              uint32_t blocks, Site site) {
  if (!blocks) blocks = 1u << (to >> kRankShift);
  launch_load(tensor_copy(map, coordinate, rank, false, site), blocks, to, mbarrier);
}

void tma_store(const TensorMap* map, uint32_t from, const int* coordinate, int rank, bool add, Site site) {
  BulkCopy copy = tensor_copy(map, coordinate, rank, true, site);
  copy.reduce = add;
  launch_store(copy, from);
}

void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier, Site site) {
  launch_load(plain_copy(from, bytes, false, site), 1u << (to >> kRankShift), to, mbarrier);
}

void bulk_store(void* to, uint32_t from, uint32_t bytes, Site site) {
  launch_store(plain_copy(to, bytes, true, site), from);
}

bool complete_one_load() {
  std::deque<BulkCopy>& loads = group->loads;
  if (loads.empty()) return false;
  const size_t i = settings().completion == Completion::kRandom ? group->random() % loads.size() : 0;
  const BulkCopy copy = loads[i];
  loads.erase(loads.begin() + long(i));
  execute_load(copy);
  return true;
}

void bulk_commit() {
  if (!current->copies) current->copies = new PendingCopies;
  PendingCopies& copies = *current->copies;
  copies.stores.push_back(std::move(copies.open_stores));
  copies.open_stores.clear();
}

// Waiting for the reads alone completes the writes too: nothing in a kernel can tell the two apart early.
void bulk_wait(int groups, bool) {
  if (!current->copies) return;
  std::deque<std::vector<BulkCopy>>& stores = current->copies->stores;
  while (int(stores.size()) > groups) {
    for (const BulkCopy& copy : stores.front()) {
      note_reads(copy);
      if (hash_of_source(copy) != copy.source)
        fail(copy.site, "shared memory was overwritten under a bulk store");
      if (!copy.executed) execute_store(copy);
    }
    stores.pop_front();
  }
}

}  // namespace fastdl::emulator
