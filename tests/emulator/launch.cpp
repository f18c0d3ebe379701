// A launch from its configuration to the end of its last block.
#include <algorithm>
#include <cxxabi.h>
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include "machine.h"

namespace fastdl::emulator {
namespace {

constexpr unsigned kThreadsPerMultiprocessor = 2048, kBlocksPerMultiprocessor = 32;
constexpr size_t kSharedReserve = 1024;  // of each resident block

uint3 coordinates(uint64_t linear, const dim3& extent) {
  return {unsigned(linear % extent.x), unsigned(linear / extent.x % extent.y),
          unsigned(linear / extent.x / extent.y)};
}

uint3 block_index(const Launch& launch, uint64_t number, unsigned rank) {
  const dim3 c = launch.cluster, clusters(launch.grid.x / c.x, launch.grid.y / c.y, launch.grid.z / c.z);
  const uint3 outer = coordinates(number, clusters), inner = coordinates(rank, c);
  return {outer.x * c.x + inner.x, outer.y * c.y + inner.y, outer.z * c.z + inner.z};
}

void set_up_block(unsigned i, uint64_t group_number) {
  Group& g = *group;
  const Launch& launch = *g.launch;
  Block& block = g.blocks[i];
  const unsigned cluster = g.cluster_size(), warps = (g.threads + 31) / 32;
  block.rank = i % cluster;
  block.index = block_index(launch, launch.cooperative ? i / cluster : group_number, block.rank);
  block.threads = g.threads;
  block.exited = 0;
  block.fibers = &g.fibers[size_t(i) * g.threads];
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  block.warpgroups.assign(g.threads / 128, Warpgroup{});
  g.cluster_barriers[i] = Barrier{};
  begin_shared(block, launch.shared_bytes);
  for (unsigned w = 0; w < warps; ++w) {
    Warp& warp = g.warps[size_t(i) * warps + w];
    const unsigned lanes = std::min(32u, g.threads - w * 32);
    warp.existing = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warp.exited = 0;
    warp.pending_count = 0;
  }
  for (unsigned t = 0; t < g.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    PendingCopies* copies = fiber.copies;
    if (copies) *copies = PendingCopies{};
    fiber = Fiber{};
    fiber.copies = copies;
    fiber.thread_index = coordinates(t, launch.block);
    fiber.block_index = block.index;
    fiber.block = &block;
    fiber.warp = &g.warps[size_t(i) * warps + t / 32];
    fiber.linear = t;
    fiber.lane = t % 32;
    fiber.global = i * g.threads + t;
    fiber.warp->lanes[t % 32] = &fiber;
  }
}

void run_group(uint64_t number) {
  Group& g = *group;
  g.random_state = (settings().seed * 0x9E3779B97F4A7C15ull) ^ (number * 0xD1B54A32D192ED03ull + 1);
  if (!g.random_state) g.random_state = 1;
  g.ready.clear();
  g.loads.clear();
  g.polls = 0;
  g.live = g.fiber_count();
  g.grid_barrier = Barrier{};
  if (race) race->begin_group();
  if (banks) banks->begin_group();
  for (unsigned i = 0; i < g.block_count; ++i) set_up_block(i, number);
  for (unsigned i = 0; i < g.fiber_count(); ++i) g.ready.push_back(&g.fibers[i]);
  if (settings().order == Order::kReverse) std::reverse(g.ready.begin(), g.ready.end());
  start(pick());
  if (g.failed) release_stacks();
  for (unsigned i = 0; i < g.block_count; ++i) {
    if (!g.failed) finish_block(g.blocks[i]);
    end_shared(g.blocks[i]);
  }
  if (race) race->end_group();
}

const char* check(const Launch& launch) {
  const uint64_t threads = launch.block.volume(), blocks = launch.grid.volume();
  const unsigned cluster = unsigned(launch.cluster.volume());
  if (!threads || !blocks || !cluster) return "invalid configuration argument: empty block, grid or cluster";
  if (threads > 1024 || launch.block.z > 64)
    return "invalid configuration argument: over 1024 threads in a block";
  if (launch.grid.x > 0x7FFFFFFFu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    return "invalid configuration argument: grid over (2147483647, 65535, 65535)";
  }
  if (launch.shared_bytes > size_t(device().shared_bytes_per_block))
    return "invalid argument: too much shared memory";
  if (launch.argument_bytes - sizeof(void*) >
      size_t(argument_bytes_limit()))  // the kernel's address is no argument
    return "invalid argument: too many arguments";
  if (cluster > 1 && device().capability < 90) return "invalid argument: this device has no clusters";
  if (cluster > 8 || launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y ||
      launch.grid.z % launch.cluster.z) {
    return "invalid cluster size: over 8 blocks, or not a divisor of the grid";
  }
  if (launch.cooperative &&
      blocks > uint64_t(resident_blocks(unsigned(threads), launch.shared_bytes)) * device().multiprocessors) {
    return "too many blocks in cooperative launch";
  }
  return nullptr;
}

void prepare_group(const Launch& launch, void (*entry)(const void*), const void* arguments, uint64_t blocks) {
  Group& g = *group;
  g.launch = &launch;
  g.entry = entry;
  g.arguments = arguments;
  g.threads = unsigned(launch.block.volume());
  g.block_count = unsigned(blocks);
  g.failed = false;
  g.root_stack = nullptr;
  g.shared_layout.clear();
  const size_t fibers = size_t(g.threads) * blocks, warps = size_t((g.threads + 31) / 32) * blocks;
  if (g.blocks.size() < blocks) g.blocks.resize(blocks), g.cluster_barriers.resize(blocks);
  if (g.fibers.size() < fibers) g.fibers.resize(fibers, Fiber{});
  if (g.warps.size() < warps) g.warps.resize(warps);
}

}  // namespace

int argument_bytes_limit() { return device().capability >= 70 ? 32764 : 4096; }

int resident_blocks(unsigned threads, size_t shared_bytes) {
  const unsigned warps = (threads + 31) / 32;
  const size_t by_threads = kThreadsPerMultiprocessor / (warps * 32);
  const size_t by_shared =
      (size_t(device().shared_bytes_per_block) + kSharedReserve) / (shared_bytes + kSharedReserve);
  return int(std::min({by_threads, by_shared, size_t(kBlocksPerMultiprocessor)}));
}

std::string kernel_name(const void* function) {
  Dl_info info{};
  if (!dladdr(function, &info) || !info.dli_sname) return "a kernel of an unnamed namespace";
  int status = 0;
  const std::unique_ptr<char, decltype(&free)> demangled(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), free);
  std::string name = status == 0 ? demangled.get() : info.dli_sname;
  if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
  for (size_t i = 0, depth = 0; i < name.size(); ++i) {  // without the parameters
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) return name.substr(0, i);
  }
  return name;
}

