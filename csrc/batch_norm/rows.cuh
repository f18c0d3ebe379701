// Channels last, and (N, C): rows of C channels, of which a team of blocks takes a slice at a time. A thread
// keeps to one vector of channels in all rows that it visits. rows_forward.cuh and rows_backward.cuh are the
// kernels.
#pragma once
#include "batch_norm/packet.cuh"
#include "batch_norm/rows_team.cuh"
#include "divisor.cuh"

namespace fastdl::batch_norm {

// Places ---------------------------------------------------------------------------------------------------

// The channels [c, c + kSize) and rows [first, first + count) of a slice that a thread works on.
template <class scalar_t>
struct Column {
  static constexpr int kSize = kVectorSize<scalar_t>;
  int64_t c, first;
  int lane, lanes;    // vector of the slice
  int group, groups;  // threads with the same vector: this one, and how many
  int count;
  uint32_t valid;  // channels that exist

  FASTDL_DEVICE Column(const Sizes& size, const Plan& plan, int64_t slice, int64_t rank)
      : lane(int(threadIdx.x % plan.vectors)),
        lanes(int(plan.vectors)),
        group(int(threadIdx.x / plan.vectors)),
        groups(int(blockDim.x / plan.vectors)) {
    const int64_t share = plan.share / lanes;
    first = rank * share;
    count = int(max(int64_t(0), min(size.count() - first, share)));
    c = slice * plan.pack + lane * kSize;
    const int64_t rest = size.c - c;
    valid = rest >= kSize ? kWhole<scalar_t> : rest > 0 ? (1u << rest) - 1 : 0;
  }
  FASTDL_DEVICE int slot(int row) const { return row * lanes + lane; }

  // f(row) for the thread's rows.
  template <class F>
  FASTDL_DEVICE void for_rows(F f) const {
    for (int row = group; row < count; row += groups) f(row);
  }
};

// A column of an operand of any strides.
template <class scalar_t>
struct RowReader {
  static constexpr int kSize = kVectorSize<scalar_t>;
  const scalar_t* data;               // null: there is none
  int64_t stride_row, gap, stride_c;  // gap: what an image's stride has beyond that of its rows
  const Divisor& positions;           // in the kernel's parameters
  uint32_t valid;
  bool vectors;  // whether all rows are read in one access

  FASTDL_DEVICE RowReader(const Operand& o, const Sizes& size, const Divisor& positions,
                          const Column<scalar_t>& column)
      : data(static_cast<const scalar_t*>(o.data)),
        stride_row(size.s == 1 ? o.stride_n : o.stride_s),
        gap(size.s == 1 || size.n == 1 ? 0 : o.stride_n - size.s * o.stride_s),
        stride_c(o.stride_c),
        positions(positions),
        valid(column.valid) {
    if (data && valid) data += column.c * stride_c + column.first * stride_row;
    vectors = valid == kWhole<scalar_t> && stride_c == 1 && is_aligned<kSize>(data) &&
              (stride_row | gap) % kSize == 0;
    first_ = column.first;
  }
  FASTDL_DEVICE const scalar_t* address(int row) const {
    const scalar_t* const at = data + row * stride_row;
    return gap ? at + positions.quotient(first_ + row) * gap : at;
  }
  FASTDL_DEVICE Packet read(int row) const {
    const scalar_t* from = address(row);
    if (vectors) return load<Cache::kReadOnly>(reinterpret_cast<const Packet*>(from));
    Vector<scalar_t, kSize> elements;
    for_each<kSize>([&](int j) {
      elements[j] = valid >> j & 1 ? load(from) : convert<scalar_t>(0.0f);
      from += stride_c;
    });
    Packet packet;
    memcpy(&packet, &elements, sizeof packet);
    return packet;
  }
  // To shared memory, behind the thread's back where the address allows it.
  FASTDL_DEVICE void fetch(int row, Packet* slot) const {
    if (valid == 0) return;
    if (vectors) {
      ptx::copy_async<16>(ptx::shared_address(slot), address(row));
    } else {
      store(slot, read(row));
    }
  }

 private:
  int64_t first_;
};

// The column of an output, which is contiguous in its memory format.
template <class scalar_t>
struct RowWriter {
  static constexpr int kSize = kVectorSize<scalar_t>;
  scalar_t* data;  // null: not wanted
  int64_t stride_row;
  uint32_t valid;

