// Contiguous (N, C, S): where a block finds its vectors, and how it keeps them in shared memory.
// channels_forward.cuh and channels_backward.cuh are the kernels.
#pragma once
#include "batch_norm/packet.cuh"
#include "batch_norm/team.cuh"

namespace fastdl::batch_norm {

// Places ---------------------------------------------------------------------------------------------------

// A vector of a row: elements [at, at + size) in memory order, of which those in `valid` belong to the row.
struct Place {
  int64_t at;
  uint32_t n, o, valid;  // image, vector of its row
};

// The rows of neighbouring channels [c0, c0 + length / S), one an image, in vectors of kSize.
template <int kSize>
struct Rows {
  int64_t image, begin, length;  // elements: of an image, before the first row, of a row
  uint32_t vectors;              // of a row, at most
  bool whole;                    // all of them belong to their row alone

  FASTDL_DEVICE Rows(const Sizes& size, int64_t c0, int64_t channels, uint32_t vectors)
      : image(size.c * size.s),
        begin(c0 * size.s),
        length(channels * size.s),
        vectors(vectors),
        whole((begin | length | (size.n > 1 ? image : 0)) % kOctet == 0 &&
              length == int64_t(vectors) * kSize) {}

  FASTDL_DEVICE int64_t row_begin(uint32_t n) const { return n * image + begin; }

  FASTDL_DEVICE Place place(int64_t row, uint32_t n, uint32_t o) const {
    constexpr uint32_t kAll = (1u << kSize) - 1;
    const int64_t offset = int64_t(o) * kSize;
    if (whole) return {row + offset, n, o, kAll};
    const int64_t before = (row & (kOctet - 1)) - offset, rest = before + length;
    const uint32_t first = before <= 0 ? kAll : before < kSize ? kAll << before : 0;
    const uint32_t last = rest >= kSize ? kAll : rest > 0 ? (1u << rest) - 1 : 0;
    return {row - before, n, o, first & last & kAll};
  }
  FASTDL_DEVICE Place place(uint32_t n, uint32_t o) const { return place(row_begin(n), n, o); }

  // Which vector of its row a place is, that a part of these rows has found.
  FASTDL_DEVICE uint32_t vector_of(const Place& p) const {
    return uint32_t(p.at - (row_begin(p.n) & ~int64_t(kOctet - 1))) / kSize;
  }

  // Calls f(i, places) for the slots `first` + [0, count), places[b] being that of slot i + b * threads, so
  // that kBatch loads are under way at once. All threads make the same calls; what lies beyond `count` has no
  // valid element.
  template <int kBatch, class F>
  FASTDL_DEVICE void for_each(int64_t first, int count, int thread, int threads, F f) const {
    const int64_t start = first + thread;
    uint32_t n = uint32_t(start / vectors), o = uint32_t(start % vectors);
    const uint32_t step_n = unsigned(threads) / vectors, step_o = unsigned(threads) % vectors;
    const int64_t step = step_n * image;
    int64_t row = row_begin(n);
    for (int base = 0; base < count; base += kBatch * threads) {
      Place places[kBatch];
      FASTDL_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        places[b] = place(row, n, o);
        if (base + b * threads + thread >= count) places[b].valid = 0;
        n += step_n, row += step, o += step_o;
        if (o >= vectors) o -= vectors, row += image, ++n;
      }
      f(base + thread, places);
    }
  }
};

// Operands -------------------------------------------------------------------------------------------------

// A pack's elements of an operand of any strides.
template <class scalar_t>
struct Reader {
  static constexpr int kSize = kVectorSize<scalar_t>;
  const scalar_t* data;
  int64_t stride_n, stride_s;  // of an image beyond stride_s times its elements; of an element
  bool dense;                  // contiguous, and its whole vectors are aligned