const char* run(const Launch& launch, void (*entry)(const void*), const void* arguments) {
  static std::mutex one_launch_at_a_time;  // as in one stream; statistics and the race checker rely on it
  static Group& machine = *new Group;
  if (current) throw std::runtime_error("kernel: launch from inside a kernel");
  if (const char* error = check(launch)) return error;
  if (captured(launch, entry, arguments)) return nullptr;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  group = &machine;
  const uint64_t blocks = launch.grid.volume(),
                 together = launch.cooperative ? blocks : launch.cluster.volume();
  prepare_group(launch, entry, arguments, together);
  current_block_dim = launch.block;
  current_grid_dim = launch.grid;
  count_launch(launch.name);
  if (race) race->begin_launch();
  const uint64_t groups = blocks / together;
  const Order order = settings().order;
  uint64_t stride = 1;  // a random order of the blocks: steps of a number prime to their count
  if (order == Order::kRandom && groups > 2) {
    stride = 0x9E3779B1u % groups | 1;
    while (std::gcd(stride, groups) != 1) stride += 2;
  }
  for (uint64_t i = 0; i < groups && !machine.failed; ++i) {
    run_group(order == Order::kReverse  ? groups - 1 - i
              : order == Order::kRandom ? (i * stride + settings().seed) % groups
                                        : i);
  }
  group = nullptr;
  if (machine.failed) throw std::runtime_error(machine.error);
  return nullptr;
}

}  // namespace fastdl::emulator
