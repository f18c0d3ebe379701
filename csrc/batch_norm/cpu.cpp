// batch_norm on CPU tensors: chunks of rows and channels over threads. Chunks depend on sizes only, so the
// same bits come out of any number of threads.
#include <pybind11/pybind11.h>
#include <tuple>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "batch_norm/cpu_types.h"
#include "batch_norm/layout.h"
#include "batch_norm/plan.h"
#include "torch_glue.h"

// The loops once for each instruction set: compiler vectors are lowered before function clones are made.
#define FASTDL_LANES inline __attribute__((always_inline))
#define FASTDL_ISA baseline
#include "batch_norm/cpu_rows.h"
#undef FASTDL_ISA
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDL_X86
#define FASTDL_F16C                       // the target pragma does not define __F16C__
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors pass between inlined functions only
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,f16c")
#define FASTDL_ISA avx2
#include "batch_norm/cpu_rows.h"
#undef FASTDL_ISA
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,f16c")
#define FASTDL_ISA avx512
#include "batch_norm/cpu_rows.h"
#undef FASTDL_ISA
#pragma GCC pop_options
#endif

namespace fastdl {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least: below it, waking threads costs more
constexpr int64_t kChunk =
    1 << 17;  // elements of one partial result, so that few channels still use many threads
constexpr int64_t kMaxChunks = 64;

using Values = std::vector<double>;

int64_t grain_of(int64_t elements) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements)); }

// The values of a (C,) parameter or statistic; `missing` where there is none.
Values read_values(const optional<Tensor>& t, int64_t C, double missing) {
  Values values(C, missing);
  if (!t) return values;
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == C,
                  "batch_norm: parameters and statistics must have shape (C,) = (", C,
                  ",); C is input.size(1)");
  dispatch_floating("batch_norm", t->scalar_type(), [&](auto zero) {
    const auto* p = t->const_data_ptr<decltype(zero)>();
    for (int64_t c = 0; c < C; ++c) values[c] = double(p[c * t->stride(0)]);
  });
  return values;
}

void write_values(const Tensor& t, const Values& values) {
  dispatch_floating("batch_norm", t.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    scalar_t* p = t.mutable_data_ptr<scalar_t>();
    for (size_t c = 0; c < values.size(); ++c) p[c * t.stride(0)] = scalar_t(acc_of<scalar_t>(values[c]));
  });
}

void write_values(const optional<Tensor>& t, const Values& values) {
  if (t) write_values(*t, values);
}

Tensor new_values(int64_t C, ScalarType dtype = ScalarType::Double) {
  return torch::stable::empty({C}, dtype);
}

Keep read_keep(const optional<Tensor>& seed, double p) {
  Keep keep;
  if (!seed || p == 0) return keep;
  STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long,
                  "batch_norm: seed must be one int64 value");
  keep.on = true, keep.seed = uint64_t(*seed->const_data_ptr<int64_t>()), keep.rule = KeepRule::of(p);
  keep.scale = KeepRule::scale(p);
  return keep;
}

View view_of(const BatchNormLayout& l) { return View(l.N, l.C, l.S, l.channels_last); }

template <class scalar_t>
const Rows<scalar_t>& best_rows() {
  static const Rows<scalar_t> best = [] {
#if defined(FASTDL_X86)
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      return avx512::rows<scalar_t>();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      return avx2::rows<scalar_t>();
#endif
    return baseline::rows<scalar_t>();
  }();
  return best;
}

// Chunks of one channel's elements, or of rows channels last.
int64_t chunks_of(const View& v) {
  const int64_t each = v.last ? v.rows * v.length : v.count();
  return std::clamp<int64_t>(each / kChunk, 1, kMaxChunks);
}

