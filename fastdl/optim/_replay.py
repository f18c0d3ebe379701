"""A step of CPU tensors taken again: while they are the same objects in the same shapes, only addresses are sent.

To turn thousands of tensors into an op's lists, and to check each, costs more than to update small ones.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastdl._library import _C
from fastdl.optim._step import LOW_PRECISION, optim_step
from fastdl.philox import new_seed

_CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}  # c10::ScalarType


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


_DTYPE, _IS_CPU = operator.attrgetter("dtype"), operator.attrgetter("is_cpu")


class _Shapes:
    """The dtypes, sizes and strides of tensors. Compared without lists of new objects: those wake the collector."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.dtypes = [t.dtype for t in tensors]
        self.sizes, self.strides = [t.size() for t in tensors], [t.stride() for t in tensors]

    def fit(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these CPU tensors have them."""
        return (
            all(map(_IS_CPU, tensors))
            and all(map(operator.is_, map(_DTYPE, tensors), self.dtypes))
            and all(map(operator.eq, map(Tensor.size, tensors), self.sizes))
            and all(map(operator.eq, map(Tensor.stride, tensors), self.strides))
        )


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


class _Group:
    """The tensors of one parameter group: `states[k]` holds the k-th state of every parameter."""

    def __init__(self, group: dict[str, Any], names: tuple[str, ...], state: dict[Tensor, dict[str, Any]]) -> None:
        self.params, self.grads = list(group["params"]), [p.grad for p in group["params"]]
        self.names = names
        self.of = [state[p] for p in self.params]
        self.states = [[d[name] for d in self.of] for name in names]
        self.shapes, self.grad_shapes = _Shapes(self.params), _Shapes(self.grads)
        self.addresses = [_addresses(column) for column in self.states]

    def is_plain(self, contiguous: bool) -> bool:
        """Whether every parameter lies in memory without gaps, and its gradient and states as it does."""
        rows = zip(self.params, self.grads, *(c for n, c in zip(self.names, self.states) if n != "step"))
        return all(
            type(p) in (Tensor, Parameter)
            and (
                p.is_contiguous()
                or (not contiguous and p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last))
            )
            and all(t.dtype in _CODES and t.shape == p.shape and t.stride() == p.stride() for t in (p, *others))
            and all(type(t) is Tensor and t.device.type == "cpu" for t in others)
            for p, *others in rows
        )

    def gradients(self, group: dict[str, Any], names: tuple[str, ...] | None) -> list[Tensor] | None:
        """Return this step's gradients, or None where more has changed than addresses."""
        grads = [p.grad for p in group["params"]]
        if (
            names is None
            or names != self.names
            or not _same(group["params"], self.params)
            or set(map(type, grads)) != {Tensor}
        ):
            return None
        try:
            states = [[d[name] for d in self.of] for name in names]
            fits = self.shapes.fit(self.params) and self.grad_shapes.fit(grads)
        except (KeyError, RuntimeError):  # a state that is gone; a sparse gradient has no strides
            return None
        for now, before, addresses in zip(states, self.states, self.addresses):
            fits = fits and _same(now, before) and _addresses(now) == addresses
        return grads if fits else None


class Replay:
    """The operands of an optimizer's last step, which the op has checked."""

    def __init__(self, optimizer: Any, groups: list[_Group], options: list[float]) -> None:
        self.groups, self.state, self.states = groups, optimizer.state, list(optimizer.state.values())
        columns = [c for g in groups for c in (g.params, g.grads, *g.states)]
        self.library = _C.OptimReplay(
            optimizer._rule.code,
            [len(g.params) for g in groups],
            [p.numel() for g in groups for p in g.params],
            [_CODES[t.dtype] for column in columns for t in column],
            [address for column in columns for address in _addresses(column)],
            options,
        )

    @classmethod
    def of(cls, optimizer: Any, options: list[float]) -> "Replay | None":
        """Return the step that was just taken, or None where it cannot be taken again in this way."""
        if not _by_op():
            return None
        groups = []
        for group in optimizer.param_groups:
            names = _names(optimizer, group)
            if names is None or any(p.grad is None or p not in optimizer.state for p in group["params"]):
                return None
            groups.append(_Group(group, names, optimizer.state))
            if not groups[-1].is_plain(group["stochastic_rounding"]):
                return None
        return cls(optimizer, groups, options)

    def step(self, optimizer: Any, found_inf: Tensor | None, max_grad_norm: float | None) -> bool:
        """Take the step; return False, with nothing done, where more than addresses has changed since the op's."""
        groups, state = optimizer.param_groups, optimizer.state
        if not _by_op() or state is not self.state or not _same(list(state.values()), self.states):
            return False
        lrs: list[Tensor] = []
        options = [value for group in groups for value in optimizer._option_row(group, False, lrs)]
        if lrs or len(groups) != len(self.groups):
            return False
        params: list[Tensor] = []
        grads: list[Tensor] = []  # held here until the step is over
        addresses: list[int] = []
        for group, kept in zip(groups, self.groups):
            found = kept.gradients(group, _names(optimizer, group))
            if found is None:
                return False
            params += kept.params
            grads += found
            addresses += _addresses(kept.params) + _addresses(found)
        grad_scale = getattr(optimizer, "grad_scale", None)
        self.library.step(
            addresses,
            options,
            None if grad_scale is None else float(grad_scale),
            None if found_inf is None else float(found_inf),
            max_grad_norm,
            int(new_seed(torch.device("cpu"))) if any(g["stochastic_rounding"] for g in groups) else 0,
        )
        torch.autograd.graph.increment_version(params)
        return True


def _by_op() -> bool:
    """Whether the op would run its own CPU code, with nobody who wants to see it."""
    return optim_step.run is optim_step.overload and not torch.compiler.is_compiling()


def _names(optimizer: Any, group: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the states of every parameter of a group in the kernel's order; None where they differ, or torch steps."""
    low = {p.dtype in LOW_PRECISION for p in group["params"]} if group["master_weights"] else {False}
    if group["differentiable"] or len(low) != 1:
        return None
    names: tuple[str, ...] = optimizer._wanted(group, optimizer._state_names(group), low.pop())
    return names
