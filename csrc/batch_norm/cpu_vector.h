// Eight lanes at a time for the CPU op: loads that widen, stores that round, and the activations. Compiler
// vectors, so that one source serves every instruction set; cpu.cpp includes it once for each, in a namespace
// FASTDL_ISA of its own.
namespace fastdl::FASTDL_ISA {

constexpr int kLanes = 8;
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T))));
};
template <class T>
using Vec = typename VectorOf<T>::type;
using F = Vec<float>;
using D = Vec<double>;
using U = Vec<uint32_t>;
using I = Vec<int32_t>;

template <class V, class S>
FASTDL_LANES V splat(S value) {
  return V{} + value;
}
template <class V>
FASTDL_LANES V raw_load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
FASTDL_LANES D to_double(F v) { return __builtin_convertvector(v, D); }
FASTDL_LANES D to_double(D v) { return v; }

FASTDL_LANES F load(const float* p) { return raw_load<F>(p); }
FASTDL_LANES D load(const double* p) { return raw_load<D>(p); }
FASTDL_LANES F load(const torch::headeronly::BFloat16* p) {
  return F(__builtin_convertvector(raw_load<Vec<uint16_t>>(p), U) << 16);
}
// Exponent and mantissa move up; a product with 2^112 rebiases, subnormals included.
FASTDL_LANES F load(const torch::headeronly::Half* p) {
#if defined(FASTDL_F16C)
  return F(_mm256_cvtph_ps(raw_load<__m128i>(p)));
#else
  const U h = __builtin_convertvector(raw_load<Vec<uint16_t>>(p), U);
  const U magnitude = U(F((h & 0x7fffu) << 13) * 0x1p112f);
  const U special = U((h & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return F(magnitude | special | (h & 0x8000u) << 16);
#endif
}

FASTDL_LANES void store(float* p, F v) { std::memcpy(p, &v, sizeof(v)); }
FASTDL_LANES void store(double* p, D v) { std::memcpy(p, &v, sizeof(v)); }
FASTDL_LANES void store(torch::headeronly::BFloat16* p, F v) {
  const U bits = U(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U nan = U(v != v);
  const Vec<uint16_t> out = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Vec<uint16_t>);
  std::memcpy(p, &out, sizeof(out));
}
// Round to nearest even by an addition whose ulp is fp16's at this magnitude.
FASTDL_LANES void store(torch::headeronly::Half* p, F v) {
#if defined(FASTDL_F16C)
  const __m128i out = _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &out, sizeof(out));
#else
  const U bits = U(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  const F capped = (F(magnitude) * 0x1p112f) * 0x1p-110f;  // beyond fp16 becomes infinity
  U bias = (magnitude << 1) & 0xff000000u;
  const U small = U(bias < 0x71000000u);
  bias = (bias & ~small) | (small & 0x71000000u);
  const U sum = U(F((bias >> 1) + 0x07800000u) + capped);
  const U number = ((sum >> 13) & 0x7c00u) + (sum & 0x0fffu);
  const U nan = U(v != v);
  const U half = (sign >> 16) | (number & ~nan) | (nan & 0x7e00u);
  const Vec<uint16_t> out = __builtin_convertvector(half, Vec<uint16_t>);
  std::memcpy(p, &out, sizeof(out));
#endif
}

// The first n lanes; the others hold fill.
template <class scalar_t>
FASTDL_LANES auto load_some(const scalar_t* p, int n, scalar_t fill) {
  scalar_t buffer[kLanes];
  for (int k = 0; k < kLanes; ++k) buffer[k] = fill;
#if defined(__AVX512VL__) && defined(__AVX512BW__)
  const __mmask8 lanes = __mmask8((1u << n) - 1);
  if constexpr (sizeof(scalar_t) == 8) {
    const __m512i values = _mm512_mask_loadu_epi64(raw_load<__m512i>(buffer), lanes, p);
    std::memcpy(buffer, &values, sizeof buffer);
  } else if constexpr (sizeof(scalar_t) == 4) {
    const __m256i values = _mm256_mask_loadu_epi32(raw_load<__m256i>(buffer), lanes, p);
    std::memcpy(buffer, &values, sizeof buffer);
  } else {
    const __m128i values = _mm_mask_loadu_epi16(raw_load<__m128i>(buffer), lanes, p);
    std::memcpy(buffer, &values, sizeof buffer);
  }
#else
  for (int k = 0; k < n; ++k) buffer[k] = p[k];
#endif
  return load(buffer);
}
template <class scalar_t, class V>
FASTDL_LANES void store_some(scalar_t* p, V v, int n) {
  scalar_t buffer[kLanes];
  store(buffer, v);
#if defined(__AVX512VL__) && defined(__AVX512BW__)
  const __mmask8 lanes = __mmask8((1u << n) - 1);
  if constexpr (sizeof(scalar_t) == 8) {
    _mm512_mask_storeu_epi64(p, lanes, raw_load<__m512i>(buffer));
  } else if constexpr (sizeof(scalar_t) == 4) {
    _mm256_mask_storeu_epi32(p, lanes, raw_load<__m256i>(buffer));
  } else {
    _mm_mask_storeu_epi16(p, lanes, raw_load<__m128i>(buffer));
  }
#else
  for (int k = 0; k < n; ++k) p[k] = buffer[k];
#endif
}

// 2^n * polynomial of the remainder; below exp(-87) the result is 2^-126, not less.
FASTDL_LANES F exp(F x) {
  x = x > 88.7f ? splat<F>(88.7f) : x;  // NaN passes both
  x = x < -87.3f ? splat<F>(-87.3f) : x;
  const F shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F y = splat<F>(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) y = y * r + c;
  return F(I(y) + (I(shifted) << 23));
}
FASTDL_LANES D exp(D x) {
  for (int k = 0; k < kLanes; ++k) x[k] = std::exp(x[k]);
  return x;
}

constexpr float kErfcx[] = {0.0272114147f, -0.0667921007f, -0.0821462423f, 0.300068229f, -0.0884797797f,
                            0.279177845f,  0.173822105f,   0.232115358f,   0.224992186f, 3.10059368e-05f};
// Phi(x), the normal distribution function, and exp(-x^2/2), which its derivative shares.
// exp(z^2) erfc(z) is a polynomial of 1 / (1 + 0.4 z) to 3e-8, fitted over 0 <= z <= 9.5.
FASTDL_LANES F normal_cdf(F x, F* bell) {
  const F z = (x < 0.f ? -x : x) * 0.707106781f, square = z * z;
  *bell = exp(-square);
  const F t = 1.f / (1.f + 0.4f * z);
  F y = {};
  for (float c : kErfcx) y = y * t + c;
  const F tail = 0.5f * y * *bell;
  return x < 0.f ? tail : 1.f - tail;
}
FASTDL_LANES D normal_cdf(D x, D* bell) {
  D y;
  for (int k = 0; k < kLanes; ++k) {
    (*bell)[k] = std::exp(-0.5 * x[k] * x[k]);
    y[k] = 0.5 * std::erfc(-x[k] * 0.70710678118654752440);
  }
  return y;
}

template <class V>
FASTDL_LANES V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}
template <class V>
FASTDL_LANES V gelu_tanh_argument(V x) {  // gelu_tanh(x) = x sigmoid(argument)
  return x * (1 + x * x * decltype(x[0] + 0)(0.044715)) * decltype(x[0] + 0)(1.5957691216057308);
}
template <class V>
FASTDL_LANES V activate(V x, Activation activation) {
  V bell;
  switch (activation) {
    case Activation::kRelu:
      return x <= 0 ? V{} : x;  // NaN stays
    case Activation::kLeakyRelu:
      return x > 0 ? x : x * decltype(x[0] + 0)(0.01);
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kGelu:
      return x * normal_cdf(x, &bell);
    case Activation::kGeluTanh:
      return x * sigmoid(gelu_tanh_argument(x));
    default:
      return x;
  }
}
template <class V>
FASTDL_LANES V activation_backward(V grad, V x, Activation activation) {
  using acc_t = decltype(x[0] + 0);
  V bell;
  switch (activation) {
    case Activation::kRelu:
      return x <= 0 ? V{} : grad;
    case Activation::kLeakyRelu:
      return x > 0 ? grad : grad * acc_t(0.01);
    case Activation::kSilu: {
      const V s = sigmoid(x);
      return grad * (s * (1 + x * (1 - s)));
    }
    case Activation::kGelu: {
      const V phi = normal_cdf(x, &bell);
      return grad * (phi + x * bell * acc_t(0.3989422804014327));
    }
    case Activation::kGeluTanh: {
      const V s = sigmoid(gelu_tanh_argument(x));
      const V slope = acc_t(1.5957691216057308) * (1 + x * x * acc_t(3 * 0.044715));
      return grad * (s + x * s * (1 - s) * slope);
    }
    default:
      return grad;
  }
}

}  // namespace fastdl::FASTDL_ISA
