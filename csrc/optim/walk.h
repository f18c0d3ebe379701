// A look at everything a step reads in Python: parameter groups, options, parameters, gradients and states.
// Nothing is believed of the step before but the objects' layout, and that is compared: no tensor is kept.
#pragma once
#include <cstring>
#include "optim/exchange.h"
#include "optim/records.h"

namespace fastdl::optim {

// Whether an option that is the same object has the same value.
inline bool is_constant(PyObject* value) {
  if (PyTuple_CheckExact(value)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
      if (!is_constant(PyTuple_GET_ITEM(value, i))) return false;
    }
    return true;
  }
  return value == Py_None || PyBool_Check(value) || PyFloat_CheckExact(value) || PyLong_CheckExact(value) ||
         PyUnicode_CheckExact(value);
}

// A group's options as they were when its row was made. The learning rate is read anew at every step.
class OptionWatch {
 public:
  // False where an option is another, or could be.
  bool same(PyObject* group) const {
    if (PyDict_GET_SIZE(group) != Py_ssize_t(kept_.size())) return false;
    Py_ssize_t place = 0;
    PyObject *key = nullptr, *value = nullptr;
    for (size_t i = 0; PyDict_Next(group, &place, &key, &value); ++i) {
      const auto& [name, before] = kept_[i];
      if (key != name.ptr()) return false;
      if (before.ptr() && (value != before.ptr() || !is_constant(value)) && !equal(value, before.ptr())) return false;
    }
    return true;
  }
  void take(PyObject* group) {
    kept_.clear();
    Py_ssize_t place = 0;
    PyObject *key = nullptr, *value = nullptr;
    while (PyDict_Next(group, &place, &key, &value)) {
      const bool apart = is_name(key, "params") || is_name(key, "lr");
      kept_.emplace_back(py::reinterpret_borrow<py::object>(key),
                         apart ? py::object() : py::reinterpret_borrow<py::object>(value));
    }
  }

 private:
  static bool is_name(PyObject* key, const char* name) {
    return PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, name) == 0;
  }
  static bool equal(PyObject* a, PyObject* b) {
    return PyFloat_CheckExact(a) && PyFloat_CheckExact(b) && PyFloat_AS_DOUBLE(a) == PyFloat_AS_DOUBLE(b);
  }

  std::vector<std::pair<py::object, py::object>> kept_;
};

// Where an entry of a parameter's state goes: Record's member of this index, or nowhere.
enum Role : int { kStepRole, kFirstState, kMasterRole = kFirstState + kMaxStates, kEmaRole, kNoRole };

inline Operand& operand_of(Record& r, int role) {
  if (role == kStepRole) return r.step;
  if (role == kMasterRole) return r.master;
  return role == kEmaRole ? r.ema : r.state[role - kFirstState];
}

// The one value of a CPU tensor.
inline double value_of(const dlpack::Tensor& t, ScalarType dtype) {
  double value = 0;
  dispatch_floating("optim_step_", dtype,
                    [&](auto zero) { value = double(*static_cast<const decltype(zero)*>(t.address())); });
  return value;
}

// A reference to a Python object that may be taken and dropped a thousand times a step.
class Reference {
 public:
  explicit Reference(PyObject* object) : object_(object) {}
  Reference(Reference&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Reference(const Reference&) = delete;
  ~Reference() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

}  // namespace fastdl::optim
