"""A step taken again: while tensors lie in memory as they did, C++ looks at addresses alone (csrc/optim/replay.h).

To turn thousands of tensors into an op's lists, and to check each, costs more than to update small ones. On a device
the records of parameters and states stay, and a step sends its options and its gradients' addresses with the launch.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]
from torch.nn import Parameter
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

from fastdl import _library
from fastdl._library import _C
from fastdl.optim._step import LOW_PRECISION, check_extras, optim_step

# The address of the library that steps on the device of `like`, for _C.OptimReplay; 0: _C itself does.
optim_library = _library.define("optim_library(Tensor like) -> int", fake=lambda like: 0, reference=lambda like: 0)


class _Refresh:
    """Reads a group's options anew once one of them is another."""

    def __init__(self, optimizer: Any, names: list[tuple[str, ...]]) -> None:
        self.optimizer, self.names = weakref.ref(optimizer), names
        self.rounds = [group["stochastic_rounding"] for group in optimizer.param_groups]

    def __call__(self, index: int) -> tuple[list[float], float | None] | None:
        """Return the row of options and the norm to clip to; None where the states would be others."""
        optimizer: Any = self.optimizer()
        group = optimizer.param_groups[index]
        check_extras(type(optimizer).__name__, group)
        optimizer._seed_rounding()
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
        size = _C.optim_workspace_bytes(sum(len(group["params"]) for group in groups), len(groups))

        def pinned(size: int) -> Tensor:
            return torch.empty(size, dtype=torch.uint8, pin_memory=device.type != "cpu", device="cpu")

        rows = [optimizer._option_row(group, False, []) for group in groups]
        self.library = _C.OptimReplay(
            optimizer._rule.code,
            list(zip(groups, names, rows, strict=True)),
            optimizer.state,
            optimizer._max_grad_norm(),
            _Refresh(optimizer, names),
            library,
            lambda: torch.zeros(size, dtype=torch.uint8, device=device),
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


def by_address_first(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap step as torch does, with hooks and a profiler's range; not where nobody asked for either (10 us a step)."""
    seen = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(self: "ReplayedOptimizer", *args: Any, **kwargs: Any) -> Any:
        if type(self).step is not wrapper:  # a subclass has a step of its own, which torch has wrapped
            return step(self, *args, **kwargs)
        if not torch.compiler.is_compiling() and not args and not kwargs and self._replayed():
            return None
        return seen(self, *args, **kwargs)

    wrapper.hooked = True  # type: ignore[attr-defined]
    return wrapper


class ReplayedOptimizer(Optimizer):
    """Mixin: keeps the form of the last step, and takes the next by it."""

    _kept: Replay | None = None

    def _replayed(self) -> bool:
        """Take the step by addresses where that will do; False where nothing was done."""
        kept = self._kept
        if kept is None or self._is_watched():
            return False
        if kept.step(self):
            return True
        self._drop()
        return False

    def _is_watched(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or _profiler_enabled()
        )

    def _drop(self) -> None:
        """Forget the last step's form; what a captured graph reads of it stays as long as the optimizer."""
        if self._kept is not None and self._kept.library.is_captured:
            self.__dict__.setdefault("_captured", []).append(self._kept)
        self._kept = None
