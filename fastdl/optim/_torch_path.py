"""Where the fused step cannot go: sparse gradients and differentiable=True run torch's own code."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastdl.optim._step import EXTRAS

Part = tuple[Mapping[str, Any], Sequence[Tensor]]  # a group and some of its parameters


def check_part(optimizer: Optimizer, part: Part, accepts_sparse: bool) -> None:
    """Raise where torch has no code for this, or where an extra would silently be lost."""
    group, params = part
    name = type(optimizer).__name__
    sparse = any(p.grad is not None and p.grad.is_sparse for p in params)
    if sparse and not accepts_sparse:
        hint = ", please consider SparseAdam instead" if "Adam" in name else ""
        raise RuntimeError(f"{name.replace('AdamW', 'Adam')} does not support sparse gradients{hint}")
    if sparse and group["weight_decay"] != 0:
        raise RuntimeError("weight_decay option is not compatible with sparse gradients")
    extras = [name for name in EXTRAS if name not in ("l1_mode", "rounding_seed") and group[name]]
    if extras:
        kind = "sparse gradients take" if sparse else "differentiable=True takes"
        raise RuntimeError(f"{name}: {kind} torch's own step, which has no {', '.join(extras)}; leave it out")


@contextmanager
def _unscaled(optimizer: Optimizer, parts: Sequence[Part]) -> Iterator[None]:
    """Give torch's for-loop gradients without GradScaler's factor; it does not know of scalers itself."""
    hidden: dict[str, Any] = {
        k: optimizer.__dict__.pop(k) for k in ("grad_scale", "found_inf") if k in optimizer.__dict__
    }
    scale = hidden.get("grad_scale")
    grads = [(p, p.grad) for _, params in parts for p in params]
    try:
        if scale is not None:
            for p, grad in grads:
                p.grad = grad * scale.to(p.device).double().reciprocal().float()
        yield
    finally:
        optimizer.__dict__.update(hidden)
        for p, grad in grads:
            p.grad = grad


def step_in_torch(optimizer: Optimizer, torch_step: Any, parts: Sequence[Part]) -> None:
    """Run the for-loop step of torch's class on the given parameters."""
    groups = optimizer.param_groups
    loop = {"foreach": False, "fused": False}
    optimizer.param_groups = [
        {**group, **{k: v for k, v in loop.items() if k in group}, "params": list(params)} for group, params in parts
    ]
    try:
        with _unscaled(optimizer, parts), torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            torch_step(optimizer)
    finally:
        optimizer.param_groups = groups
