// Operands that TMA cannot read, as they lie after a pass that pads their lines. Plain C++: the plan asks
// too.
#pragma once
#include "gemm/wgmma_shape.h"

namespace fastdl::gemm {

// x (batch, rows, columns) in lines of adjacent elements, 16 bytes or a multiple apart.
struct Packed {
  Matrix matrix;  // without its address
  int64_t lines, inner, bytes;
  bool down;  // the lines are columns

  Packed(const Matrix& x, int64_t rows, int64_t columns, int64_t batch, Dtype dtype)
      : down(x.row == 1 && x.column != 1) {
    lines = down ? columns : rows, inner = down ? rows : columns;
    const int64_t vector = 16 / size_of(dtype), pitch = (inner + vector - 1) / vector * vector;
    if (x.batch == 0) batch = 1;  // one matrix for all
    matrix = {nullptr, down ? 1 : pitch, down ? pitch : 1, batch > 1 ? lines * pitch : 0};
    bytes = (batch * lines * pitch * size_of(dtype) + 255) / 256 * 256;
  }
};

}  // namespace fastdl::gemm
