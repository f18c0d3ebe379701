"""What all optimizers share: options, state, and the step that hands everything to one op."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype, _use_grad_for_differentiable

from fastdl._library import _C
from fastdl.optim._average import AveragedOptimizer
from fastdl.optim._replay import Replay, ReplayedOptimizer, by_address_first
from fastdl.optim._rounding import RoundingOptimizer
from fastdl.optim._step import EXTRAS, LOW_PRECISION, OPTIONS, Rule, check_extras, optim_step
from fastdl.optim._torch_path import Part, check_part, step_in_torch


class _Batch:
    """The op's lists for the parameters of one device, and the states to keep once the step has succeeded."""

    def __init__(self) -> None:
        self.owners: list[Tensor] = []  # the optimizer's parameters; `params` are what lies on this rank
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[Tensor] = []
        self.lrs: list[Tensor] = []
        self.counts: list[int] = []
        self.options: list[float] = []
        self.rounds = self.first = self.zeroes = False


class FusedOptimizer(ReplayedOptimizer, AveragedOptimizer, RoundingOptimizer):
    """Mixin in front of a torch optimizer: torch's class holds options and state, this one takes the step."""

    _rule: Rule
    _accepts_sparse = False
    _torch_step: Callable[..., Any]
    _step_supports_amp_scaling = True  # GradScaler then leaves unscaling and skipping to the step

    def __init_subclass__(cls) -> None:
        """Show torch's signature with the extras behind it."""
        torch_class = next(c for c in cls.__mro__ if c.__module__.startswith("torch.optim"))
        own = inspect.signature(torch_class).parameters.values()
        extras = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v) for k, v in EXTRAS.items()]
        cls.__signature__ = inspect.Signature([*own, *extras])  # type: ignore[attr-defined]
        cls._torch_step = staticmethod(inspect.unwrap(torch_class.step))  # type: ignore[attr-defined]

    def __init__(
        self,
        *args: Any,
        l1: float = 0.0,
        l1_mode: str = "subgradient",
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int | None = None,
        zero_grad: bool = False,
        **kwargs: Any,
    ) -> None:
        extras = (l1, l1_mode, max_grad_norm, ema_decay, master_weights, stochastic_rounding, rounding_seed, zero_grad)
        self._extras = dict(zip(EXTRAS, extras, strict=True))
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, with the extras among its options."""
        for name, value in self._extras.items():
            self.defaults.setdefault(name, value)
        if isinstance(param_group, dict):
            check_extras(type(self).__name__, {**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._extras = {name: self.defaults.get(name, value) for name, value in EXTRAS.items()}
        for group in self.param_groups:  # a checkpoint of torch's knows no extras
            for name, value in self._extras.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's. float32 states of 16-bit parameters stay float32."""
        super().load_state_dict(state_dict)
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for key, p in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                wide = isinstance(value, Tensor) and value.dtype == torch.float32
                if wide and name != "step" and p.dtype in LOW_PRECISION:
                    self.state[p][name] = value.to(device=p.device)

    @by_address_first
    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: all groups, all tensors, one call. A step that raises has changed nothing.

        Args:
            closure: reevaluates the model and returns the loss, which step returns.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    # What a rule's class says: names of its states in the kernel's order, its options, how states begin.
    @staticmethod
    def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError

    @staticmethod
    def _rule_options(group: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _initial_value(self, name: str) -> float:
        return 0.0

    def _step(self) -> None:
        if self._kept is not None:
            if self._kept.step(self):
                return
            self._drop()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            check_extras(type(self).__name__, group)
        max_grad_norm = self._max_grad_norm()
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item() != 0:
            return self._zero_skipped()
        self._seed_rounding()
        batches: dict[torch.device, _Batch] = {}
        fresh: list[tuple[Tensor, str, Tensor]] = []
        torch_parts: list[Part] = []
        for group in self.param_groups:
            params: list[Tensor] = []
            in_torch: list[Tensor] = []
            for p in group["params"]:
                if p.grad is not None:
                    (in_torch if group["differentiable"] or p.grad.is_sparse else params).append(p)
            if in_torch:
                torch_parts.append((group, in_torch))
                check_part(self, torch_parts[-1], self._accepts_sparse)
            self._add_group(batches, fresh, group, params)
        if found_inf is not None and any(b.first for b in batches.values()) and found_inf.item() != 0:
            # A first buffer must not come from a skipped step; asked of the device this once.
            return self._zero_skipped()
        for device, batch in batches.items():
            self._run(device, batch, max_grad_norm, self._norm_across(batches, max_grad_norm))
        for p, name, value in fresh:
            self.state[p][name] = value
        if torch_parts:
            step_in_torch(self, self._torch_step, torch_parts)
        self._average_still(found_inf)
        if not torch_parts and len(batches) == 1 and not any(b.first for b in batches.values()):
            self._kept = Replay.of(self)

    def _zero_skipped(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if group["zero_grad"] and p.grad is not None:
                    p.grad.zero_()

    def _add_group(
        self,
        batches: dict[torch.device, _Batch],
        fresh: list[tuple[Tensor, str, Tensor]],
        group: dict[str, Any],
        params: list[Tensor],
    ) -> None:
        names = self._state_names(group)
        runs: dict[tuple[torch.device, bool], list[Tensor]] = {}
        for p in params:
            # Without dampening a buffer of zeros takes its first gradient as it is.
            first = bool(group.get("dampening")) and self.state.get(p, {}).get("momentum_buffer") is None
            runs.setdefault((p.device, first), []).append(p)
        for (device, first), members in runs.items():
            batch = batches.setdefault(device, _Batch())
            for p in members:
                assert p.grad is not None
                views = [p, p.grad, *self._states(p, group, names, fresh)]
                if hasattr(p, "to_local"):  # DTensor: this rank's part
                    views = [t.to_local() if hasattr(t, "to_local") else t for t in views]
                if p.is_complex():
                    views = [torch.view_as_real(t) if t.is_complex() else t for t in views]
                batch.owners.append(p)
                batch.params.append(views[0])
                batch.grads.append(views[1])
                batch.states += views[2:]
            batch.counts.append(len(members))
            batch.options += self._option_row(group, first, batch.lrs)
            batch.rounds |= group["stochastic_rounding"]
            batch.zeroes |= group["zero_grad"]
            batch.first |= first

    def _wanted(self, group: dict[str, Any], names: tuple[str, ...], low: bool) -> tuple[str, ...]:
        """Return the names of all states of a parameter in the kernel's order."""
        step = ("step",) if self._rule.has_step(group) else ()
        master = ("master_param",) if low and group["master_weights"] else ()
        return (*step, *names, *master, *(() if group["ema_decay"] is None else ("ema",)))

    def _states(
        self, p: Tensor, group: dict[str, Any], names: tuple[str, ...], fresh: list[tuple[Tensor, str, Tensor]]
    ) -> list[Tensor]:
        """Return the parameter's states in the kernel's order; those it lacks are made, but not yet stored."""
        low = p.dtype in LOW_PRECISION
        wide = torch.float32 if low else p.dtype
        state = self.state.get(p, {})
        tensors = []
        for name in self._wanted(group, names, low):
            value = state.get(name)
            if name == "step" and value is not None and value.device != p.device and p.device.type != "cpu":
                value = value.to(p.device)  # the kernel counts on the device
                fresh.append((p, name, value))
            if value is None:
                if name == "step":
                    on_device = group.get("capturable") or group.get("fused") or p.device.type != "cpu"
                    dtype = _get_scalar_dtype(is_fused=group.get("fused"))
                    value = torch.zeros((), dtype=dtype, device=p.device if on_device else "cpu")
                elif name in ("master_param", "ema"):
                    value = p.detach().to(wide, copy=True)
                else:
                    begin = self._initial_value(name)
                    value = torch.full_like(
                        p.detach(),
                        complex(begin, begin) if p.is_complex() else begin,
                        dtype=wide if group["master_weights"] else p.dtype,
                        memory_format=torch.preserve_format,
                    )
                fresh.append((p, name, value))
            tensors.append(value)
        return tensors

    def _option_row(self, group: dict[str, Any], first: bool, lrs: list[Tensor]) -> list[float]:
        options = {
            **dict.fromkeys(OPTIONS, 0.0),
            **self._rule_options(group),
            "lr_index": -1,
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
            "l1": group["l1"],
            "proximal": group["l1_mode"] == "proximal",
            "ema_decay": -1 if group["ema_decay"] is None else group["ema_decay"],
            "master_weights": group["master_weights"],
            "stochastic_rounding": group["stochastic_rounding"],
            "rounding_seed": group["rounding_seed"] if group["stochastic_rounding"] else 0,
            "first": first,
            "zero_grad": group["zero_grad"],
        }
        lr = group["lr"]
        if torch.compiler.is_compiling() and not isinstance(lr, Tensor):  # each number would be compiled anew
            lr = torch.ones((), dtype=torch.float64, device=group["params"][0].device) * lr
        if isinstance(lr, Tensor):
            options["lr_index"] = len(lrs)
            lrs.append(lr.detach())
        else:
            options["lr"] = lr
        return [float(options[name]) for name in OPTIONS]

    def _max_grad_norm(self) -> float | None:
        norms: set[float | None] = {group["max_grad_norm"] for group in self.param_groups}
        if len(norms) > 1:
            raise ValueError(f"{type(self).__name__}: one norm is clipped over all groups, got max_grad_norm {norms}")
        return next(iter(norms))

    def _norm_across(self, batches: dict[torch.device, _Batch], max_grad_norm: float | None) -> Tensor | None:
        """Return the gradients' norm where one call does not see them all: several devices, sharded parameters."""
        if max_grad_norm is None:
            return None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if len(batches) < 2 and not any(hasattr(grad, "to_local") for grad in grads):
            return None
        norm = torch.nn.utils.get_total_norm(grads)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        scale = getattr(self, "grad_scale", None)
        return norm if scale is None else norm / scale.to(norm.device)

    def _run(self, device: torch.device, batch: _Batch, max_grad_norm: float | None, grad_norm: Tensor | None) -> None:
        def here(t: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return None if t is None else t.to(device, dtype)

        optim_step(
            self._rule.code,
            batch.params,
            batch.grads,
            batch.states,
            [lr.to(device) for lr in batch.lrs],
            batch.counts,
            batch.options,
            here(getattr(self, "grad_scale", None)),
            here(getattr(self, "found_inf", None)),
            max_grad_norm,
            here(grad_norm),
            self._ordinals(batch.owners) if batch.rounds else [],
            self._workspace(device, len(batch.params), len(batch.counts)),
        )
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(batch.params)
            if batch.zeroes:
                torch.autograd.graph.increment_version(batch.grads)

    def _workspace(self, device: torch.device, count: int, rows: int) -> list[Tensor]:
        """Return what the kernel keeps between steps, on the device and as the host knows it; none on CPU."""
        if device.type == "cpu" and optim_step.run is optim_step.overload:
            return []
        kept: dict[torch.device, list[Tensor]] = self.__dict__.setdefault("_workspaces", {})
        size = _C.optim_workspace_bytes(count, rows)
        if not torch.compiler.is_compiling() and device in kept and kept[device][1][0]:  # a graph reads it: op.cpp
            self.__dict__.setdefault("_captured", []).append(kept.pop(device))
        if device not in kept or kept[device][0].numel() < size:
            kept[device] = [torch.zeros(size, dtype=torch.uint8, device=d) for d in (device, "cpu")]
        return kept[device]
