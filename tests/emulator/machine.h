// The emulated machine's state; private to the emulator's own source files.
#pragma once
#include <deque>
#include <map>
#include <vector>
#include "core.h"
#include "instructions.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FASTDL_ASAN 1
#else
#define FASTDL_ASAN 0
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace fastdl::emulator {

constexpr uint32_t kWindowBytes = 320 * 1024;  // address space of one block's shared memory
constexpr uint32_t kRankShift = 24;            // an address of shared::cluster: rank << 24 | offset
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;
constexpr size_t kStackBytes = (FASTDL_ASAN ? 256 : 64) * 1024;
constexpr unsigned char kPoison = 0xFF;  // NaN in every floating type

struct PendingWarp {  // a warp collective that some lanes have reached
  uint32_t mask, arrived;
  int operation;
  Site site;
  Complete complete;
  void* payload[32];
};
struct Warp {
  uint32_t existing, exited;
  int pending_count;
  PendingWarp pending[8];
  Fiber* lanes[32];
};

struct Clock;  // race.cpp

struct Barrier {
  int arrived = 0, expected = 0, count = 0, result = 0;
  unsigned phase = 0;
  bool whole_block = false;
  Site site;
  std::vector<Fiber*> waiters, members;  // members: everyone of this phase, arrivals without waiting too
  Clock *arriving = nullptr, *completed = nullptr;  // cluster barriers: arrival and wait are apart
};

struct Mbarrier {
  uint32_t offset, phase, expected, pending;
  int32_t transactions;
  std::vector<Fiber*> waiters;
  Clock *arriving, *completed;  // what the arrivals of this phase and of the last phase had seen
};

struct Wgmma {
  Block* block;
  WgmmaShape shape;
  uint64_t a, b;
  bool scale_d;
  float* accumulator[128];
  uint32_t fragment[128][4];
  std::vector<float> saved;  // accumulators of a late instruction; their registers hold NaN meanwhile
  bool executed;
  unsigned first_thread;
  Site site;
};
struct Warpgroup {
  unsigned arrived = 0;
  int operation = 0;
  Site site;
  void* payload[128];
  bool fenced = false;
  std::vector<Wgmma> open;
  std::deque<std::vector<Wgmma>> groups;
};

struct CopyAsync {  // cp.async
  void* to;
  const void* from;
  int bytes, valid;
  Site site;
};
struct BulkCopy {  // a copy by the TMA unit between a global tensor or range and a block's shared memory
  unsigned char map[128];
  const unsigned char* global;  // plain bulk copies; null: the tensor map
  Block* block;
  uint32_t offset, mbarrier, bytes;
  int coordinate[5];
  bool reduce, executed;
  uint64_t source;  // of a store: what its bytes in shared memory were when it was issued
  Site site;
  struct Snapshot* snapshot;
};
struct PendingCopies {  // of one thread
  std::vector<CopyAsync> open;
  std::deque<std::vector<CopyAsync>> groups;
  std::vector<BulkCopy> open_stores;
  std::deque<std::vector<BulkCopy>> stores;
};

struct SharedVariable {
  const void* key;
  uint32_t offset, bytes;
  const char* name;
};
struct Block {
  uint3 index;
  unsigned rank;  // in its cluster
  unsigned threads, exited;
  Fiber* fibers;
  unsigned char* window = nullptr;
  uint32_t dynamic_bytes;
  std::vector<SharedVariable> variables;
  std::vector<std::pair<uint32_t, uint32_t>> red_zones;  // offset, bytes
  Barrier barriers[16];
  std::vector<Mbarrier> mbarriers;
  std::vector<Warpgroup> warpgroups;
};

// Blocks that run at the same time: one, a cluster, or the grid of a cooperative launch.
struct Group {
  const Launch* launch = nullptr;
  void (*entry)(const void*) = nullptr;
  const void* arguments = nullptr;
  unsigned threads = 0, block_count = 0, live = 0;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::deque<Fiber*> ready;
  std::vector<SharedVariable> shared_layout;  // offsets of variables, the same in every block of the launch
  uint32_t shared_top = 0;
  Barrier grid_barrier;
  std::vector<Barrier> cluster_barriers;  // by the cluster's first block
  std::deque<BulkCopy> loads;             // TMA loads under way
  uint64_t polls = 0, random_state = 1;
  void* root_stack_pointer = nullptr;
  const void* root_stack = nullptr;
  size_t root_stack_bytes = 0;
  bool failed = false;
  std::string error;
  unsigned fiber_count() const { return threads * block_count; }
  unsigned cluster_size() const { return unsigned(launch->cluster.volume()); }
  uint32_t random();
};
extern __thread Group* group;  // what this host thread is running

// collectives.cpp
void complete_without(Warp& warp);  // a lane exited: collectives that waited for it alone complete

// fiber.cpp
void switch_to(Fiber* next);
void switch_to_root();
void start(Fiber* first);
void release_stacks();

// scheduler.cpp
void wake(Fiber* fiber, bool front);
bool captured(const Launch& launch, void (*entry)(const void*),
              const void* arguments);  // if so, not to be run now
void block_here(Wait wait, Site site, uint32_t argument = 0, uint32_t parity = 0);
Fiber* pick();
void on_exit(Fiber* fiber);
bool late();  // whether the asynchronous operation at hand completes later
[[noreturn]] void fail_text(const std::string& text);
void fail_block(const Block& block, const std::string& text);

// shared_memory.cpp
void begin_shared(Block& block, size_t dynamic_bytes);
void end_shared(Block& block);
Block* block_of(uint32_t address, Site site);

// copies.cpp, tma.cpp, wgmma.cpp
bool complete_one_load();
void complete_transaction(Block& block, uint32_t offset, uint32_t bytes, Snapshot* snapshot, Site site);
Mbarrier& mbarrier_at(uint32_t address, Site site);
void finish_thread(Fiber* fiber);
void finish_block(Block& block);
std::string describe_mbarriers(const Block& block);

// The race checker; null in flavours without it.
struct RaceChecker {
  void (*begin_launch)();
  void (*begin_group)();
  void (*end_group)();
  // What the members did before precedes what the waiters do after.
  void (*synchronize)(const std::vector<Fiber*>& members, const std::vector<Fiber*>& waiters);
  void (*release)(Clock*& clock, Fiber* fiber);  // the fiber's past enters the clock
  void (*reset)(Clock*& clock);
  void (*acquire)(Clock* clock, Fiber* fiber);
  void (*access)(Fiber* fiber, const void* pointer, size_t bytes, bool write, bool async_proxy, Site site);
  void (*atomic)(Fiber* fiber, const void* pointer, size_t bytes, Site site);
  void (*fence)(Fiber* fiber);
  void (*proxy_fence)(Fiber* fiber);
  Snapshot* (*snapshot)(Fiber* fiber);  // an asynchronous operation's past, at its issue
  void (*async_access)(Snapshot* snapshot, const void* pointer, size_t bytes, bool write, Site site);
  void (*async_done)(Snapshot* snapshot, Clock*& clock);
  void (*allocate)(const Block& block, const void* pointer, size_t bytes);
};
extern RaceChecker* race;

// The counter of shared memory's passes; null unless a test asks.
struct BankCounter {
  void (*begin_group)();
  // An access of one lane, at an instruction's address or a site.
  void (*touch)(const Fiber* fiber, const void* pointer, size_t bytes, bool write, uintptr_t place,
                Site site);
  void (*matrices)(uint16_t* const (*rows)[8], int count, bool write, Site site);
  void (*meet)(const Fiber* fiber);   // it waits for all lanes of its warp
  void (*leave)(const Fiber* fiber);  // it has exited
};
extern BankCounter* banks;

// control.cpp
void count_launch(const std::string& name);
bool in_shared_memory(const void* pointer);

}  // namespace fastdl::emulator
