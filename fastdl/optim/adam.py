"""Adam and AdamW: reference and optimizers. The kernel's form of the rule is Adam in csrc/optim/rules.h."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdl.optim._base import FusedOptimizer
from fastdl.optim._step import Rule


def adam_update(param: Tensor, grad: Tensor, states: list[Tensor], step: float, options: Mapping[str, float]) -> None:
    """Update `param` and `states` ([exp_avg, exp_avg_sq] or [..., max_exp_avg_sq]) in place; step counts from 1.

    Source: Kingma and Ba 2015, algorithm 1; AMSGrad: Reddi et al. 2018.
    """
    exp_avg, exp_avg_sq = states[:2]
    exp_avg.lerp_(grad, 1 - options["beta1"])
    exp_avg_sq.mul_(options["beta2"]).addcmul_(grad, grad, value=1 - options["beta2"])
    if options["amsgrad"]:
        exp_avg_sq = states[2].copy_(torch.maximum(states[2], exp_avg_sq))
    correction1, correction2 = 1 - options["beta1"] ** step, 1 - options["beta2"] ** step
    denominator = (exp_avg_sq.sqrt() / correction2**0.5).add_(options["eps"])
    param.addcdiv_(exp_avg, denominator, value=-options["lr"] / correction1)


class Adam(FusedOptimizer, torch.optim.Adam):
    """torch.optim.Adam in one pass over memory (two with clipping), and more in the same pass.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable, differentiable, decoupled_weight_decay:
            torch's: tensors or groups; step size; shares of the two means that stay; added to the root; L2 penalty.
        foreach, fused: accepted; every setting takes the fused path.
        l1: weight of the L1 penalty, >= 0.
        l1_mode: "subgradient" adds l1 * sign(p) to the gradient; "proximal" shrinks p by lr * l1 towards 0 after the
            update, which gives exact zeros.
        max_grad_norm: the gradients' norm over all groups, after unscaling, is clipped to this; `p.grad` stays.
        ema_decay: keeps decay * ema + (1 - decay) * p of every parameter, from its value before the first step
            (float32 for 16-bit parameters); read it with `ema_parameters()`.
        master_weights: float16 and bfloat16 parameters are updated in a float32 copy, with float32 states.
        stochastic_rounding: 16-bit parameters and states are rounded without bias; SGD then counts its steps too.
        rounding_seed: what its bits depend on, beside the parameter's count of steps; an int in [0, 2**53). None: drawn
            from torch's CPU generator at the first step that rounds. Replicas that must stay equal need the same.
        zero_grad: `p.grad` is filled with zeros once it is read, on a skipped step too; then `zero_grad()` has no work.

    Raises:
        ValueError: as torch, and for extras out of range.
        RuntimeError: as torch; and where a CUDA graph cannot capture the step, which wants contiguous tensors and two
            steps outside of the capture first.

    """

    _rule = Rule("adam", adam_update)

    @staticmethod
    def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    @staticmethod
    def _rule_options(group: Mapping[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "amsgrad": group["amsgrad"],
            "decoupled": group["decoupled_weight_decay"],
        }


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Arguments, extras and what it raises, ValueError above all, as in `fastdl.optim.Adam`.
    """
