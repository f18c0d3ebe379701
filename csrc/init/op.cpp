// Initialization on CUDA tensors: a record of every tensor goes to the device, then one launch fills them
// all.
#include "init/api.h"
#include "init/layout.h"

namespace fastdl {
namespace {

init::Dtype tag(ScalarType dtype) {
  if (dtype == ScalarType::Double) return init::kFloat64;
  if (dtype == ScalarType::Half) return init::kFloat16;
  return dtype == ScalarType::BFloat16 ? init::kBfloat16 : init::kFloat32;
}

}  // namespace

// Arguments as in cpu.cpp.
void init_kernels(std::vector<Tensor> tensors, std::vector<int64_t> distributions,
                  std::vector<double> parameters, std::vector<int64_t> keys, std::vector<int64_t> offsets,
                  std::vector<int64_t> steps) {
  check_lists(tensors, distributions, parameters, keys, offsets, steps);
  std::vector<init::Record> records;
  int64_t tiles = 0;
  const int64_t* step = steps.data();
  for (size_t t = 0; t < tensors.size(); ++t) {
    Tensor& tensor = tensors[t];
    dispatch_floating("init", tensor.scalar_type(), [](auto) {});
    STD_TORCH_CHECK(tensor.get_device_index() == tensors[0].get_device_index(),
                    "init: tensors must be on one device");
    const Layout layout(tensor, step);
    step += tensor.dim();
    if (tensor.numel() == 0) continue;
    init::Record r{};
    r.data = tensor.data_ptr(), r.dtype = tag(tensor.scalar_type());
    r.rule = rule_of(distributions[t], parameters.data() + t * kParameters);
    r.key = uint64_t(keys[t]), r.offset = uint64_t(offsets[t]);
    r.numel = tensor.numel(), r.first_tile = tiles, r.dim = int32_t(layout.dim);
    std::copy_n(layout.size, layout.dim, r.size);
    std::copy_n(layout.stride, layout.dim, r.stride);
    std::copy_n(layout.step, layout.dim, r.step);
    tiles += (r.numel + init::kTile - 1) / init::kTile;
    records.push_back(r);
  }
  if (records.empty()) return;
  const DeviceGuard guard(tensors[0]);
  const int64_t bytes = int64_t(records.size() * sizeof(init::Record));
  Tensor device = torch::stable::new_empty(tensors[0], {&bytes, 1}, ScalarType::Byte);
  upload(device, records.data(), bytes);
  check_launch(init::launch_init(static_cast<const init::Record*>(device.data_ptr()), int(records.size()),
                                 tiles, current_stream(tensors[0])),
               "init");
}

FASTDL_KERNEL_LIBRARY(m) { m.impl("init_", TORCH_BOX(&init_kernels)); }

}  // namespace fastdl