  FASTDL_DEVICE Reader(const Operand& o, const Sizes& size, int64_t c0)
      : data(static_cast<const scalar_t*>(o.data)),
        stride_n(size.n > 1 ? o.stride_n - size.c * size.s * o.stride_s : 0),
        stride_s(o.stride_s) {
    if (data && size.c > 1) data += c0 * (o.stride_c - size.s * o.stride_s);
    dense = stride_s == 1 && stride_n == 0 && is_aligned<kSize>(data);
  }
  FASTDL_DEVICE const scalar_t* address(const Place& p) const {
    return dense ? data + p.at : data + p.n * stride_n + p.at * stride_s;
  }
  FASTDL_DEVICE bool in_one(const Place& p, const scalar_t* from) const {
    return p.valid == kWhole<scalar_t> && (dense || (stride_s == 1 && is_aligned<kSize>(from)));
  }
  FASTDL_DEVICE Packet read(const Place& p) const {
    const scalar_t* from = address(p);
    if (in_one(p, from)) return load<Cache::kReadOnly>(reinterpret_cast<const Packet*>(from));
    Vector<scalar_t, kSize> elements;
    for_each<kSize>([&](int j) {
      elements[j] = p.valid >> j & 1 ? load(from) : convert<scalar_t>(0.0f);
      from += stride_s;  // multiples of the stride would live in registers
    });
    Packet packet;
    memcpy(&packet, &elements, sizeof packet);
    return packet;
  }
  // To shared memory, behind the thread's back where the address allows it.
  FASTDL_DEVICE void fetch(const Place& p, Packet* slot) const {
    if (p.valid == 0) return;
    const scalar_t* from = address(p);
    if (in_one(p, from)) {
      ptx::copy_async<16>(ptx::shared_address(slot), from);
    } else {
      store(slot, read(p));
    }
  }
};

// Starts to bring a pack's slots [first, first + count) to shared memory. Each thread fetches those that it
// reads in for_each_place.
template <class scalar_t>
FASTDL_DEVICE void fetch_pack(const Sizes& size, const Plan& plan, int64_t pack, int64_t first, int count,
                              const Operand& operand, Packet* slots) {
  const int64_t c0 = pack * plan.pack;
  const Reader<scalar_t> reader(operand, size, c0);
  const Rows<kVectorSize<scalar_t>> rows(size, c0, min(int64_t(plan.pack), size.c - c0), plan.vectors);
  rows.template for_each<1>(first, count, int(threadIdx.x), int(blockDim.x),
                            [&](int i, const Place(&p)[1]) { reader.fetch(p[0], slots + i); });
}

// Once a slot of a pack is used, the same of the team's next pack: reads go on while others wait. Packs of
// several channels have no next.
template <class scalar_t>
struct Refill {
  Rows<kVectorSize<scalar_t>> rows;
  Reader<scalar_t> reader;
  Packet* slots;
  int count;  // 0: there is no next

  FASTDL_DEVICE Refill(const Sizes& size, const Plan& plan, int64_t pack, int count, const Operand& operand,
                       Packet* slots)
      : rows(size, pack + plan.teams, 1, plan.vectors),
        reader(operand, size, pack + plan.teams),
        slots(slots),
        count(plan.pack == 1 && pack + plan.teams < plan.packs ? count : 0) {}

  FASTDL_DEVICE void operator()(int i, const Place& p) const {
    if (i < count) reader.fetch(rows.place(p.n, p.o), slots + i);
  }
};

// The valid elements of a place in an output, which is contiguous and begins aligned to a vector.
template <class scalar_t>
FASTDL_DEVICE void write(void* output, const Place& p, const Values<scalar_t>& values) {
  constexpr int kSize = kVectorSize<scalar_t>;
  scalar_t* to = static_cast<scalar_t*>(output) + p.at;
  const auto packet = convert_vector<scalar_t>(values);
  if (p.valid == kWhole<scalar_t>) {
    store_vector(to, packet);
  } else {
    for_each<kSize>([&](int j) {
      if (p.valid >> j & 1) store(to + j, packet[j]);
    });
  }
}

