// Initialization on CPU tensors: any number of them in one call, at memory speed.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-math-errno", "no-trapping-math", \
                     "fp-contract=off")  // vector sqrt; no fused multiply-add
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#include "init/layout.h"

#include <algorithm>
#include <type_traits>

#include "torch_glue.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDL_CLONES __attribute__((target_clones("avx2", "default")))  // no FMA in either: the same bits
#else
#define FASTDL_CLONES
#endif

namespace fastdl {
namespace {

constexpr int64_t kBlock = 1024;     // elements whose random words fit L1
constexpr int64_t kGrain = 1 << 14;  // elements a thread takes at least

FASTDL_CLONES void random_words(uint64_t key, uint64_t counter, int64_t calls, uint32_t* words) {
  for (int64_t i = 0; i < calls; ++i) {
    const Philox4 r = philox(key, counter + i, kInitStream);
    words[4 * i] = r.word[0], words[4 * i + 1] = r.word[1];
    words[4 * i + 2] = r.word[2], words[4 * i + 3] = r.word[3];
  }
}

// Named functions, because clones of a template are not resolved by every linker.
#define FASTDL_VALUES(name, distribution, acc_t)                                                 \
  FASTDL_CLONES void name(const uint32_t* words, int64_t n, const InitRule& given, acc_t* out) { \
    const InitRule rule = given;                                                                 \
    for (int64_t i = 0; i < n; ++i) out[i] = init_value<distribution, acc_t>(words[i], rule);    \
  }
FASTDL_VALUES(uniform_values, Distribution::kUniform, float)
FASTDL_VALUES(uniform_values, Distribution::kUniform, double)
FASTDL_VALUES(normal_values, Distribution::kNormal, float)
FASTDL_VALUES(normal_values, Distribution::kNormal, double)
FASTDL_VALUES(truncated_values, Distribution::kTruncatedNormal, float)
FASTDL_VALUES(truncated_values, Distribution::kTruncatedNormal, double)
#undef FASTDL_VALUES

template <class acc_t>
void block_values(const uint32_t* words, int64_t n, const InitRule& rule, acc_t* out) {
  switch (rule.distribution) {
    case Distribution::kConstant:
      return void(std::fill_n(out, n, acc_t(rule.parameter[0])));
    case Distribution::kUniform:
      return uniform_values(words, n, rule, out);
    case Distribution::kNormal:
      return normal_values(words, n, rule, out);
    case Distribution::kTruncatedNormal:
      return truncated_values(words, n, rule, out);
  }
}

// Elements of global index [index, index + n) to data, data + stride, ...
template <class scalar_t>
void fill_run(scalar_t* data, int64_t stride, uint64_t key, uint64_t index, int64_t n, const InitRule& rule) {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  uint32_t words[kBlock + 4];
  acc_t values[kBlock];
  const bool random = rule.distribution != Distribution::kConstant;
  for (int64_t done = 0; done < n; done += kBlock) {
    const int64_t count = std::min(kBlock, n - done), skip = int64_t((index + done) % 4);
    if (random) random_words(key, (index + done) / 4, (skip + count + 3) / 4, words);
    block_values(words + skip, count, rule, values);
    for (int64_t i = 0; i < count; ++i) data[(done + i) * stride] = scalar_t(values[i]);
  }
}

}  // namespace

// tensors: any layout. Per tensor: a key, the global index of its first element, six parameters, and, one
// after the other in `steps`, how far the global index moves along each dimension. In place; nothing is read.
void init_cpu(std::vector<Tensor> tensors, std::vector<int64_t> distributions, std::vector<double> parameters,
              std::vector<int64_t> keys, std::vector<int64_t> offsets, std::vector<int64_t> steps) {
  check_lists(tensors, distributions, parameters, keys, offsets, steps);
  const int64_t* step = steps.data();
  for (size_t t = 0; t < tensors.size(); ++t) {
    Tensor& tensor = tensors[t];
    const InitRule rule = rule_of(distributions[t], parameters.data() + t * kParameters);
    const Layout layout(tensor, step);
    step += tensor.dim();
    const uint64_t key = uint64_t(keys[t]), offset = uint64_t(offsets[t]);
    dispatch_floating("init", tensor.scalar_type(), [&](auto zero) {
      using scalar_t = decltype(zero);
      scalar_t* data = tensor.mutable_data_ptr<scalar_t>();
      torch::stable::parallel_for(0, tensor.numel(), kGrain, [&](int64_t begin, int64_t end) {
        layout.for_each_run(begin, end, [&](int64_t memory, int64_t index, int64_t count) {
          fill_run(data + memory, layout.stride[layout.dim - 1], key, offset + index, count, rule);
        });
      });
    });
  }
}

FASTDL_CPU_LIBRARY(m) { m.impl("init_", TORCH_BOX(&init_cpu)); }

}  // namespace fastdl
