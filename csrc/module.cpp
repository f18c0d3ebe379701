// fastdl._C: what is not a tensor op. Loading it also registers the tensor ops with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <string>

#include "sources.h"  // written by setup.py

#if defined(FASTDL_CUDA)
#include <cuda_runtime_api.h>
#define FASTDL_TEXT(...) #__VA_ARGS__
#define FASTDL_TEXT_OF(...) FASTDL_TEXT(__VA_ARGS__)
#endif

namespace py = pybind11;

void bind_augment(py::module_&);
void bind_batch_norm(py::module_&);
void bind_gemm(py::module_&);
void bind_optim(py::module_&);

namespace {

py::dict build_info() {
  py::dict info;
#if defined(FASTDL_CUDA)
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["archs"] = FASTDL_TEXT_OF(FASTDL_ARCHS);
#else
  info["cuda"] = py::none();
  info["archs"] = py::none();
#endif
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["torch_abi"] = "2.10";
  info["sources"] = FASTDL_SOURCES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastdl";
  m.def("build_info", &build_info,
        "What this library was built with: CUDA toolkit and archs (None without), compiler, torch ABI, "
        "digest of the sources");
  bind_augment(m);
  bind_batch_norm(m);
  bind_gemm(m);
  bind_optim(m);
}
