"""Batch normalization, fused with a residual, an activation and dropout: dropout(activation(bn(input) + residual)).

Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", ICML 2015; gradients from its section 3.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd.graph import increment_version

from fastdl._library import BUILD, define
from fastdl.activation import CODES, activate, activation_backward, check_activation
from fastdl.batch_norm_checks import check
from fastdl.dropout import check_probability
from fastdl.philox import keep_mask, new_seed

_NAMES = {code: name for name, code in CODES.items()}


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...) in float64."""
    return values.double().reshape(1, -1, *[1] * (like.dim() - 2))


def _reduced(input: Tensor) -> list[int]:
    return [d for d in range(input.dim()) if d != 1]


def batch_norm_reference(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, num_batches_tracked: Tensor | None, seed: Tensor | None, training: bool,
    momentum: float | None, eps: float, activation: int, p: float, save_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y = (x - mean) / sqrt(var + eps) * weight + bias in float64, then residual, activation and dropout."""
    x, count = input.double(), input.numel() // max(input.size(1), 1)
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if training and count > 0:
        var, mean = torch.var_mean(x, dim=_reduced(x), correction=0)
        mean = torch.where(mean.isnan(), x.mean(_reduced(x)), mean)  # infinity stays infinity in running_mean
        if running_mean is not None and running_var is not None:
            factor = 1 / num_batches_tracked.double() if momentum is None else momentum  # type: ignore[union-attr]
            running_mean.copy_((1 - factor) * running_mean.double() + factor * mean)
            running_var.copy_((1 - factor) * running_var.double() + factor * var * (count / max(count - 1, 1)))
    elif running_mean is not None and running_var is not None:
        mean, var = running_mean.double(), running_var.double()
    else:
        mean, var = x.new_zeros(x.size(1)), x.new_ones(x.size(1))
    invstd = (var + eps).rsqrt()
    y = (x - _channels(mean, x)) * _channels(invstd, x)
    y = _affine(y, weight, bias, residual)
    y = activate(y, _NAMES[activation])
    if p > 0 and seed is not None:
        y = torch.where(keep_mask(y.shape, seed, p), y / (1 - p) if p < 1 else 0.0, 0.0)
    output = torch.empty_like(input, memory_format=suggest_memory_format(input)).copy_(y)
    return output, mean.clone(), invstd, input.new_empty(0, dtype=torch.uint8)


def batch_norm_backward_reference(
    grad_output: Tensor, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    save_mean: Tensor, save_invstd: Tensor, mask: Tensor | None, seed: Tensor | None, training: bool, eps: float,
    activation: int, p: float, need_input: bool, need_residual: bool, need_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients in torch ops, float64 inside; differentiable again, since it takes the statistics anew."""
    x, g, mean, invstd = input.double(), grad_output.double(), save_mean, save_invstd
    if training and x.numel() > 0:
        var, mean = torch.var_mean(x, dim=_reduced(x), correction=0)
        invstd = (var + eps).rsqrt()
    normalized = (x - _channels(mean, x)) * _channels(invstd, x)
    if p > 0 and seed is not None:
        g = torch.where(keep_mask(g.shape, seed, p), g / (1 - p) if p < 1 else 0.0, 0.0)
    y = _affine(normalized, weight, bias, residual)
    if mask is not None and mask.numel() > 0:
        y = torch.where(read_mask(mask, input), 1.0, -1.0).double()  # the side of zero that the forward saw
    g = activation_backward(g, y, _NAMES[activation])
    grad_bias, grad_weight = g.sum(_reduced(x)), (g * normalized).sum(_reduced(x))
    grad_input = g
    if training:
        count = max(x.numel() // max(x.size(1), 1), 1)
        grad_input = g - (_channels(grad_bias, x) + normalized * _channels(grad_weight, x)) / count
    grad_input = grad_input * _channels(invstd if weight is None else invstd * weight.double().reshape(-1), x)
    parameter = next((t.dtype for t in (weight, bias) if t is not None), input.dtype)
    layout = suggest_memory_format(input)
    grad_input, g = (t.to(input.dtype).contiguous(memory_format=layout) for t in (grad_input, g))
    grads = (grad_input, g, grad_weight.to(parameter), grad_bias.to(parameter))
    needed = (need_input, need_residual, need_params, need_params)
    return tuple(t if n else input.new_empty(0) for t, n in zip(grads, needed))  # type: ignore[return-value]


def _affine(normalized: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    y = normalized if weight is None else normalized * _channels(weight, normalized)
    y = y if bias is None else y + _channels(bias, normalized)
    return y if residual is None else y + residual.double()


def _rows(input: Tensor) -> tuple[int, int, bool]:
    """(rows, length of a row, channels last) of the memory order, as csrc/batch_norm/layout.h."""
    channels = input.size(1)
    last = channels != 1 and (
        suggest_memory_format(input) != torch.contiguous_format or input.numel() == input.size(0) * channels
    )
    length = channels if last else input.numel() // max(1 if channels == 1 else input.size(0) * channels, 1)
    return input.numel() // max(length, 1), length, last


def read_mask(mask: Tensor, input: Tensor) -> Tensor:
    """Return the bits of the kernels' mask (csrc/batch_norm/problem.h, mask_bytes), bool of the input's shape."""
    rows, length, last = _rows(input)
    row = torch.arange(rows, device=input.device).unsqueeze(1)
    at = torch.arange(length, device=input.device).expand(rows, -1)
    if last:
        byte = row * ((length + 7) // 8) + at // 8
    else:
        at = row * length + at
        byte = at // 8 + (row if length % 8 else 0)
    bits = (mask[byte] >> (at % 8).to(torch.uint8) & 1).bool()
    if not last:
        return bits.reshape(input.shape)
    return bits.reshape(input.size(0), *input.shape[2:], -1).movedim(-1, 1)


def _forward_fake(input: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output = torch.empty_like(input, memory_format=suggest_memory_format(input))
    saved = [input.new_empty(input.size(1), dtype=torch.float64) for _ in range(2)]
    size = 0
    if len(args) == 13 and args[12] and input.device.type == "cuda" and BUILD["cuda"]:  # save_mask
        rows, length, _ = _rows(input)
        size = rows * ((length + 7) // 8 + (1 if length % 8 else 0))
    return output, saved[0], saved[1], input.new_empty(size, dtype=torch.uint8)


def _backward_fake(
    grad_output: Tensor, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parameter = next((t.dtype for t in (weight, bias) if t is not None), input.dtype)
    shaped = torch.empty_like(input, memory_format=suggest_memory_format(input))
    values = input.new_empty(input.size(1), dtype=parameter)
    grads = (shaped, torch.empty_like(shaped), values, torch.empty_like(values))
    needed = (args[-3], args[-2], args[-1], args[-1])
    return tuple(t if n else input.new_empty(0) for t, n in zip(grads, needed))  # type: ignore[return-value]


# Returns output, the statistics in float64 (mean/std of 1e6 would lose digits in float32), and with `save_mask`, from
# the kernels only, a bit per element: which branch ReLU or LeakyReLU took, so that the residual need not be kept.
_forward = define(
    "batch_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, Tensor? seed, bool training, float? momentum, "
    "float eps, int activation, float p, bool save_mask=False) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_forward_fake,
    reference=batch_norm_reference,
)
_backward = define(
    "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
    "Tensor save_mean, Tensor save_invstd, Tensor? mask, Tensor? seed, bool training, float eps, int activation, "
    "float p, bool need_input, bool need_residual, bool need_params) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=batch_norm_backward_reference,
)


class _BatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, residual, weight, bias = args[:4]
        branches = _NAMES[args[11]] in ("relu", "leaky_relu")
        output, mean, invstd, mask = _forward(*args, branches and residual is not None)
        ctx.options = (args[8], *args[10:])  # training, eps, activation, p
        if args[11] == CODES[None] or mask.numel() > 0:
            residual = None  # the gradient does not depend on it, or the mask says all
        ctx.save_for_backward(input, residual, weight, bias, mean, invstd, mask, args[7])
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad_output,), need = grads, ctx.needs_input_grad
        activation, p = ctx.options[2:]
        passes = activation == CODES[None] and p == 0  # the residual's gradient is grad_output itself
        # Under create_graph the formula is recorded op by op, so that it can be differentiated again.
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        run: Callable[..., Any] = batch_norm_backward_reference if again else _backward
        grad_input, grad_residual, grad_weight, grad_bias = run(
            grad_output, *ctx.saved_tensors, *ctx.options, need[0], need[1] and not passes, need[2] or need[3]
        )
        found = (grad_input, grad_output if passes else grad_residual, grad_weight, grad_bias)
        return (*(g if n else None for g, n in zip(found, need)), *[None] * 9)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, num_batches_tracked: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, batch_stats: bool, momentum: float | None, eps: float,
    activation: str | None, residual: Tensor | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Check and run. `dropout` is already 0 in evaluation; momentum None averages over num_batches_tracked."""
    if residual is not None and residual.dtype != input.dtype and torch.is_autocast_enabled(input.device.type):
        residual = residual.to(input.dtype)
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # as torch
    check(input, running_mean, running_var, weight, bias, residual, batch_stats, eps, activation)
    weight = weight if weight is None or weight.dim() == 1 else weight.reshape(-1)
    bias = bias if bias is None or bias.dim() == 1 else bias.reshape(-1)
    seed = new_seed(input.device) if dropout > 0 else None
    args = (input, residual, weight, bias, running_mean, running_var, num_batches_tracked, seed, batch_stats, momentum,
            eps, CODES[activation], float(dropout))  # fmt: skip
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args[:4]):
        output: Tensor = _BatchNormFunction.apply(*args)  # type: ignore[no-untyped-call]
    else:
        output = _forward(*args)[0]
    if batch_stats and not torch.compiler.is_compiling():  # compiled graphs see the mutation in the schema
        increment_version([t for t in (running_mean, running_var, num_batches_tracked) if t is not None])
    return output


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
    activation: str | None = None, residual: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return dropout(activation(bn(input) + residual)); without the keyword-only extras `F.batch_norm`.

    input: (N, C, ...) float32, float64, float16 or bfloat16 in any memory format; residual: the same shape and dtype;
    weight, bias, running_mean, running_var: (C,), float32 or the input's dtype. With `training` the batch's own
    statistics normalize and, by the share `momentum`, move the running ones in place; eps > 0 is added to the variance.
    activation: None, "relu", "leaky_relu" (slope 0.01), "silu", "gelu" (erf) or "gelu_tanh"; dropout: the probability
    of a zero, in training only. Gradients to any order. Raises torch's errors before anything is written, ValueError
    for an unknown activation or a probability outside [0, 1], RuntimeError for a residual of another shape or dtype.
    """
    p = dropout if training else 0.0
    check_probability(dropout)
    return _batch_norm(input, running_mean, running_var, None, weight, bias, training, momentum, eps, activation,
                       residual, p)  # fmt: skip


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What BatchNorm1d, 2d and 3d share, in front of torch's classes: isinstance and torch's tools see those."""

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, device: Any = None, dtype: Any = None, *, bias: bool = True,
        activation: str | None = None, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        check_activation(type(self).__name__, activation)
        check_probability(dropout)
        no_bias = {} if bias else {"bias": False}  # torch 2.10 has no such keyword
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **no_bias)
        self.activation, self.dropout = activation, dropout

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """(N, C, ...) -> dropout(activation(bn(input) + residual)), the same shape."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        track = self.track_running_stats or not self.training
        batch_stats = self.training or (self.running_mean is None and self.running_var is None)
        tracked = self.num_batches_tracked if self.training and self.track_running_stats else None
        momentum = 0.0 if self.momentum is None and tracked is None else self.momentum
        return _batch_norm(
            input, self.running_mean if track else None, self.running_var if track else None, tracked, self.weight,
            self.bias, batch_stats, momentum, self.eps, self.activation, residual,
            self.dropout if self.training else 0.0,
        )  # fmt: skip

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Return none, and tell torch's convert_sync_batchnorm, which asks here, what it would drop."""
        if self._fused() and sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise RuntimeError(
                f"convert_sync_batchnorm: {self} fuses what torch.nn.SyncBatchNorm cannot; build it without "
                "activation= and dropout= and apply those after it, or undo fastdl.convert with fastdl.revert first"
            )
        return super().named_children()

    def _fused(self) -> bool:
        return self.activation is not None or self.dropout > 0

    def extra_repr(self) -> str:
        """Return torch's text, and the extras in use."""
        text = str(super().extra_repr())  # type: ignore[no-untyped-call]
        text += f", activation={self.activation!r}" if self.activation is not None else ""
        return text + (f", dropout={self.dropout}" if self.dropout else "")


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Drop-in for torch.nn.BatchNorm1d, for (N, C) or (N, C, L); arguments and errors as in `fastdl.nn.BatchNorm2d`."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """Drop-in for torch.nn.BatchNorm2d: forward(input, *, residual=None) is dropout(activation(bn(input) + residual)).

    Args:
        num_features: C of an input (N, C, H, W).
        eps: added to the variance, > 0.
        momentum: weight of a batch in the running statistics; None averages over all batches.
        affine: learn weight and bias, (C,).
        track_running_stats: keep running_mean and running_var, (C,), for evaluation.
        device, dtype: of parameters and statistics; float16 and bfloat16 inputs also go with float32.
        bias: without it, an affine layer has a weight alone.
        activation: None, "relu", "leaky_relu" (slope 0.01), "silu", "gelu" (erf) or "gelu_tanh".
        dropout: probability of a zero, in training only.

    Input: float32, float64, float16 or bfloat16 in any memory format; residual: exactly its shape and dtype.
    Raises ValueError for an unknown activation or a probability outside [0, 1], and in forward what torch raises.
    Source: Ioffe and Szegedy 2015.

    >>> norm = BatchNorm2d(64, activation="relu")
    >>> norm(torch.randn(8, 64, 7, 7), residual=torch.randn(8, 64, 7, 7)).shape
    torch.Size([8, 64, 7, 7])
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Drop-in for torch.nn.BatchNorm3d, for (N, C, D, H, W); arguments and errors as in `fastdl.nn.BatchNorm2d`."""