  FASTDL_DEVICE RowWriter(void* output, const Sizes& size, const Column<scalar_t>& column)
      : data(static_cast<scalar_t*>(output)), stride_row(size.c), valid(column.valid) {
    if (data && valid) data += column.first * stride_row + column.c;
  }
  FASTDL_DEVICE void write(int row, const Values<scalar_t>& values) const {
    scalar_t* const to = data + row * stride_row;
    const auto packet = convert_vector<scalar_t>(values);
    if (valid == kWhole<scalar_t> && stride_row % kSize == 0) {
      store_vector(to, packet);
    } else {
      for_each<kSize>([&](int j) {
        if (valid >> j & 1) store(to + j, packet[j]);
      });
    }
  }
};

// A column of the mask: see mask_bytes.
template <class scalar_t>
struct RowMask {
  static constexpr int kSize = kVectorSize<scalar_t>;
  uint8_t* bytes;
  int64_t stride_row;
  int shift;
  uint32_t valid;

  FASTDL_DEVICE RowMask(const uint8_t* mask, const Sizes& size, const Column<scalar_t>& column)
      : bytes(const_cast<uint8_t*>(mask)),
        stride_row((size.c + kOctet - 1) / kOctet),
        shift(int(column.c % kOctet)),
        valid(column.valid) {
    if (bytes && valid) bytes += column.first * stride_row + column.c / kOctet;
  }
  FASTDL_DEVICE uint32_t read(int row) const { return uint32_t(load(bytes + row * stride_row)) >> shift; }

  // All threads of the warp call it, neighbours with the vectors of an octet; `exists`: the row does.
  FASTDL_DEVICE void write(int row, bool exists, uint32_t bits) const {
    uint32_t byte = (bits & valid) << shift;
    FASTDL_UNROLL
    for (int lanes = 1; lanes < kOctet / kSize; lanes *= 2) byte |= shuffle_xor(byte, lanes);
    if (exists && shift == 0) store(bytes + row * stride_row, uint8_t(byte));
  }
};

// Dropout --------------------------------------------------------------------------------------------------

// Decisions by logical index, (n * C + c) * S + s: neighbours in a row are S apart, those of a Philox call
// are rows that follow each other. So a thread takes eight rows at a time where there is dropout and S > 1.
template <class scalar_t>
class RowDropout {
 public:
  static constexpr int kSize = kVectorSize<scalar_t>;

  FASTDL_DEVICE RowDropout(const Epilogue& epilogue, const Sizes& size, const Divisor& positions,
                           const Column<scalar_t>& column)
      : dropout_(epilogue), size_(size), positions_(positions), column_(column) {}

  FASTDL_DEVICE bool by_octets() const { return dropout_.on && size_.s > 1; }

  // (N, C): of a row's vector.
  FASTDL_DEVICE uint32_t row(int row) const {
    const int64_t index = (column_.first + row) * size_.c + column_.c;
    if (!dropout_.on || size_.c % kSize == 0) return dropout_.bits<kSize>(index);
    return following(index);
  }

  // Of eight rows' vectors: byte k for row + k, bit j for its element j.
  FASTDL_DEVICE uint64_t octet(int row) const {
    const int64_t from = column_.first + row, n0 = positions_.quotient(from), s0 = from - n0 * size_.s;
    uint64_t kept = 0;
#pragma unroll 1
    for (int j = 0; j < kSize; ++j) {
      uint32_t bits = 0;
      int64_t n = n0, s = s0;
      for (int64_t k = 0; k < kOctet; ++n) {  // as many turns as images reach into these rows
        const uint32_t image = following((n * size_.c + column_.c + j) * size_.s + s);
        bits = (bits & ((1u << k) - 1)) | image << k;
        k += size_.s - s, s = 0;
      }
      kept |= uint64_t(spread(bits & 15) | uint64_t(spread(bits >> 4 & 15)) << 32) << j;
    }
    return kept;
  }