// The mean as torch takes it where merging has met infinity, which stays infinity in running_mean.
template <class scalar_t>
double plain_mean(const scalar_t* x, const View& v, int64_t c) {
  double sum = 0;
  for (int64_t n = 0; n < v.N; ++n) {
    for (int64_t s = 0; s < v.S; ++s)
      sum += double(acc_of<scalar_t>(x[v.last ? (n * v.S + s) * v.C + c : (n * v.C + c) * v.S + s]));
  }
  return sum / double(v.count());
}

// mean and sum of squared deviations of every channel.
template <class scalar_t>
void moments(const scalar_t* x, const View& v, Values& mean, Values& m2) {
  const int64_t chunks = chunks_of(v), total = v.last ? v.rows : v.count(), columns = v.last ? v.length : v.C;
  Values means(chunks * columns), spreads(chunks * columns);
  if (v.last) {
    torch::stable::parallel_for(
        0, chunks, grain_of(total * v.length / chunks), [&](int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k) {
            best_rows<scalar_t>().row_moments(x, v, total * k / chunks, total * (k + 1) / chunks,
                                              &means[k * columns], &spreads[k * columns]);
          }
        });
  } else {
    torch::stable::parallel_for(0, chunks * v.C, grain_of(total / chunks), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / v.C, c = task % v.C;
        const Moments part =
            best_rows<scalar_t>().channel_moments(x, v, c, total * k / chunks, total * (k + 1) / chunks);
        means[task] = part.mean, spreads[task] = part.m2;
      }
    });
  }
  for (int64_t c = 0; c < v.C; ++c) {
    Moments all;
    for (int64_t k = 0; k < chunks; ++k) {
      const double n = double(total * (k + 1) / chunks - total * k / chunks);
      for (int64_t i = c; i < columns; i += v.C)
        all.merge(n, means[k * columns + i], spreads[k * columns + i]);
    }
    mean[c] = std::isnan(all.mean) ? plain_mean(x, v, c) : all.mean, m2[c] = all.m2;
  }
}

// sum(g) and sum(g * normalized) of every channel; `store`: and the gradients, which in evaluation need no
// sums.
template <class scalar_t>
void gradient_sums(const Operands<scalar_t>& o, const View& v, const Gradients<scalar_t>& to, bool store,
                   Values& sum, Values& dot) {
  const int64_t chunks = chunks_of(v), total = v.last ? v.rows : v.count(), columns = v.last ? v.length : v.C;
  const Loops<scalar_t>& loops = best_rows<scalar_t>().loops(o);
  Values sums(chunks * columns), dots(chunks * columns);
  const int64_t tasks = v.last ? chunks : chunks * v.C, each = total / chunks * (v.last ? v.length : 1);
  torch::stable::parallel_for(0, tasks, grain_of(each), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t k = v.last ? task : task / v.C, begin = total * k / chunks,
                    end = total * (k + 1) / chunks;
      if (v.last) {
        loops.row_sums[store](o, v, to, begin, end, &sums[k * columns], &dots[k * columns]);
      } else {
        loops.channel_sums[store](o, v, to, task % v.C, begin, end, &sums[task], &dots[task]);
      }
    }
  });
  for (int64_t c = 0; c < v.C; ++c) {
    for (size_t i = c; i < sums.size(); i += v.C) sum[c] += sums[i], dot[c] += dots[i];
  }
}

Tensor dense_like(const Tensor& t, const Tensor& input, const BatchNormLayout& layout, const char* name) {
  STD_TORCH_CHECK(t.sizes().equals(input.sizes()) && t.scalar_type() == input.scalar_type(),
                  "batch_norm: ", name, " must have the input's shape and dtype");
  return torch::stable::contiguous(t, layout.format);
}

Tensor new_output(const Tensor& input, const BatchNormLayout& layout) {
  return torch::stable::empty(input.sizes(), input.scalar_type(), std::nullopt, std::nullopt, std::nullopt,
                              layout.format);
}

