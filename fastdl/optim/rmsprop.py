"""RMSprop: reference and optimizer. The kernel's form of the rule is RmsProp in csrc/optim/rules.h."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdl.optim._base import FusedOptimizer
from fastdl.optim._step import Rule


def rmsprop_update(
    param: Tensor, grad: Tensor, states: list[Tensor], step: float, options: Mapping[str, float]
) -> None:
    """Update `param` and `states` ([square_avg], [grad_avg if centered], [momentum_buffer if momentum]) in place.

    Source: Hinton 2012, lecture 6; centered: Graves 2013, "Generating sequences with recurrent neural networks".
    """
    square_avg, rest = states[0], states[1:]
    variance = square_avg.mul_(options["alpha"]).addcmul_(grad, grad, value=1 - options["alpha"])
    if options["centered"]:
        mean = rest[0].lerp_(grad, 1 - options["alpha"])
        variance = square_avg.addcmul(mean, mean, value=-1)
    root = variance.sqrt().add_(options["eps"])
    if options["momentum"] > 0:
        buffer = rest[-1].mul_(options["momentum"]).addcdiv_(grad, root)
        param.add_(buffer, alpha=-options["lr"])
    else:
        param.addcdiv_(grad, root, value=-options["lr"])


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """torch.optim.RMSprop in one pass over memory; extras and `foreach` as in `fastdl.optim.Adam`.

    Args:
        params, lr, eps, weight_decay, capturable, maximize, differentiable: torch's, as in `fastdl.optim.Adam`.
        alpha: share of the mean square that stays.
        momentum: share of the buffer that stays; 0 keeps no buffer.
        centered: divide by the estimated standard deviation in place of the root mean square (Graves 2013).

    Raises:
        ValueError: as torch, and for extras out of range.

    """

    _rule = Rule("rmsprop", rmsprop_update)

    @staticmethod
    def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
        centered = ("grad_avg",) if group["centered"] else ()
        return ("square_avg", *centered, "momentum_buffer") if group["momentum"] > 0 else ("square_avg", *centered)

    @staticmethod
    def _rule_options(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("alpha", "eps", "momentum", "centered")}
