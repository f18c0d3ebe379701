"""SGD with momentum: reference and optimizer. The kernel's form of the rule is Sgd in csrc/optim/rules.h."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdl.optim._base import FusedOptimizer
from fastdl.optim._step import Rule


def sgd_update(param: Tensor, grad: Tensor, states: list[Tensor], step: float, options: Mapping[str, float]) -> None:
    """Update `param` and `states` ([momentum_buffer] or []) in place; b = mu b + (1 - dampening) g, p = p - lr b.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", in torch's form.
    """
    if options["momentum"] != 0:
        (buffer,) = states
        if options["first"]:
            buffer.copy_(grad)
        else:
            buffer.mul_(options["momentum"]).add_(grad, alpha=1 - options["dampening"])
        grad = grad.add(buffer, alpha=options["momentum"]) if options["nesterov"] else buffer
    param.add_(grad, alpha=-options["lr"])


class SGD(FusedOptimizer, torch.optim.SGD):
    """torch.optim.SGD in one pass over memory; extras and `foreach`, `fused` as in `fastdl.optim.Adam`.

    Args:
        params, lr, weight_decay, maximize, differentiable: torch's, as in `fastdl.optim.Adam`.
        momentum: share mu of the buffer that stays, b = mu b + (1 - dampening) g; 0 keeps no buffer.
        dampening: share of the gradient that does not join the buffer.
        nesterov: step along g + mu b; needs a momentum and no dampening.

    Raises:
        ValueError: as torch, and for extras out of range.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
    >>> w.sum().backward(); optimizer.step(); print(w.data)
    tensor([0.9000, 0.9000])

    """

    _rule = Rule("sgd", sgd_update, counts_steps=False)
    _accepts_sparse = True

    @staticmethod
    def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    @staticmethod
    def _rule_options(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("momentum", "dampening", "nesterov")}
