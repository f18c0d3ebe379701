// Pinned host memory that copies to the device are read from: a ring of slots, grown where all are in flight,
// so that the host never waits and never overwrites what the device has yet to read.
#pragma once
#include <cstring>
#include <memory>
#include "optim/exchange.h"
#include "optim/api.h"

namespace fastdl::optim {

class Staging {
 public:
  // make(bytes): a pinned uint8 tensor.
  Staging(const DeviceLibrary& library, py::object make) : library_(library), make_(std::move(make)) {}
  Staging(const Staging&) = delete;
  ~Staging() {
    for (const Slot& slot : slots_) library_.delete_mark(slot.mark);
  }

  // Brings bytes to the device in the stream's order. A graph that is being captured reads the slot at every
  // replay: it is then never used again.
  void send(void* target, const void* source, size_t bytes, void* stream, bool capturing) {
    Slot& slot = free_slot(bytes, capturing);
    std::memcpy(slot.memory, source, bytes);
    check_launch(library_.copy_to_device(target, slot.memory, bytes, stream), "optim_step_");
    if (capturing) {
      slot.baked = true;
    } else {
      check_launch(library_.set_mark(slot.mark, stream), "optim_step_");
    }
  }

  // Makes a slot before it is needed: a capture allows no allocation of pinned memory everywhere.
  void reserve(size_t bytes) { add(bytes); }
  size_t size() const { return slots_.size(); }

 private:
  struct Slot {
    py::object tensor;
    void* memory;
    size_t bytes;
    Mark* mark;
    bool baked = false;
  };

  Slot& free_slot(size_t bytes, bool capturing) {
    for (Slot& slot : slots_) {
      // In a capture a mark must not be asked: what was never used comes first, from `reserve`.
      if (slot.baked || slot.bytes < bytes) continue;
      if (capturing ? &slot == spare() : &slot != spare() && library_.has_passed(slot.mark)) return slot;
    }
    return add(bytes);
  }
  // The last slot waits for a capture.
  Slot* spare() { return slots_.empty() || slots_.back().baked ? nullptr : &slots_.back(); }

  Slot& add(size_t bytes) {
    py::object tensor = make_(bytes);
    dlpack::Tensor t;
    if (!Exchange::get()->describe(tensor.ptr(), t)) throw py::type_error("OptimReplay: no pinned memory");
    slots_.insert(slots_.begin(), Slot{tensor, t.address(), bytes, library_.new_mark()});
    return slots_.front();
  }

  const DeviceLibrary& library_;
  py::object make_;
  std::vector<Slot> slots_;
};

}  // namespace fastdl::optim
