// wgmma: matrix products of a warpgroup out of shared memory, asynchronous until waited for.
#include <cstdio>
#include "machine.h"

namespace fastdl::emulator {
namespace {

constexpr int kM = 64, kK = 16, kMaxN = 256;  // kK of 16 bits; of tf32 half as many make the same 32 bytes
constexpr int kOpWgmma = 1, kOpFence = 2, kOpCommit = 3, kOpWait = 16;

int depth_of(const Wgmma& op) { return op.shape.format == Format::kTf32 ? kK / 2 : kK; }
Warpgroup& own_warpgroup() { return current->block->warpgroups[current->linear / 128]; }

// A matrix descriptor: start address, leading and stride byte offset, swizzle mode.
struct Descriptor {
  uint32_t start, leading, stride;
  int swizzle_bits;
  explicit Descriptor(uint64_t bits)
      : start(uint32_t(bits & 0x3FFF) << 4),
        leading(uint32_t(bits >> 16 & 0x3FFF) << 4),
        stride(uint32_t(bits >> 32 & 0x3FFF) << 4) {
    static constexpr int kSwizzleBits[] = {0, 3, 2, 1};
    swizzle_bits = kSwizzleBits[bits >> 62];
  }
  // Address of element (mn, k) of `size` bytes: mn runs along M of operand A, along N of operand B.
  uint32_t address(int mn, int k, bool mn_major, int size) const {
    const int row_bytes = 16 << swizzle_bits;  // of one swizzle row
    uint32_t offset;
    if (!mn_major) {
      const int at = k * size;
      offset = uint32_t(mn / 8) * stride +
               (swizzle_bits ? uint32_t(mn % 8 * row_bytes + at)
                             : uint32_t(mn % 8 * 16 + at % 16) + uint32_t(at / 16) * leading);
    } else if (swizzle_bits) {
      const int per_row = row_bytes / 2;
      offset = uint32_t(mn % per_row * 2 + k % 8 * row_bytes) + uint32_t(mn / per_row) * leading +
               uint32_t(k / 8) * stride;
    } else {
      offset = uint32_t(mn % 8 * 2 + k % 8 * 16) + uint32_t(mn / 8) * stride + uint32_t(k / 8) * leading;
    }
    const uint32_t address = start + offset;
    return address ^ (address >> 7 & ((1u << swizzle_bits) - 1)) << 4;
  }
};

void check_descriptor(uint64_t bits, const char* which, Site site) {
  const Descriptor d(bits);
  if (bits >> 49 & 7) fail(site, "wgmma: the base offset of descriptor %s is not supported here", which);
  if (d.start >> 7 & ((1u << d.swizzle_bits) - 1)) {
    fail(site, "wgmma: descriptor %s starts at 0x%x, inside a %d-byte swizzle atom", which, d.start,
         16 << d.swizzle_bits);
  }
}

void read_operand(const Wgmma& op, uint64_t bits, int rows, bool mn_major, float* out) {
  const Descriptor d(bits);
  Fiber* reader = &op.block->fibers[op.first_thread];
  const int depth = depth_of(op), size = 32 / depth;
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < depth; ++k) {
      const uint32_t address = d.address(r, k, mn_major, size);
      if (address + uint32_t(size) > group->shared_top || address < 1024) {
        fail(op.site, "wgmma reads shared+0x%x, outside the block's shared memory", address);
      }
      const unsigned char* element = op.block->window + address;
      if (race && address % 16 == 0) race->access(reader, element, 16, false, true, op.site);
      uint32_t value = 0;
      memcpy(&value, element, size_t(size));
      out[r * kK + k] = to_float(value, op.shape.format);
    }
  }
}

void read_fragment(const Wgmma& op, float* out) {
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < 8; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, k = t % 4 * 2 + i % 2 + i / 4 * 8;
      out[row * kK + k] = to_float(op.fragment[t][i / 2] >> i % 2 * 16, op.shape.format);
    }
  }
}

template <class F>
void for_each_accumulator(int n, F&& f) {
  for (int t = 0; t < 128; ++t) {
    for (int j = 0; j < n / 2; ++j) {
      f(t, j, t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8, j / 4 * 8 + t % 4 * 2 + j % 2);
    }
  }
}

struct Scratch {  // on the heap: too big for the thread-local storage of a loaded library
  float a[kM * kK], b[kMaxN * kK], transposed[kK * kMaxN], d[kM * kMaxN];
};

Scratch& scratch() {
  static Scratch& memory = *new Scratch;
  return memory;
}

void read_operands(const Wgmma& op) {
  Scratch& s = scratch();
  if (op.shape.a_in_registers) {
    read_fragment(op, s.a);
  } else {
    read_operand(op, op.a, kM, op.shape.a_mn_major, s.a);
  }
  read_operand(op, op.b, op.shape.n, op.shape.b_mn_major, s.b);
}

void execute(const Wgmma& op) {
  Scratch& s = scratch();
  const int n = op.shape.n, depth = depth_of(op);
  read_operands(op);
  for (int j = 0; j < n; ++j) {
    for (int k = 0; k < depth; ++k) s.transposed[k * n + j] = s.b[j * kK + k];
  }
  const float* saved = op.saved.empty() ? nullptr : op.saved.data();
  for_each_accumulator(n, [&](int t, int j, int row, int column) {
    s.d[row * n + column] = !op.scale_d ? 0.0f : saved ? saved[t * (n / 2) + j] : op.accumulator[t][j];
  });
  for (int i = 0; i < kM; ++i) {
    if (settings().truncates) {
      for (int j = 0; j < n; ++j) {
        s.d[i * n + j] = tensor_core_sum(s.d[i * n + j], s.a + i * kK, 1, s.transposed + j, n, depth);
      }
      continue;
    }
    for (int k = 0; k < depth; ++k) {
      const float a = s.a[i * kK + k], *b = s.transposed + k * n;
      float* d = s.d + i * n;
      for (int j = 0; j < n; ++j) d[j] += a * b[j];
    }
  }
  for_each_accumulator(
      n, [&](int t, int j, int row, int column) { op.accumulator[t][j] = s.d[row * n + column]; });
}

