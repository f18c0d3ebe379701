// What a walk over Python's tensors needs, at nanoseconds each: torch's stable functions on the tensor inside
// an object, or DLPack's exchange functions (DLPack 1.3), and the getter behind `.grad`. The caller holds the
// GIL.
#pragma once
#include <pybind11/pybind11.h>
#include <algorithm>
#include "optim/dlpack.h"
#include "torch_glue.h"

namespace fastdl::optim {

namespace py = pybind11;

// torch's name of a DLPack dtype; false for those that no rule knows.
inline bool known_dtype(dlpack::DataType dtype, ScalarType& out) {
  if (dtype.lanes != 1 || (dtype.code != dlpack::kFloat && dtype.code != dlpack::kBfloat)) return false;
  if (dtype.code == dlpack::kBfloat) return out = ScalarType::BFloat16, dtype.bits == 16;
  out = dtype.bits == 64 ? ScalarType::Double : dtype.bits == 32 ? ScalarType::Float : ScalarType::Half;
  return dtype.bits == 64 || dtype.bits == 32 || dtype.bits == 16;
}

// DLPack's name of a floating dtype of torch's; false for others.
inline bool dlpack_dtype(ScalarType dtype, dlpack::DataType& out) {
  switch (dtype) {
    case ScalarType::Double:
      return out = {dlpack::kFloat, 64, 1}, true;
    case ScalarType::Float:
      return out = {dlpack::kFloat, 32, 1}, true;
    case ScalarType::Half:
      return out = {dlpack::kFloat, 16, 1}, true;
    case ScalarType::BFloat16:
      return out = {dlpack::kBfloat, 16, 1}, true;
    default:
      return false;
  }
}

class Exchange {
 public:
  // Null where this torch offers no exchange functions that we know.
  static Exchange* get() {
    static Exchange* const exchange = make();
    return exchange;
  }

  // Describes a tensor in place; false for anything but a plain tensor or parameter on a known device.
  bool describe(PyObject* object, dlpack::Tensor& out) const {
    if (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_) return false;
    return (inside_ != 0 && describe_inside(object, inside_, out)) || describe_by_dlpack(object, out);
  }

  // Whether objects are looked into; off for tests of the other way. Returns what was.
  bool look_inside(bool on) {
    const bool before = inside_ != 0;
    inside_ = on ? find_inside(*this) : 0;
    return before;
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
  bool describe_by_dlpack(PyObject* object, dlpack::Tensor& out) const {
    if (api_->describe(object, &out) == 0) return true;
    PyErr_Clear();  // sparse, or of a dtype that DLPack has no word for
    return false;
  }

  // Saves 25 ns a tensor against DLPack (AMD EPYC). The tensor inside is looked up anew each time:
  // torch.utils.swap_tensors exchanges it.
  static bool describe_inside(PyObject* object, Py_ssize_t inside, dlpack::Tensor& out) {
    const auto tensor = reinterpret_cast<AtenTensorHandle>(reinterpret_cast<char*>(object) + inside);
    int64_t dim;
    int32_t dtype, type, index;
    if (aoti_torch_get_data_ptr(tensor, &out.data) || aoti_torch_get_dim(tensor, &dim) ||
        aoti_torch_get_sizes(tensor, &out.sizes) || aoti_torch_get_strides(tensor, &out.strides) ||
        aoti_torch_get_dtype(tensor, &dtype) || aoti_torch_get_device_type(tensor, &type) ||
        aoti_torch_get_device_index(tensor, &index)) {
      return false;  // sparse, or without memory
    }
    const bool on_cpu = type == int32_t(torch::headeronly::DeviceType::CPU);
    if (!on_cpu && type != int32_t(torch::headeronly::DeviceType::CUDA)) return false;
    out.device = on_cpu ? dlpack::Device{dlpack::kCpu, 0} : dlpack::Device{dlpack::kCuda, index};
    out.dim = int32_t(dim);
    out.byte_offset = 0;
    return dlpack_dtype(ScalarType(dtype), out.dtype);
  }

  // Bytes into an object where its tensor is, by `_cdata` and by DLPack's word; 0: not found there, or in
  // another form than torch's stable functions take.
  static Py_ssize_t find_inside(const Exchange& e) {
    const py::module_ torch = py::module_::import("torch");
    const py::object whole = torch.attr("zeros")(py::make_tuple(3, 5, 2)),
                     view = whole[py::int_(1)].attr("t")();
    const py::object half = torch.attr("nn").attr("Parameter")(view.attr("bfloat16")());
    Py_ssize_t inside = 0;
    for (const py::object& tensor : {whole, view, half, py::object(whole.attr("double")().attr("sum")())}) {
      const auto pointer = tensor.attr("_cdata").cast<uintptr_t>();
      const auto* words = reinterpret_cast<const uintptr_t*>(tensor.ptr());
      const auto* end = words + Py_TYPE(tensor.ptr())->tp_basicsize / Py_ssize_t(sizeof(uintptr_t));
      const auto place = (std::find(words, end, pointer) - words) * Py_ssize_t(sizeof(uintptr_t));
      dlpack::Tensor a, b;
      if (place == Py_TYPE(tensor.ptr())->tp_basicsize || (inside != 0 && place != inside) ||
          !describe_inside(tensor.ptr(), place, a) || !e.describe_by_dlpack(tensor.ptr(), b) || !a.is(b)) {
        return 0;
      }
      inside = place;
    }
    return inside;
  }

  static Exchange* make() {
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
    e->inside_ = find_inside(*e);
    return e;
  }

  const dlpack::ExchangeApi* api_;
  PyTypeObject *tensor_, *parameter_;
  const PyGetSetDef* grad_;
  Py_ssize_t inside_ = 0;
};

}  // namespace fastdl::optim