// Updates the running statistics with those of this batch; momentum none is the average over all batches.
void track(const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
           const optional<Tensor>& num_batches_tracked, optional<double> momentum, const Values& mean,
           const Values& m2, int64_t count) {
  double factor = momentum.value_or(0);
  if (num_batches_tracked) {
    int64_t* batches = num_batches_tracked->mutable_data_ptr<int64_t>();
    ++*batches;
    if (!momentum) factor = 1.0 / double(*batches);
  }
  if (!running_mean) return;
  Values rm = read_values(running_mean, mean.size(), 0), rv = read_values(running_var, mean.size(), 0);
  for (size_t c = 0; c < mean.size(); ++c) {
    rm[c] = (1 - factor) * rm[c] + factor * mean[c];
    rv[c] = (1 - factor) * rv[c] + factor * (m2[c] / double(count - 1));
  }
  write_values(running_mean, rm), write_values(running_var, rv);
}

}  // namespace

// See fastdl/batch_norm.py for the schema. mask is for kernels; here the backward recomputes from the
// residual.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_cpu(
    const Tensor& input, const optional<Tensor>& residual, const optional<Tensor>& weight,
    const optional<Tensor>& bias, const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
    const optional<Tensor>& num_batches_tracked, const optional<Tensor>& seed, bool training,
    optional<double> momentum, double eps, int64_t activation, double p, bool /*save_mask*/) {
  const BatchNormLayout layout(input);
  const View v = view_of(layout);
  const Tensor x = torch::stable::contiguous(input, layout.format);
  const optional<Tensor> z =
      residual ? optional<Tensor>(dense_like(*residual, input, layout, "residual")) : std::nullopt;
  const Values w = read_values(weight, layout.C, 1), b = read_values(bias, layout.C, 0);
  Values mean = read_values(running_mean, layout.C, 0), invstd = read_values(running_var, layout.C, 1);
  const Keep keep = read_keep(seed, p);
  STD_TORCH_CHECK(training || (running_mean && running_var),
                  "batch_norm: evaluation needs running statistics");
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                  "batch_norm: one running statistic is missing");
  Tensor output = new_output(input, layout), save_mean = new_values(layout.C),
         save_invstd = new_values(layout.C);
  dispatch_floating("batch_norm", input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* data = x.const_data_ptr<scalar_t>();
    if (training && input.numel() > 0) {
      Values m2(layout.C);
      moments(data, v, mean, m2);
      for (int64_t c = 0; c < layout.C; ++c) invstd[c] = m2[c] / double(v.count());
      track(running_mean, running_var, num_batches_tracked, momentum, mean, m2, v.count());
    } else if (training && num_batches_tracked) {
      track(std::nullopt, std::nullopt, num_batches_tracked, momentum, mean, invstd, 0);
    }
    for (double& value : invstd) value = 1 / std::sqrt(value + eps);
    const Constants<acc_of<scalar_t>> constants(v, mean.data(), invstd.data(), w, b);
    const Operands<scalar_t> o{
        data, z ? z->const_data_ptr<scalar_t>() : nullptr, nullptr, constants, Activation(activation), keep};
    const auto forward = best_rows<scalar_t>().loops(o).forward[v.last];
    torch::stable::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
      forward(o, v, output.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  write_values(save_mean, mean), write_values(save_invstd, invstd);
  return {output, save_mean, save_invstd, torch::stable::empty({0}, ScalarType::Byte)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const optional<Tensor>& residual,
    const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& save_mean,
    const Tensor& save_invstd, const optional<Tensor>& /*mask*/, const optional<Tensor>& seed, bool training,
    double /*eps*/, int64_t activation, double p, bool need_input, bool need_residual, bool need_params) {
  const BatchNormLayout layout(input);
  const View v = view_of(layout);
  const Tensor x = torch::stable::contiguous(input, layout.format);
  const Tensor grad = dense_like(grad_output, input, layout, "grad_output");
  const optional<Tensor> z =
      residual ? optional<Tensor>(dense_like(*residual, input, layout, "residual")) : std::nullopt;
  const Values w = read_values(weight, layout.C, 1), b = read_values(bias, layout.C, 0);
  const Values mean = read_values(save_mean, layout.C, 0), invstd = read_values(save_invstd, layout.C, 0);
  const Keep keep = read_keep(seed, p);
  const ScalarType parameter = weight ? weight->scalar_type()
                               : bias ? bias->scalar_type()
                                      : input.scalar_type();
  const Tensor nothing = torch::stable::empty({0}, input.scalar_type());
  const Tensor grad_input = need_input ? new_output(input, layout) : nothing;
  const Tensor grad_residual = need_residual ? new_output(input, layout) : nothing;
  const Tensor grad_weight = need_params ? new_values(layout.C, parameter) : nothing;
  const Tensor grad_bias = need_params ? new_values(layout.C, parameter) : nothing;
  Values sum(layout.C), dot(layout.C);
  dispatch_floating("batch_norm", input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = acc_of<scalar_t>;
    const Constants<acc_t> constants(v, mean.data(), invstd.data(), w, b);
    const Operands<scalar_t> o{x.const_data_ptr<scalar_t>(),    z ? z->const_data_ptr<scalar_t>() : nullptr,
                               grad.const_data_ptr<scalar_t>(), constants,
                               Activation(activation),          keep};
    const bool store = need_input || need_residual;
    Gradients<scalar_t> to{need_input ? grad_input.mutable_data_ptr<scalar_t>() : nullptr,
                           need_residual ? grad_residual.mutable_data_ptr<scalar_t>() : nullptr,
                           std::vector<acc_t>(constants.hi.size()), std::vector<acc_t>(constants.hi.size())};
    if (need_params || (need_input && training)) gradient_sums(o, v, to, store && !training, sum, dot);
    if (!store || (need_params && !training)) return;
    for (size_t i = 0; training && i < to.a.size(); ++i) {
      to.a[i] = acc_t(sum[i % v.C] / double(v.count())), to.b[i] = acc_t(dot[i % v.C] / double(v.count()));
    }
    const auto backward = best_rows<scalar_t>().loops(o).backward[v.last];
    torch::stable::parallel_for(0, input.numel(), kGrain,
                                [&](int64_t begin, int64_t end) { backward(o, v, to, begin, end); });
  });
  if (need_params) write_values(grad_weight, dot), write_values(grad_bias, sum);
  return {grad_input, grad_residual, grad_weight, grad_bias};
}

FASTDL_CPU_LIBRARY(m) {
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward_cpu));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward_cpu));
}

}  // namespace fastdl