// Its wait is over. One that was executed at once may have read its operands until now.
void retire(const Wgmma& op) {
  if (!op.executed) return execute(op);
  if (race) read_operands(op);
}

struct Payload {
  float* d;
  WgmmaShape shape;
  const uint32_t* fragment;
  uint64_t a, b;
  bool scale_d;
  Site site;
};

void complete_wgmma(void** payload, uint32_t) {
  const Payload& first = *static_cast<Payload*>(payload[0]);
  Warpgroup& warpgroup = own_warpgroup();
  Wgmma op{};
  op.block = current->block;
  op.shape = first.shape;
  op.a = first.a;
  op.b = first.b;
  op.scale_d = first.scale_d;
  op.first_thread = current->linear / 128 * 128;
  op.site = first.site;
  for (int t = 0; t < 128; ++t) {
    const Payload& p = *static_cast<Payload*>(payload[t]);
    if (p.a != first.a || p.b != first.b || p.scale_d != first.scale_d) {
      fail(first.site, "wgmma: descriptors or scale differ between the threads of the warpgroup");
    }
    op.accumulator[t] = p.d;
    if (p.fragment) memcpy(op.fragment[t], p.fragment, sizeof op.fragment[t]);
  }
  if (!first.shape.a_in_registers) check_descriptor(first.a, "A", first.site);
  check_descriptor(first.b, "B", first.site);
  if (!warpgroup.fenced) fail(first.site, "wgmma without a wgmma fence before it");
  bool chained = false;  // on accumulators that an unfinished instruction owns: it follows that one
  const auto look = [&](const Wgmma& other) {
    chained |= !other.executed && other.accumulator[0] == op.accumulator[0];
  };
  for (const std::vector<Wgmma>& ops : warpgroup.groups) {
    for (const Wgmma& other : ops) look(other);
  }
  for (const Wgmma& other : warpgroup.open) look(other);
  if (!chained && !late()) {
    execute(op);
    op.executed = true;
  } else if (!chained) {
    const size_t each = size_t(op.shape.n / 2);
    op.saved.resize(128 * each);
    for (size_t t = 0; t < 128; ++t) {
      memcpy(&op.saved[t * each], op.accumulator[t], each * sizeof(float));
      memset(op.accumulator[t], kPoison, each * sizeof(float));
    }
  }
  warpgroup.open.push_back(std::move(op));
}

void complete_fence(void**, uint32_t) { own_warpgroup().fenced = true; }

void complete_commit(void**, uint32_t) {
  Warpgroup& warpgroup = own_warpgroup();
  warpgroup.groups.push_back(std::move(warpgroup.open));
  warpgroup.open.clear();
}

void complete_wait(void** payload, uint32_t) {
  Warpgroup& warpgroup = own_warpgroup();
  const int groups = *static_cast<int*>(payload[0]);
  while (int(warpgroup.groups.size()) > groups) {
    for (const Wgmma& op : warpgroup.groups.front()) retire(op);
    warpgroup.groups.pop_front();
  }
}

}  // namespace

void wgmma(float* d, const WgmmaShape& shape, const uint32_t* a_fragment, uint64_t a, uint64_t b,
           bool scale_d, Site site) {
  Payload payload{d, shape, a_fragment, a, b, scale_d, site};
  warpgroup_collective(kOpWgmma, &payload, complete_wgmma, site);
}

void wgmma_fence(Site site) { warpgroup_collective(kOpFence, nullptr, complete_fence, site); }
void wgmma_commit(Site site) { warpgroup_collective(kOpCommit, nullptr, complete_commit, site); }
void wgmma_wait(int groups, Site site) {
  warpgroup_collective(kOpWait + groups, &groups, complete_wait, site);
}

// What a thread or a block must not leave behind --------------------------------------------------
void finish_thread(Fiber* fiber) {
  PendingCopies& copies = *fiber->copies;
  if (!copies.open_stores.empty()) fail(copies.open_stores[0].site, "this bulk store was never committed");
  for (const std::vector<BulkCopy>& stores : copies.stores) {
    if (!stores.empty())
      fail(stores[0].site, "the thread exits while this bulk store may still read shared memory");
  }
  copy_async_wait(-1);
}

void finish_block(Block& block) {
  const auto complain = [&](Site site, const char* text) {
    fail_block(block, std::string(site.file) + ":" + std::to_string(site.line) + ": " + text);
  };
  for (const BulkCopy& load : group->loads) {
    if (load.block == &block) return complain(load.site, "the block ended with this bulk load under way");
  }
  for (const Warpgroup& warpgroup : block.warpgroups) {
    if (!warpgroup.open.empty()) return complain(warpgroup.open[0].site, "this wgmma was never committed");
    for (const std::vector<Wgmma>& ops : warpgroup.groups) {
      if (!ops.empty()) return complain(ops[0].site, "this wgmma was never waited for");
    }
  }
  for (const Mbarrier& mbarrier : block.mbarriers) {
    if (!mbarrier.transactions) continue;
    char text[128];
    snprintf(text, sizeof text, "the block ended with %d bytes pending on mbarrier shared+0x%x",
             mbarrier.transactions, mbarrier.offset);
    return fail_block(block, text);
  }
}

}  // namespace fastdl::emulator
