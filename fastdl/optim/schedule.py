"""Learning-rate schedules that live on the parameters' device: a replayed CUDA graph still schedules.

Each is closed-form in a step counter kept beside the learning rates, written by in-place tensor operations; the lr of
every group becomes a one-element float64 tensor, which the optimizers read where it lies. The values are those of
torch's schedulers of the same meaning. Call `step()` after `optimizer.step()`, inside a captured region too.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Schedule:
    """Base: subclasses say `lr(base, t)`, the rate after t steps for a group that began with the rate `base`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.base_lrs: list[Tensor] = []
        for group in optimizer.param_groups:
            base = float(group.setdefault("initial_lr", float(group["lr"])))
            self.base_lrs.append(torch.tensor(base, dtype=torch.float64, device=device))
            group["lr"] = self.base_lrs[-1].clone()
        self._write()

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return the rate after t steps; all float64, on the schedule's device."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self) -> None:
        """Go one step on, without a word to the host."""
        self.count.add_(1)
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"].copy_(self.lr(base, self.count))

    def get_last_lr(self) -> list[float]:
        """Return the rates of all groups; waits for the device."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the counter and the rates the groups began with; waits for the device."""
        return {"count": float(self.count), "base_lrs": [float(base) for base in self.base_lrs]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from another schedule's state, in the tensors that a captured graph knows."""
        self.count.fill_(state_dict["count"])
        for base, value in zip(self.base_lrs, state_dict["base_lrs"], strict=True):
            base.fill_(value)
        self._write()


class Constant(Schedule):
    """base * factor for the first `total_iters` steps, then base."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return base or a part of it."""
        return torch.where(t < self.total_iters, base * self.factor, base)


class Step(Schedule):
    """base * gamma ** (t // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return base, reduced every step_size steps."""
        return base * torch.pow(self.gamma, torch.floor(t / self.step_size))


class Exponential(Schedule):
    """base * gamma ** t."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return base, reduced every step."""
        return base * torch.pow(self.gamma, t)


class Cosine(Schedule):
    """eta_min + (base - eta_min) (1 + cos(pi t / T_max)) / 2. Source: Loshchilov and Hutter 2017, SGDR, eq. 5."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return a half wave from base to eta_min."""
        return self.eta_min + (base - self.eta_min) * (1 + torch.cos(math.pi / self.T_max * t)) / 2


class LinearWarmup(Schedule):
    """A straight line from base * start_factor to base over total_iters steps; then base, or `after` from its start.

    `after` is another schedule of the same optimizer, whose own `step` is then not called.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, total_iters: int = 5, after: Schedule | None = None
    ) -> None:
        self.start_factor, self.total_iters, self.after = start_factor, total_iters, after
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return the line, then what follows."""
        line = base * (self.start_factor + (1 - self.start_factor) * torch.clamp(t / self.total_iters, max=1))
        if self.after is None:
            return line
        return torch.where(t < self.total_iters, line, self.after.lr(base, torch.clamp(t - self.total_iters, min=0)))


class OneCycle(Schedule):
    """Up to max_lr within pct_start of total_steps, then down to next to nothing; half waves or straight lines.

    Source: Smith and Topin 2018, super-convergence; torch's OneCycleLR with cycle_momentum=False.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}")
        self.initial, self.max_lr = max_lr / div_factor, max_lr
        self.final = self.initial / final_div_factor
        self.up, self.down = pct_start * total_steps - 1, (1 - pct_start) * total_steps
        self.anneal_strategy = anneal_strategy
        super().__init__(optimizer)

    def lr(self, base: Tensor, t: Tensor) -> Tensor:
        """Return the rate of the cycle; base has no part in it."""
        rising = self._between(self.initial, self.max_lr, torch.clamp(t / self.up, 0, 1))
        return torch.where(
            t <= self.up, rising, self._between(self.max_lr, self.final, torch.clamp((t - self.up) / self.down, 0, 1))
        )

    def _between(self, start: float, end: float, part: Tensor) -> Tensor:
        if self.anneal_strategy == "linear":
            return start + (end - start) * part
        return end + (start - end) / 2 * (1 + torch.cos(math.pi * part))
