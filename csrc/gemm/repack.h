// Operands that wgmma cannot read where they lie, as they lie after a pass that pads their lines, or of tf32
// transposes them. Plain C++: the plan asks too.
#pragma once
#include "gemm/wgmma_shape.h"

namespace fastdl::gemm {

// x (batch, rows, columns) in lines of adjacent elements, 16 bytes or a multiple apart.
struct Packed {
  Matrix matrix;  // without its address
  int64_t lines, inner, bytes;
  bool down;  // the lines are columns

  Packed(const Matrix& x, int64_t rows, int64_t columns, int64_t batch, Dtype dtype, bool lines_are_columns)
      : down(lines_are_columns) {
    lines = down ? columns : rows, inner = down ? rows : columns;
    const int64_t vector = 16 / size_of(dtype), pitch = (inner + vector - 1) / vector * vector;
    if (x.batch == 0) batch = 1;  // one matrix for all
    matrix = {nullptr, down ? 1 : pitch, down ? pitch : 1, batch > 1 ? lines * pitch : 0};
    bytes = (batch * lines * pitch * size_of(dtype) + 255) / 256 * 256;
  }
};

// Lines run as they did, but along k for tf32.
inline Packed packed_a(const Problem& p) {
  return {p.a, p.m, p.k, p.batch, p.dtype, p.dtype != kFloat32 && p.a.row == 1 && p.a.column != 1};
}
inline Packed packed_b(const Problem& p) {
  return {p.b, p.k, p.n, p.batch, p.dtype, p.dtype == kFloat32 || (p.b.row == 1 && p.b.column != 1)};
}

}  // namespace fastdl::gemm