// Channels of a pack ---------------------------------------------------------------------------------------

// A vector of a pack lies in one channel, or in two neighbours. `first` is the channel of its octet's first
// element, counted in the pack; elements from `boundary` on belong to the next. A pack that is one channel
// needs none of this.
struct Split {
  int first, boundary;

  template <bool kPacked, int kSize>
  FASTDL_DEVICE static Split of(const Rows<kSize>& rows, const Place& p, int channels, int64_t s) {
    if (!kPacked) return {0, kSize};
    const int at = int(p.at - rows.row_begin(p.n)), octet = int(p.at - p.at % kOctet - rows.row_begin(p.n));
    const int first = octet <= 0 ? 0 : min(octet / int(s), channels - 1);
    return {first, (first + 1) * int(s) - at};
  }
};

// The value of element j's channel. Without packs it is `one`, which stays in registers.
template <bool kPacked, class T>
struct Pick {
  T a, b;
  int boundary;
  FASTDL_DEVICE Pick(const T* table, const T& one, Split split, int channels)
      : a(kPacked ? table[split.first] : one),
        b(kPacked && split.first + 1 < channels ? table[split.first + 1] : a),
        boundary(split.boundary) {}
  FASTDL_DEVICE T operator()(int j) const {
    T value = a;
    if (kPacked && j >= boundary) value = b;
    return value;
  }
};

// Where the mask keeps octets: see mask_bytes.
struct MaskRows {
  int64_t first_row;
  bool padded;
  FASTDL_DEVICE MaskRows(const Place& p, const Sizes& size, int64_t c0, const Split& split)
      : first_row(p.n * size.c + c0 + split.first), padded(size.s % kOctet != 0) {}
  FASTDL_DEVICE int64_t byte(const Place& p, int next = 0) const {
    return p.at / kOctet + (padded ? first_row + next : 0);
  }
};

// Bits of a vector. A byte holds those of one row, so that no two blocks write the same.
template <class scalar_t>
FASTDL_DEVICE uint32_t read_mask(const uint8_t* mask, const Place& p, const MaskRows& rows,
                                 const Split& split) {
  constexpr int kSize = kVectorSize<scalar_t>;
  if (p.valid == 0) return 0;
  const uint32_t below = split.boundary >= kSize ? ~0u
                         : split.boundary <= 0   ? 0u
                                                 : (1u << split.boundary) - 1;
  uint32_t bits = 0;
  if (p.valid & below) bits = load(mask + rows.byte(p));
  if (p.valid & ~below) bits |= load(mask + rows.byte(p, 1));
  return bits >> (p.at % kOctet);
}

// All threads of the warp call it, neighbours with the vectors of an octet.
template <class scalar_t>
FASTDL_DEVICE void write_mask(uint8_t* mask, const Place& p, const MaskRows& rows, const Split& split,
                              uint32_t bits) {
  constexpr int kSize = kVectorSize<scalar_t>, kHas = 1 << 8, kNext = 16;
  const uint32_t below = split.boundary >= kSize ? ~0u
                         : split.boundary <= 0   ? 0u
                                                 : (1u << split.boundary) - 1;
  const uint32_t here = p.valid & below, there = p.valid & ~below;
  uint32_t both = (bits & here) << (p.at % kOctet) | (here ? kHas : 0) |
                  ((bits & there) << (p.at % kOctet) | (there ? kHas : 0)) << kNext;
  FASTDL_UNROLL
  for (int lanes = 1; lanes < kOctet / kSize; lanes *= 2) both |= shuffle_xor(both, lanes);
  if (p.at % kOctet) return;
  if (both & kHas) store(mask + rows.byte(p), uint8_t(both));
  if (both & kHas << kNext) store(mask + rows.byte(p, 1), uint8_t(both >> kNext));
}

}  // namespace fastdl::batch_norm
