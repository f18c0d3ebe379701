// The one stream as host code sees it: copies, marks, and a captured graph that tests replay.
#include <cstring>
#include <functional>
#include <memory>
#include "machine.h"

namespace fastdl::emulator {
namespace {

struct Stream {
  bool capturing = false;
  std::vector<std::function<void()>> graph;
  uint64_t place = 0, held_at = UINT64_MAX, copies = 0;
};
Stream& stream() {
  static Stream& one = *new Stream;
  return one;
}

}  // namespace

bool is_capturing() { return stream().capturing; }

const char* copy_to_device(void* target, const void* source, size_t bytes) {
  ++stream().copies;
  if (!stream().capturing) {
    memcpy(target, source, bytes);
  } else {
    stream().graph.push_back([=] { memcpy(target, source, bytes); });
  }
  return nullptr;
}

bool captured(const Launch& launch, void (*entry)(const void*), const void* arguments) {
  if (!stream().capturing) return false;
  const std::shared_ptr<std::max_align_t[]> kept(
      new std::max_align_t[launch.argument_bytes / sizeof(std::max_align_t) + 1]);
  memcpy(kept.get(), arguments, launch.argument_bytes);
  stream().graph.push_back([=] { run(launch, entry, kept.get()); });
  return true;
}

uint64_t stream_place() { return ++stream().place; }
bool has_passed(uint64_t place) { return place <= stream().held_at; }

}  // namespace fastdl::emulator

extern "C" {
using namespace fastdl::emulator;

// While capturing, copies and launches go into a graph instead of being done. Capturing begins with an empty one.
void fastdl_emulator_capture(int on) {
  stream().capturing = on;
  if (on) stream().graph.clear();
}
void fastdl_emulator_replay() {
  for (const auto& node : stream().graph) node();
}
// While held, the device passes no mark.
void fastdl_emulator_hold(int on) { stream().held_at = on ? stream().place : UINT64_MAX; }
uint64_t fastdl_emulator_copies() { return stream().copies; }
}
