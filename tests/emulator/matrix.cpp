// ldmatrix, stmatrix and mma.sync.
#include <cmath>
#include "instructions.h"
#include "machine.h"
#include "scalar.h"

namespace fastdl::emulator {

float to_float(uint32_t bits, Format format) {
  if (format == Format::kHalf) return half_bits_to_float(uint16_t(bits));
  if (format == Format::kBfloat16) return bfloat16_bits_to_float(uint16_t(bits));
  return bit_cast<float>(bits & 0xFFFFE000u);  // tf32: the tensor core ignores the low 13 bits
}

float tensor_core_sum(float sum, const float* a, int a_stride, const float* b, int b_stride, int k) {
  if (!settings().truncates) {
    for (int i = 0; i < k; ++i) sum += a[i * a_stride] * b[i * b_stride];
    return sum;
  }
  double exact = sum;
  for (int i = 0; i < k; ++i) exact += double(a[i * a_stride]) * b[i * b_stride];
  const float nearest = float(exact);
  return std::fabs(nearest) > std::fabs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

namespace {

void require_full_warp(uint32_t lanes, Site site) {
  if (lanes != ~0u) fail(site, "needs all 32 lanes, has 0x%08x", lanes);
}

// 8x8 matrices of 16-bit elements; lane 8 m + r names row r of matrix m.
struct MatrixPayload {
  uint32_t* load;
  const uint32_t* store;
  uint32_t address;
  int count;
  bool transpose;
  Site site;
};

void complete_matrix(void** payload, uint32_t lanes) {
  const auto at = [&](int lane) -> MatrixPayload& { return *static_cast<MatrixPayload*>(payload[lane]); };
  const MatrixPayload& first = at(current->lane);
  require_full_warp(lanes, first.site);
  uint16_t* rows[4][8];
  uint16_t element[4][8][8];
  for (int m = 0; m < first.count; ++m) {
    for (int r = 0; r < 8; ++r) {
      const MatrixPayload& p = at(m * 8 + r);
      rows[m][r] = static_cast<uint16_t*>(shared_pointer(p.address, 16, 16, p.site));
      Fiber* lane = current->warp->lanes[m * 8 + r];
      if (race) race->access(lane, rows[m][r], 16, first.store != nullptr, false, p.site);
      if (first.load) memcpy(element[m][r], rows[m][r], 16);
    }
  }
  if (banks) banks->matrices(rows, first.count, first.store != nullptr, first.site);
  for (int lane = 0; lane < 32; ++lane) {
    const MatrixPayload& p = at(lane);
    for (int m = 0; m < first.count; ++m) {
      for (int j = 0; j < 2; ++j) {
        const int row = lane / 4, column = lane % 4 * 2 + j;
        uint16_t& e = first.transpose ? element[m][column][row] : element[m][row][column];
        if (first.store) e = uint16_t(p.store[m] >> 16 * j);
        if (first.load) p.load[m] = j ? p.load[m] | uint32_t(e) << 16 : e;
      }
    }
  }
  for (int m = 0; first.store && m < first.count; ++m) {
    for (int r = 0; r < 8; ++r) memcpy(rows[m][r], element[m][r], 16);
  }
}

struct MmaPayload {
  float* d;
  const uint32_t *a, *b;
  Format format;
  int k;
  Site site;
};

// D += A B, A 16 x k, B k x 8: lane l holds rows l / 4 and l / 4 + 8 of A, column l / 4 of B.
void complete_mma(void** payload, uint32_t lanes) {
  const auto at = [&](int lane) -> MmaPayload& { return *static_cast<MmaPayload*>(payload[lane]); };
  const MmaPayload first = at(current->lane);
  require_full_warp(lanes, first.site);
  const int per_register = first.format == Format::kTf32 ? 1 : 2, half_k = 4 * per_register,
            parts = first.k / half_k;
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaPayload& p = at(lane);
    const int group_id = lane / 4, t = lane % 4;
    for (int part = 0; part < parts; ++part) {
      for (int e = 0; e < per_register; ++e) {
        const int k = part * half_k + t * per_register + e;
        for (int h = 0; h < 2; ++h)
          a[group_id + 8 * h][k] = to_float(p.a[part * 2 + h] >> 16 * e, first.format);
        b[k][group_id] = to_float(p.b[part] >> 16 * e, first.format);
      }
    }
    for (int i = 0; i < 4; ++i) d[group_id + i / 2 * 8][t * 2 + i % 2] = p.d[i];
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) d[i][j] = tensor_core_sum(d[i][j], a[i], 1, &b[0][j], 8, first.k);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) at(lane).d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

}  // namespace

void ldmatrix(uint32_t* registers, int count, uint32_t address, bool transpose, Site site) {
  MatrixPayload payload{registers, nullptr, address, count, transpose, site};
  warp_collective(~0u, 32 + count + 8 * transpose, &payload, complete_matrix, site);
}

void stmatrix(uint32_t address, const uint32_t* registers, int count, bool transpose, Site site) {
  MatrixPayload payload{nullptr, registers, address, count, transpose, site};
  warp_collective(~0u, 64 + count + 8 * transpose, &payload, complete_matrix, site);
}

void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, Format format, int k, Site site) {
  MmaPayload payload{d, a, b, format, k, site};
  warp_collective(~0u, 96 + k * 4 + int(format), &payload, complete_mma, site);
}

}  // namespace fastdl::emulator