 private:
  // Of eight elements from any index on.
  FASTDL_DEVICE uint32_t following(int64_t index) const {
    const int phase = int(index % kOctet);
    uint32_t bits = dropout_.bits<kOctet>(index - phase) >> phase;
    if (phase) bits |= dropout_.bits<kOctet>(index - phase + kOctet) << (kOctet - phase);
    return bits & 0xFF;
  }
  // Bit i of four to bit 8 * i.
  FASTDL_DEVICE static uint32_t spread(uint32_t bits) { return bits * 0x00204081u & 0x01010101u; }

  Dropout dropout_;
  const Sizes& size_;
  const Divisor& positions_;
  const Column<scalar_t>& column_;
};

// Calls f(row, step, kept) for the rows row + b * step, b < kBatch, so that kBatch loads are under way at
// once; byte b of `kept` has the decisions of its vector where dropout goes by octets. All threads make the
// same calls; rows from column.count on do not exist.
template <int kBatch, class scalar_t, class F>
FASTDL_DEVICE void for_row_batches(const Column<scalar_t>& column, const RowDropout<scalar_t>& dropout, F f) {
  static_assert(kBatch <= 4 && kOctet % kBatch == 0);
  const bool octets = dropout.by_octets();
  const int step = octets ? 1 : column.groups, mine = octets ? kOctet * column.group : column.group;
  for (int base = 0; base < column.count; base += kOctet * column.groups) {
    const uint64_t kept = octets && base + mine < column.count ? dropout.octet(base + mine) : 0;
#pragma unroll 1
    for (int k = 0; k < kOctet && base + k * step < column.count; k += kBatch) {
      f(base + mine + k * step, step, uint32_t(kept >> (kOctet * k)));
    }
  }
}

// What the channels of a slice need, in shared memory. Lanes, whose channels are kSize apart, find theirs
// side by side: in different banks.
template <class T, int kSize>
struct SliceTable {
  T value[8 * kSize];
  FASTDL_DEVICE static unsigned place(int k) { return unsigned(k) % kSize * 8 + unsigned(k) / kSize; }
  FASTDL_DEVICE T& operator[](int k) { return value[place(k)]; }
  FASTDL_DEVICE const T& operator[](int k) const { return value[place(k)]; }
};

template <class scalar_t>
using RowConstants = SliceTable<Constants<accumulator_t<scalar_t>>, kVectorSize<scalar_t>>;
template <class scalar_t>
using RowCorrections = SliceTable<Correction<accumulator_t<scalar_t>>, kVectorSize<scalar_t>>;

// What each element of the thread's vector needs.
template <class T, int kSize>
struct OfColumn {
  T value[kSize];
  FASTDL_DEVICE OfColumn(const SliceTable<T, kSize>& table, int lane) {
    for_each<kSize>([&](int j) { value[j] = table[lane * kSize + j]; });
  }
  FASTDL_DEVICE const T& operator()(int j) const { return value[j]; }
};

// A slice's table where the tensor has no more channels; thread k for channel k.
template <class T, int kSize>
FASTDL_DEVICE void clear_beyond(SliceTable<T, kSize>& table, const Sizes& size, const Plan& plan,
                                int64_t slice) {
  const int k = int(threadIdx.x);
  if (k < plan.pack && slice * plan.pack + k >= size.c) table[k] = T{};
}

// Starts to bring a column to shared memory.
template <class scalar_t>
FASTDL_DEVICE void fetch_column(const Column<scalar_t>& column, const RowReader<scalar_t>& reader,
                                Packet* slots) {
  column.for_rows([&](int row) { reader.fetch(row, slots + column.slot(row)); });
}

// Once a slot of a slice is used, the same of the team's next slice.
template <class scalar_t>
struct RowRefill {
  const Column<scalar_t>& column;
  RowReader<scalar_t> reader;
  Packet* slots;
  bool on;

  FASTDL_DEVICE RowRefill(const Sizes& size, const Plan& plan, const Column<scalar_t>& column, int64_t slice,
                          int64_t rank, const Operand& operand, Packet* slots)
      : column(column),
        reader(operand, size, plan.positions, Column<scalar_t>(size, plan, slice + plan.teams, rank)),
        slots(slots),
        on(slice + plan.teams < plan.packs) {}

  FASTDL_DEVICE void operator()(int row) const {
    if (on && row < column.count) reader.fetch(row, slots + column.slot(row));
  }
};

}  // namespace fastdl::batch_norm