void bind_batch_norm(pybind11::module_& m) {
  m.def(
      "batch_norm_plan",
      [](int64_t n, int64_t c, int64_t s, int element_bytes, int operands, bool reduces, bool packs,
         int multiprocessors, int64_t shared_bytes, bool clusters, bool channels_last) {
        using namespace fastdl::batch_norm;
        const Sizes size{n, c, s, channels_last};
        const DeviceLimits device{multiprocessors, shared_bytes, clusters};
        const Plan p = channels_last ? plan_rows(size, element_bytes, operands, reduces, device)
                                     : plan_channels(size, element_bytes, operands, reduces, packs, device);
        const char* const names[] = {"apply", "block", "cluster", "group", "stream"};
        pybind11::dict plan;
        plan["regime"] = names[int(p.regime)];
        plan["threads"] = p.threads, plan["pack"] = p.pack, plan["team"] = p.team;
        plan["packs"] = p.packs, plan["teams"] = p.teams, plan["blocks"] = p.blocks();
        plan["vectors"] = p.vectors, plan["slots"] = p.slots, plan["share"] = p.share,
        plan["shared_bytes"] = p.shared_bytes;
        return plan;
      },
      "How the kernels would share an (N, C, S) tensor on a device (csrc/batch_norm/plan.h)");
}
