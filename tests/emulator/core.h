// CPU execution of kernels: what the CUDA vocabulary (cuda.h) and the PTX wrappers (ptx.h) stand on.
// Threads are fibers, a block's shared memory is one arena, and every collective checks who takes part.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  uint64_t volume() const { return uint64_t(x) * y * z; }
};

namespace fastdl::emulator {

// Where a kernel called an instruction; as a default argument it is the caller's place.
struct Site {
  const char* file = nullptr;
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Order of the threads of a block, of the lanes of a warp and of the blocks of a grid.
enum class Order { kForward, kReverse, kRandom };
// When an asynchronous operation takes effect: at once, as late as its waits allow, or either.
enum class Completion { kEager, kLazy, kRandom };

struct Settings {  // FASTDL_ORDER=forward|reverse|random FASTDL_COMPLETION=eager|lazy|random FASTDL_SEED
  Order order = Order::kForward;
  Completion completion = Completion::kEager;
  uint64_t seed = 1;
  bool truncates = false;  // tensor cores cut their sums; otherwise they round every product to nearest
};
Settings& settings();

// The GPU that host code sees; tests change it to reach other dispatch paths.
struct Device {
  int multiprocessors = 132;
  int shared_bytes_per_block = 227 * 1024;
  int capability = 90;  // 10 * major + minor; from 90 on there are clusters
};
Device& device();

struct Block;
struct Warp;
struct PendingCopies;

enum class Wait : uint8_t {
  kNew,
  kReady,
  kBarrier,
  kWarp,
  kWarpgroup,
  kMbarrier,
  kGrid,
  kCluster,
  kPoll,
  kDone
};

struct Fiber {  // one CUDA thread
  uint3 thread_index, block_index;
  Block* block;
  Warp* warp;
  void* stack_pointer;
  char* stack;
  void* asan_stack;
  unsigned linear, lane,
      global;  // number in the block, in the warp, in the group of blocks that run together
  Wait wait;
  Site site;
  uint32_t wait_argument, wait_parity, cluster_phase;
  bool cluster_arrived;
  PendingCopies* copies;
};

// Initial-exec: reading it costs one instruction also in a dlopen'ed library.
extern __thread Fiber* current __attribute__((tls_model("initial-exec")));
extern __thread dim3 current_block_dim __attribute__((tls_model("initial-exec")));
extern __thread dim3 current_grid_dim __attribute__((tls_model("initial-exec")));

// Launch ------------------------------------------------------------------------------------------
struct Launch {
  dim3 grid, block, cluster;
  size_t shared_bytes = 0;
  bool cooperative = false;
  std::string name;
  size_t argument_bytes = 0;
};
// Runs a launch to its end. Returns CUDA's complaint about a bad configuration, or null; throws
// std::runtime_error with the diagnosis when the kernel does something wrong.
const char* run(const Launch& launch, void (*entry)(const void*), const void* arguments);
std::string kernel_name(const void* function);
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));
int resident_blocks(unsigned threads, size_t shared_bytes);
int argument_bytes_limit();  // of a launch; more from compute capability 7.0 on

// The stream, as host code sees it ----------------------------------------------------------------
bool is_capturing();
const char* copy_to_device(void* target, const void* source, size_t bytes);
uint64_t stream_place();  // the end of what is queued
bool has_passed(uint64_t place);

// Memory ------------------------------------------------------------------------------------------
void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name);
void* dynamic_shared();
uint32_t shared_address(const void* pointer, Site site);
// The bytes behind a shared-window address of this block or, in the upper byte, another block of the cluster.
void* shared_pointer(uint32_t address, size_t bytes, size_t alignment, Site site);
uint32_t map_address(uint32_t address, unsigned rank, Site site);  // the same offset in another block
void* map_shared(const void* pointer, unsigned rank, Site site);   // the same variable in another block
// Tells the race checker and the traffic counter of an access that the compiler's instrumentation cannot see.
void access(const void* pointer, size_t bytes, bool write, Site site);
void atomic_access(const void* pointer, size_t bytes, Site site);
void count_traffic(const void* pointer, size_t bytes, bool write);
void check_aligned(const void* pointer, size_t alignment, Site site);

// Collectives -------------------------------------------------------------------------------------
enum class Vote { kBallot, kAll, kAdd, kMax, kMin, kOr, kAnd, kMatch };
enum class Shuffle { kIndex, kUp, kDown, kXor };
enum class Scope { kBlock, kDevice, kSystem };

void barrier(int id, int threads, bool wait, Site site);  // threads 0: the whole block
int barrier_count(bool predicate, Site site);
void grid_barrier(Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void yield(Site site);  // lets the others run while this thread spins
void fence(Scope scope);
void proxy_fence();
unsigned cluster_rank();
unsigned cluster_size();

// Runs `complete` once all lanes of the mask have arrived with the same operation at the same place.
using Complete = void (*)(void** payload, uint32_t lanes);
void warp_collective(uint32_t mask, int operation, void* payload, Complete complete, Site site);
void warpgroup_collective(int operation, void* payload, Complete complete, Site site);
uint64_t shuffle(uint32_t mask, uint64_t value, unsigned argument, int width, Shuffle mode, Site site);
uint64_t vote(uint32_t mask, uint64_t value, Vote kind, Site site);

template <class T>
inline T shuffle_value(uint32_t mask, T value, unsigned argument, int width, Shuffle mode, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, argument, width, mode, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T, class F>
inline T atomic_update(T* pointer, F&& update, Site site) {
  atomic_access(pointer, sizeof(T), site);
  using Bits =
      std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  Bits* bits = reinterpret_cast<Bits*>(pointer);
  Bits old_bits = __atomic_load_n(bits, __ATOMIC_RELAXED), new_bits = 0;
  T value;
  do {
    memcpy(static_cast<void*>(&value), &old_bits, sizeof(T));
    const T updated = update(value);
    memcpy(&new_bits, static_cast<const void*>(&updated), sizeof(T));
  } while (
      !__atomic_compare_exchange_n(bits, &old_bits, new_bits, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return value;
}

}  // namespace fastdl::emulator
