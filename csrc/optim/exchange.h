// What a walk over Python's tensors needs, at nanoseconds each: torch's DLPack exchange functions (DLPack 1.3),
// and the getter behind `.grad`. The caller holds the GIL.
#pragma once
#include <pybind11/pybind11.h>
#include "optim/dlpack.h"
#include "torch_glue.h"

namespace fastdl::optim {

namespace py = pybind11;

class Exchange {
 public:
  // Null where this torch offers no exchange functions that we know.
  static const Exchange* get() {
    static const Exchange* const exchange = make();
    return exchange;
  }

  // Describes a tensor in place; false for anything but a plain tensor or parameter on a known device.
  bool describe(PyObject* object, dlpack::Tensor& out) const {
    if (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_) return false;
    if (api_->describe(object, &out) == 0) return true;
    PyErr_Clear();  // sparse, or of a dtype that DLPack has no word for
    return false;
  }

  // `parameter.grad`, a new reference. The parameter has been described.
  PyObject* grad(PyObject* parameter) const { return grad_->get(parameter, grad_->closure); }

  // A view that negates lazily says nothing of it to DLPack; strides give it away unless there are none.
  bool is_plain(PyObject* tensor, const dlpack::Tensor& t) const {
    return t.dim != 0 || !py::handle(tensor).attr("is_neg")().cast<bool>();
  }

  void* stream(dlpack::Device device) const {
    void* stream = nullptr;
    if (device.type != dlpack::kCpu && api_->current_stream(device.type, device.index, &stream)) {
      throw py::error_already_set();
    }
    return stream;
  }

 private:
  static const Exchange* make() {
    const py::object tensor = py::module_::import("torch").attr("Tensor");
    const char* const name = "__dlpack_c_exchange_api__";
    if (!py::hasattr(tensor, name)) return nullptr;
    const auto* api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(tensor.attr(name).ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    const py::object base = py::module_::import("torch").attr("_C").attr("TensorBase");
    const py::object grad = base.attr("__dict__")["grad"];
    if (api->major_version != dlpack::kMajorVersion || api->minor_version < dlpack::kMinorVersion ||
        Py_TYPE(grad.ptr()) != &PyGetSetDescr_Type) {
      return nullptr;
    }
    auto* e = new Exchange;
    e->api_ = api;
    e->tensor_ = reinterpret_cast<PyTypeObject*>(py::object(tensor).release().ptr());
    e->parameter_ = reinterpret_cast<PyTypeObject*>(
        py::object(py::module_::import("torch.nn").attr("Parameter")).release().ptr());
    e->grad_ = reinterpret_cast<PyGetSetDescrObject*>(py::object(grad).release().ptr())->d_getset;
    return e;
  }

  const dlpack::ExchangeApi* api_;
  PyTypeObject *tensor_, *parameter_;
  const PyGetSetDef* grad_;
};

// torch's name of a DLPack dtype; false for those that no rule knows.
inline bool known_dtype(dlpack::DataType dtype, ScalarType& out) {
  if (dtype.lanes != 1 || (dtype.code != dlpack::kFloat && dtype.code != dlpack::kBfloat)) return false;
  if (dtype.code == dlpack::kBfloat) return out = ScalarType::BFloat16, dtype.bits == 16;
  out = dtype.bits == 64 ? ScalarType::Double : dtype.bits == 32 ? ScalarType::Float : ScalarType::Half;
  return dtype.bits == 64 || dtype.bits == 32 || dtype.bits == 16;
}

}  // namespace fastdl::optim
