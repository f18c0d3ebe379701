// What tests set and read, by plain C functions (ctypes): order, completion, the device, traffic, launches.
#include <cstdlib>
#include <mutex>
#include "machine.h"

namespace fastdl::emulator {
namespace {

struct Counted {
  uint64_t launches, bytes_read, bytes_written;
};
struct Counters {
  std::mutex mutex;
  std::map<std::string, Counted> kernels;
  Counted total{};
  Counted* of_kernel = nullptr;  // the running launch's
  std::string names;             // of the last answer
};
Counters& counters() {
  static Counters& all = *new Counters;
  return all;
}

char initial(const char* variable) {
  const char* value = getenv(variable);
  return value ? *value : '\0';
}

Settings from_environment() {
  Settings s;
  const char order = initial("FASTDL_ORDER"), completion = initial("FASTDL_COMPLETION");
  const char* const order_text = getenv("FASTDL_ORDER");
  if (order == 'r') s.order = order_text[1] == 'e' ? Order::kReverse : Order::kRandom;
  if (completion == 'l') s.completion = Completion::kLazy;
  if (completion == 'r') s.completion = Completion::kRandom;
  if (const char* seed = getenv("FASTDL_SEED")) s.seed = strtoull(seed, nullptr, 10);
  return s;
}

}  // namespace

Settings& settings() {
  static Settings current_settings = from_environment();
  return current_settings;
}

Device& device() {
  static Device current_device;
  return current_device;
}

void count_launch(const std::string& name) {
  Counters& c = counters();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.of_kernel = &c.kernels[name];
  ++c.of_kernel->launches;
  ++c.total.launches;
}

bool in_shared_memory(const void* pointer) {
  const auto inside = [&](const Block& block) {
    return uintptr_t(pointer) - uintptr_t(block.window) < kWindowBytes;
  };
  if (inside(*current->block)) return true;
  const Block* first = current->block - current->block->rank;
  for (unsigned i = 0; i < group->cluster_size(); ++i) {
    if (inside(first[i])) return true;
  }
  return false;
}

void count_traffic(const void* pointer, size_t bytes, bool write) {
  if (!current || in_shared_memory(pointer)) return;
  Counters& c = counters();
  (write ? c.total.bytes_written : c.total.bytes_read) += bytes;
  (write ? c.of_kernel->bytes_written : c.of_kernel->bytes_read) += bytes;
}

}  // namespace fastdl::emulator

extern "C" {
using namespace fastdl::emulator;

// order: 0 forward, 1 reverse, 2 random; completion: 0 eager, 1 lazy, 2 random.
void fastdl_emulator_settings(int order, int completion, uint64_t seed) {
  settings() = {Order(order), Completion(completion), seed, false};
}
// Whether tensor cores cut their sums, as those of Ampere and Hopper are said to; the settings end it.
void fastdl_emulator_truncation(int on) { settings().truncates = on != 0; }
void fastdl_emulator_device(int multiprocessors, int shared_bytes_per_block, int capability) {
  device() = {multiprocessors, shared_bytes_per_block, capability};
}
void fastdl_emulator_reset_counters() {
  Counters& c = counters();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.kernels.clear();
  c.total = {};
}
// Sums of all kernels whose name contains `part`; an empty part means all.
void fastdl_emulator_counters(const char* part, uint64_t* launches, uint64_t* bytes_read,
                              uint64_t* bytes_written) {
  Counters& c = counters();
  const std::lock_guard<std::mutex> lock(c.mutex);
  *launches = *bytes_read = *bytes_written = 0;
  for (const auto& [name, counted] : c.kernels) {
    if (name.find(part) == std::string::npos) continue;
    *launches += counted.launches;
    *bytes_read += counted.bytes_read;
    *bytes_written += counted.bytes_written;
  }
}
// The kernels launched since the reset, one a line; valid until the next call.
const char* fastdl_emulator_kernels() {
  Counters& c = counters();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.names.clear();
  for (const auto& [name, counted] : c.kernels) c.names += name + "\n";
  return c.names.c_str();
}
}
