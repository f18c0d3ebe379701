"""A step taken again: while tensors lie in memory as they did, C++ looks at addresses alone (csrc/optim/replay.h).

To turn thousands of tensors into an op's lists, and to check each, costs more than to update small ones. On a device the
records of parameters and states stay there, and a step sends its options and its gradients' addresses with the launch.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastdl import _library
from fastdl._library import _C
from fastdl.optim._step import LOW_PRECISION, check_extras, optim_step
from fastdl.philox import new_seed

# The address of the library that steps on the device of `like`, for _C.OptimReplay; 0: _C itself does.
optim_library = _library.define("optim_library(Tensor like) -> int", fake=lambda like: 0, reference=lambda like: 0)


class _Refresh:
    """Reads a group's options anew once one of them is another."""

    def __init__(self, optimizer: Any, names: list[tuple[str, ...]]) -> None:
        self.optimizer, self.names = weakref.ref(optimizer), names
        self.rounds = [group["stochastic_rounding"] for group in optimizer.param_groups]

    def __call__(self, index: int) -> tuple[list[float], float | None] | None:
        """Return the row of options and the norm to clip to; None where the states would be others. Raises ValueError."""
        optimizer = self.optimizer()
        group = optimizer.param_groups[index]
        check_extras(type(optimizer).__name__, group)
        if _names(optimizer, group) != self.names[index] or group["stochastic_rounding"] != self.rounds[index]:
            return None
        return optimizer._option_row(group, False, []), optimizer._max_grad_norm()


class Replay:
    """The form of an optimizer's last step, which the op has checked."""

    def __init__(self, optimizer: Any, names: list[tuple[str, ...]]) -> None:
        groups = optimizer.param_groups
        like = next(p for group in groups for p in group["params"] if p.grad is not None)
        self.run, device = optim_step.run, like.device
        library = optim_library(like)
        workspace, pinned = None, None
        if library:
            size = _C.optim_workspace_bytes(sum(len(group["params"]) for group in groups), len(groups))
            workspace = torch.zeros(size, dtype=torch.uint8, device=device)

            def pinned(size: int) -> Tensor:
                return torch.empty(size, dtype=torch.uint8, pin_memory=device.type != "cpu")

        rows = [optimizer._option_row(group, False, []) for group in groups]
        self.library = _C.OptimReplay(
            optimizer._rule.code,
            list(zip(groups, names, rows, strict=True)),
            optimizer.state,
            optimizer._max_grad_norm(),
            _Refresh(optimizer, names),
            lambda: new_seed(device),
            library,
            workspace,
            pinned,
        )

    @classmethod
    def of(cls, optimizer: Any) -> "Replay | None":
        """Return the step that was just taken, or None where it cannot be taken again in this way."""
        if optim_step.run is optim_step.reference or torch.compiler.is_compiling():
            return None
        names = [_names(optimizer, group) for group in optimizer.param_groups]
        plain = all(type(p) in (Tensor, Parameter) for group in optimizer.param_groups for p in group["params"])
        if not plain or any(n is None for n in names):
            return None
        try:
            return cls(optimizer, [n for n in names if n is not None])
        except ValueError:  # layouts or types that the op alone can take
            return None

    def step(self, optimizer: Any) -> bool:
        """Take the step; return False, with nothing done, where more has changed than addresses and options."""
        if (
            optim_step.run is not self.run
            or torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()  # somebody wants to see the op
        ):
            return False
        scaler = optimizer.__dict__
        written = self.library.step(
            optimizer.param_groups, optimizer.state, scaler.get("grad_scale"), scaler.get("found_inf")
        )
        if written is None:
            return False
        for tensors in written:
            torch._C._increment_version(tensors)
        return True


def _names(optimizer: Any, group: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the states of every parameter of a group in the kernel's order; None where they differ, or torch steps."""
    low = {p.dtype in LOW_PRECISION for p in group["params"]} if group["master_weights"] else {False}
    if group["differentiable"] or len(low) > 1:
        return None
    if group["ema_decay"] is not None and any(p.grad is None for p in group["params"]):
        return None  # averages of parameters that rest move too
    names: tuple[str, ...] = optimizer._wanted(group, optimizer._state_names(group), low == {True})
    return names
