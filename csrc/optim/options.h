// A parameter group's options as they cross from Python: a row of doubles in this order
// (fastdl/optim/_step.py).
#pragma once

namespace fastdl::optim {

enum RuleName { kSgd, kAdam, kRmsProp, kAdagrad };  // order of RULES in fastdl/optim/_step.py

struct Options {
  double lr, lr_index;  // the lr is lrs[lr_index] where that is not negative
  double weight_decay, decoupled, maximize;
  double l1, proximal, ema_decay;                             // ema_decay < 0: none
  double master_weights, stochastic_rounding, rounding_seed;  // the seed: a whole number below 2^53
  double momentum, dampening, nesterov, first;                // first: the momentum buffer is new
  double beta1, beta2, eps, amsgrad;
  double alpha, centered, lr_decay;
  double zero_grad;  // the gradient is zeroed once it is read
};
constexpr int kOptionCount = sizeof(Options) / sizeof(double);

}  // namespace fastdl::optim
