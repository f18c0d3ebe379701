// Augmentation on the CPU: as an op on tensors, and through pybind11 on NumPy arrays of any strides. Both run
// on torch's threads without the interpreter's lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <string>
#include <tuple>
#include "augment/plan.h"
#include "augment/worker.h"

namespace py = pybind11;

namespace fastdl::augment {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

template <class In, class Out>
void run_typed(const Problem& p) {
  const int64_t image = p.plan.height * int64_t(p.plan.width) * int64_t(p.channels.size());
  torch::stable::parallel_for(0, p.n * p.plan.copies, kGrain / image + 1,
                              [&](int64_t begin, int64_t end) { Worker<In, Out>(p).run(begin, end); });
}

template <class In>
void run_from(const Problem& p, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return run_typed<In, float>(p);
    case ScalarType::Half:
      return run_typed<In, Half>(p);
    case ScalarType::BFloat16:
      return run_typed<In, BFloat16>(p);
    case ScalarType::Byte:
      return run_typed<In, uint8_t>(p);
    default:
      STD_TORCH_CHECK(false, "augment: dtype must be float32, float16, bfloat16 or uint8, got ",
                      dtype_name(dtype));
  }
}

void run(const Problem& p, ScalarType dtype) {
  if (p.n > 0) p.floating ? run_from<float>(p, dtype) : run_from<uint8_t>(p, dtype);
}

void check_index(const int64_t* index, int64_t n, int64_t images) {
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < images, "augment: index must lie in [0, ", images, "), got ",
                    index[i], " at ", i);
  }
}

}  // namespace

// input (N, C, H, W) uint8 or float32, any strides; index (M) int64 or none -> output, boxes (M, copies, 5)
// int32.
std::tuple<Tensor, Tensor> augment_cpu(const Tensor& input, const optional<Tensor>& index, int64_t crop,
                                       std::vector<int64_t> size, std::vector<int64_t> padding,
                                       int64_t padding_mode, bool hflip, std::vector<double> scale,
                                       std::vector<double> ratio, std::vector<double> mean,
                                       std::vector<double> std, ScalarType dtype, bool channels_last,
                                       int64_t seed, int64_t counter) {
  const Options options{crop, size, padding, padding_mode, hflip, scale, ratio, mean, std};
  const Request request = check_request(input, index, options);
  Problem p{request.plan, request.channels, input.const_data_ptr(), request.floating};
  for (int i = 0; i < 4; ++i) p.stride[i] = input.stride(i);
  p.n = request.n, p.channels_last = channels_last;
  p.index = index ? index->const_data_ptr<int64_t>() : nullptr;
  if (p.index) check_index(p.index, p.n, input.size(0));
  auto [output, boxes] = make_outputs(input, request, dtype, channels_last);
  p.output = output.mutable_data_ptr(), p.boxes = boxes.mutable_data_ptr<int32_t>();
  p.seed = uint64_t(seed), p.counter = uint64_t(counter);
  run(p, dtype);
  return {output, boxes};
}

FASTDL_CPU_LIBRARY(m) { m.impl("augment", TORCH_BOX(&augment_cpu)); }

// The same on a NumPy array (N, H, W, C) of any strides, also read-only; output and boxes lie at addresses.
void augment_array(const py::buffer& images, const std::optional<py::buffer>& index, int64_t crop,
                   std::vector<int64_t> size, std::vector<int64_t> padding, int64_t padding_mode, bool hflip,
                   std::vector<double> scale, std::vector<double> ratio, std::vector<double> mean,
                   std::vector<double> std, const std::string& dtype, bool channels_last, int64_t seed,
                   int64_t counter, uintptr_t output, uintptr_t boxes) {
  const py::buffer_info info = images.request();
  STD_TORCH_CHECK(info.ndim == 4 && (info.format == "B" || info.format == "f"),
                  "augment: arrays must be (N, H, W, C) of uint8 or float32");
  const bool floating = info.format == "f";
  const Options options{crop, size, padding, padding_mode, hflip, scale, ratio, mean, std};
  Problem p{make_plan(options, info.shape[1], info.shape[2]),
            make_channels(options, info.shape[3], !floating), info.ptr, floating};
  constexpr int kAxis[4] = {0, 3, 1, 2};
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(info.strides[kAxis[i]] % info.itemsize == 0, "augment: strides must be whole elements");
    p.stride[i] = info.strides[kAxis[i]] / info.itemsize;
  }
  p.n = info.shape[0];
  std::optional<py::buffer_info> rows;
  if (index) {
    rows.emplace(index->request());
    STD_TORCH_CHECK(rows->ndim == 1 && rows->itemsize == 8 && rows->strides[0] == 8,
                    "augment: index must be int64");
    p.index = static_cast<const int64_t*>(rows->ptr), p.n = rows->shape[0];
    check_index(p.index, p.n, info.shape[0]);
  }
  p.output = reinterpret_cast<void*>(output), p.boxes = reinterpret_cast<int32_t*>(boxes);
  p.channels_last = channels_last, p.seed = uint64_t(seed), p.counter = uint64_t(counter);
  const ScalarType type = dtype == "float32"    ? ScalarType::Float
                          : dtype == "float16"  ? ScalarType::Half
                          : dtype == "bfloat16" ? ScalarType::BFloat16
                                                : ScalarType::Byte;
  py::gil_scoped_release released;
  run(p, type);
}

}  // namespace fastdl::augment

void bind_augment(py::module_& m) {
  m.def("augment_array", &fastdl::augment::augment_array, "fastdl::augment on a NumPy array (N, H, W, C)");
}
