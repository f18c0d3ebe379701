"""Adagrad: reference and optimizer. The kernel's form of the rule is Adagrad in csrc/optim/rules.h."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdl.optim._base import FusedOptimizer
from fastdl.optim._step import LOW_PRECISION, Rule


def adagrad_update(
    param: Tensor, grad: Tensor, states: list[Tensor], step: float, options: Mapping[str, float]
) -> None:
    """Update `param` and `states` ([sum]) in place; step counts from 1.

    Source: Duchi, Hazan and Singer 2011, "Adaptive subgradient methods", with torch's decay of the learning rate.
    """
    root = states[0].addcmul_(grad, grad).sqrt().add_(options["eps"])
    param.addcdiv_(grad, root, value=-options["lr"] / (1 + (step - 1) * options["lr_decay"]))


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """torch.optim.Adagrad in one pass over memory; extras and `foreach`, `fused` as in `fastdl.optim.Adam`.

    Args:
        params, lr, eps, weight_decay, maximize, differentiable: torch's, as in `fastdl.optim.Adam`.
        lr_decay: step t uses lr / (1 + (t - 1) lr_decay).
        initial_accumulator_value: what the sum of squares starts from.

    Raises:
        ValueError: as torch, and for extras out of range.

    """

    _rule = Rule("adagrad", adagrad_update)
    _accepts_sparse = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:  # torch makes the state here, in the parameter's dtype
            for p in group["params"]:
                if group["master_weights"] and p.dtype in LOW_PRECISION:
                    self.state[p]["sum"] = torch.full_like(p, self._initial_value("sum"), dtype=torch.float32)

    @staticmethod
    def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    @staticmethod
    def _rule_options(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("lr_decay", "eps")}

    def _initial_value(self, name: str) -> float:
        return float(self.defaults["initial_accumulator_value"])
