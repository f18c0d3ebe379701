"""The op behind every optimizer: one call updates all parameters. Schema, reference, and how options travel."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdl import _library
from fastdl.optim._rounding import round_stochastically

EXTRAS: dict[str, Any] = {
    "l1": 0.0,
    "l1_mode": "subgradient",
    "max_grad_norm": None,
    "ema_decay": None,
    "master_weights": False,
    "stochastic_rounding": False,
    "rounding_seed": None,
    "zero_grad": False,
}


def check_extras(name: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError for an extra out of range."""
    if not group["l1"] >= 0.0:
        raise ValueError(f"Invalid l1 value: {group['l1']}; {name} needs l1 >= 0")
    if group["l1_mode"] not in ("subgradient", "proximal"):
        raise ValueError(f"Invalid l1_mode: {group['l1_mode']!r}; {name} knows 'subgradient' and 'proximal'")
    if group["max_grad_norm"] is not None and not group["max_grad_norm"] > 0.0:
        raise ValueError(f"Invalid max_grad_norm value: {group['max_grad_norm']}; {name} needs None or a norm > 0")
    if group["ema_decay"] is not None and not 0.0 <= group["ema_decay"] < 1.0:
        raise ValueError(f"Invalid ema_decay value: {group['ema_decay']}; {name} needs None or 0 <= ema_decay < 1")
    seed = group["rounding_seed"]
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**53):
        raise ValueError(
            f"Invalid rounding_seed value: {seed!r}; {name} needs None or an int, 0 <= rounding_seed < 2**53"
        )
    if group["master_weights"] and group["stochastic_rounding"]:
        raise ValueError(f"{name}: master_weights and stochastic_rounding exclude each other; drop one")


# One parameter group's options as a row of floats: the fields of Options in csrc/optim/options.h, in its order.
# fmt: off
OPTIONS = (
    "lr", "lr_index", "weight_decay", "decoupled", "maximize", "l1", "proximal", "ema_decay", "master_weights",
    "stochastic_rounding", "rounding_seed", "momentum", "dampening", "nesterov", "first", "beta1", "beta2", "eps",
    "amsgrad", "alpha", "centered", "lr_decay", "zero_grad",
)
# fmt: on

LOW_PRECISION = (torch.float16, torch.bfloat16)

# update(param, grad, states, step, options): the published formula, in place.
Update = Callable[[Tensor, Tensor, list[Tensor], float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Rule:
    """An update rule: its name (order and spelling of RuleName in csrc/optim/options.h) and its formula."""

    name: str
    update: Update
    counts_steps: bool = True

    def __post_init__(self) -> None:
        RULES[RULE_NAMES.index(self.name)] = self

    @property
    def code(self) -> int:
        """What C++ calls the rule."""
        return RULE_NAMES.index(self.name)

    def has_step(self, options: Mapping[str, Any]) -> bool:
        """Return whether a parameter's steps are counted: for the formula, or for the bits of rounding."""
        return self.counts_steps or bool(options["stochastic_rounding"])

    def state_count(self, options: Mapping[str, float]) -> int:
        """Return how many states of a parameter the rule has under these options, the step not counted."""
        return {
            "sgd": int(options["momentum"] != 0),
            "adam": 2 + int(options["amsgrad"] != 0),
            "rmsprop": 1 + int(options["centered"] != 0) + int(options["momentum"] > 0),
            "adagrad": 1,
        }[self.name]


RULE_NAMES = ("sgd", "adam", "rmsprop", "adagrad")
RULES: dict[int, Rule] = {}


def _square_sum(grads: Sequence[Tensor], inv_scale: Tensor | float) -> Tensor:
    return torch.stack([(g.double() * inv_scale).square().sum() for g in grads]).sum()


def _soft_threshold(param: Tensor, threshold: float) -> Tensor:
    return (param.abs() - threshold).clamp(min=0).copysign(param)


@torch.no_grad()
def step_reference(
    rule: int,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    lrs: list[Tensor],
    counts: list[int],
    options: list[float],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    max_grad_norm: float | None,
    grad_norm: Tensor | None,
    ordinals: list[int],
    workspace: list[Tensor] | None = None,
) -> None:
    """Step in the order of the text books: unscale, clip, L1, L2, decay, rule, proximal map, rounding, EMA."""
    width = len(OPTIONS)
    zeroes = [options[row * width + OPTIONS.index("zero_grad")] for row, n in enumerate(counts) for _ in range(n)]
    zeroed = [grad for grad, zero in zip(grads, zeroes) if zero]
    if not params or (found_inf is not None and bool(found_inf)):
        return _zero(zeroed)
    factor: Tensor | float = 1.0 if grad_scale is None else grad_scale.double().reciprocal().float()
    if max_grad_norm is not None:
        norm = _square_sum(grads, factor).sqrt() if grad_norm is None else grad_norm
        if found_inf is not None and not bool(norm.isfinite()):
            return _zero(zeroed)
        factor = factor * torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0)
    rest, i = iter(states), 0
    for row, count in enumerate(counts):
        o = dict(zip(OPTIONS, options[row * width : (row + 1) * width]))
        if o["lr_index"] >= 0:
            o["lr"] = float(lrs[int(o["lr_index"])])
        for _ in range(count):
            _update_one(RULES[rule], params[i], grads[i] * factor, rest, o, ordinals[i] if ordinals else i)
            i += 1
    _zero(zeroed)


def _zero(grads: Sequence[Tensor]) -> None:
    for grad in grads:
        grad.zero_()


def _update_one(
    rule: Rule, param: Tensor, grad: Tensor, rest: Iterator[Tensor], o: dict[str, float], ordinal: int
) -> None:
    low = param.dtype in LOW_PRECISION
    step = float(next(rest).add_(1)) if rule.has_step(o) else 0.0
    stored = [next(rest) for _ in range(rule.state_count(o))]
    master = next(rest) if low and o["master_weights"] else None
    ema = next(rest) if o["ema_decay"] >= 0 else None
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    p, g = (param if master is None else master).to(dtype, copy=True), grad.to(dtype)
    work = [s.to(dtype, copy=True) for s in stored]

    g = -g if o["maximize"] else g
    if o["l1"] and not o["proximal"]:
        g = g + o["l1"] * p.sign()
    if o["weight_decay"] and not o["decoupled"]:
        g = g.add(p, alpha=o["weight_decay"])
    if o["decoupled"]:
        p.mul_(1 - o["lr"] * o["weight_decay"])
    rule.update(p, g, work, step, o)
    if o["l1"] and o["proximal"]:
        p = _soft_threshold(p, o["lr"] * o["l1"])

    for slot, (target, value) in enumerate(zip([param, *stored], [p, *work])):
        rounds = o["stochastic_rounding"] and target.dtype in LOW_PRECISION and not (slot == 0 and master is not None)
        if rounds:
            value = round_stochastically(value, target.dtype, int(o["rounding_seed"]), int(step), ordinal, slot)
        target.copy_(value)
    if master is not None:
        master.copy_(p)
    if ema is not None:
        ema.lerp_((p if master is not None else param).to(ema.dtype), 1 - o["ema_decay"])


optim_step = _library.define(
    "optim_step_(int rule, Tensor(a!)[] params, Tensor(d!)[] grads, Tensor(b!)[] states, Tensor[] lrs, int[] counts, "
    "float[] options, Tensor? grad_scale, Tensor? found_inf, float? max_grad_norm, Tensor? grad_norm, int[] ordinals, "
    "Tensor(c!)[] workspace) -> ()",
    fake=lambda *args: None,
    reference=step_reference,
)
