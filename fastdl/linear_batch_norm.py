"""Linear, batch norm, activation and dropout as one block: the product leaves the statistics of its own output."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from fastdl import _library, tune
from fastdl.activation import CODES, check_activation
from fastdl.batch_norm import BatchNorm1d, batch_norm_backward_reference, batch_norm_reference
from fastdl.batch_norm import _backward as norm_backward
from fastdl.dropout import check_probability
from fastdl.gemm import autocast, float32_precision, has_kernel
from fastdl.linear import Linear, has_hooks
from fastdl.linear_backward import gradients
from fastdl.philox import new_seed


def linear_batch_norm_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    num_batches_tracked: Tensor | None, seed: Tensor | None, momentum: float | None, eps: float, activation: int,
    p: float, save_mask: bool, precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return batch norm's results for the linear layer's output, with that output in second place."""
    linear = F.linear(input, weight, bias)
    output, mean, invstd, mask = batch_norm_reference(
        linear, residual, norm_weight, norm_bias, running_mean, running_var, num_batches_tracked, seed, True, momentum,
        eps, activation, p, save_mask,
    )  # fmt: skip
    return output, linear, mean, invstd, mask


def _fake(input: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    linear = input.new_empty(input.size(0), weight.size(0))
    size = 0
    if args[12] and input.device.type == "cuda" and _library.BUILD["cuda"]:  # save_mask
        size = linear.size(0) * ((linear.size(1) + 7) // 8) if linear.size(1) > 1 else (linear.size(0) + 7) // 8
    mean, invstd = (input.new_empty(weight.size(0), dtype=torch.float64) for _ in range(2))
    return torch.empty_like(linear), linear, mean, invstd, input.new_empty(size, dtype=torch.uint8)


FORWARD = _library.define(
    "linear_batch_norm_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
    "Tensor? seed, float? momentum, float eps, int activation, float p, bool save_mask, int precision=0) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    reference=linear_batch_norm_reference,
)


class _LinearBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, weight, bias, residual, norm_weight, norm_bias = args[:6]
        eps, activation, p = args[11:14]
        branches = activation in (CODES["relu"], CODES["leaky_relu"])
        ctx.precision = float32_precision()
        options = (branches and residual is not None, ctx.precision)
        if tune.is_on():  # without the running statistics, which a measurement must not move
            tune.meet(
                input, weight.mT, ctx.precision, lambda: FORWARD(*args[:6], None, None, None, *args[9:], *options),
                tune.COLUMN_SUMS,
            )  # fmt: skip
        output, linear, mean, invstd, mask = FORWARD(*args, *options)
        if activation == CODES[None] or mask.numel() > 0:
            residual = None  # the gradient does not depend on it, or the mask says all
        ctx.options = (True, eps, activation, p)
        ctx.save_for_backward(
            input, weight, bias, linear, residual, norm_weight, norm_bias, mean, invstd, mask, args[9]
        )
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad_output,), need = grads, ctx.needs_input_grad
        input, weight, bias, *saved = ctx.saved_tensors
        run: Any = norm_backward
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: every step differentiable
            run, saved[0] = batch_norm_backward_reference, F.linear(input, weight, bias)
        passes = ctx.options[2] == CODES[None] and ctx.options[3] == 0  # the residual's gradient is grad_output
        grad, grad_residual, grad_norm_weight, grad_norm_bias = run(
            grad_output, *saved, *ctx.options, any(need[:3]), need[3] and not passes, need[4] or need[5]
        )
        products: Any = (None, None, None)
        if any(need[:3]):
            products = gradients(grad, input, weight, need[0], need[1], need[2], ctx.precision)
        found = (*products, grad_output if passes else grad_residual, grad_norm_weight, grad_norm_bias)
        return (*(g if n else None for g, n in zip(found, need)), *[None] * 8)


class LinearBatchNormAct(nn.Module):
    """dropout(activation(batch_norm(linear(input)) + residual)), as the modules `linear` and `norm`.

    input: (N, in_features); output and residual: (N, out_features). `bias` is the linear layer's: batch norm takes a
    constant shift away again, so there is none unless asked for. eps, momentum, affine and track_running_stats are
    torch.nn.BatchNorm1d's, device and dtype both layers'; activation and dropout as in `fastdl.functional.linear`.
    Kernels train it in two launches: the product leaves each block's column means and sums of squared deviations
    (merged as in Chan, Golub and LeVeque 1983), and the second normalizes. Raises ValueError for an unknown activation
    or a probability outside [0, 1], and in forward what the two layers raise.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "relu",
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        check_activation("LinearBatchNormAct", activation)
        check_probability(dropout)
        super().__init__()
        self.linear = Linear(in_features, out_features, bias, device, dtype)
        self.norm = BatchNorm1d(
            out_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, dropout=dropout,
        )  # fmt: skip

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return dropout(activation(batch_norm(linear(input)) + residual))."""
        operands = (autocast(input), autocast(self.linear.weight))
        if self._is_plain() and self._fits(*operands, residual):
            return self._fused(*operands, residual)
        output: Tensor = self.norm(self.linear(input), residual=residual)
        return output

    def _is_plain(self) -> bool:
        """Return whether both layers are as they were made, and nobody waits for a call of theirs."""
        linear, norm = self.linear, self.norm
        return (
            type(linear) is Linear
            and type(norm) is BatchNorm1d
            and linear.activation is None
            and (linear.dropout == 0 or not linear.training)
            and norm.training
            and norm.eps > 0
            and not has_hooks(linear)
            and not has_hooks(norm)
        )

    def _fits(self, input: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
        """Return whether the kernels take these; the two layers (and torch's errors) serve the others."""
        norm = self.norm
        channels = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]
        dtypes = {input.dtype, torch.float32 if input.dtype.itemsize == 2 else input.dtype}
        bias = self.linear.bias
        operands = (input, weight) if residual is None else (input, weight, residual)
        return (
            has_kernel(FORWARD, *operands)
            and input.dim() == 2
            and input.size(0) > 1
            and weight.size(0) > 0
            and input.size(1) == weight.size(1)
            and (residual is None or residual.shape == (input.size(0), weight.size(0)))
            and (bias is None or (bias.dtype == self.linear.weight.dtype and bias.shape == weight.shape[:1]))
            and all(t.dtype in dtypes and t.device == input.device and t.shape == weight.shape[:1] for t in channels)
            and (norm.running_mean is None) == (norm.running_var is None)
        )

    def _fused(self, input: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        norm = self.norm
        bias = None if self.linear.bias is None else self.linear.bias.to(input.dtype)
        running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
        tracked = norm.num_batches_tracked if norm.track_running_stats else None
        momentum = 0.0 if norm.momentum is None and tracked is None else norm.momentum
        seed = new_seed(input.device) if norm.dropout > 0 else None
        args = (input, weight, bias, residual, norm.weight, norm.bias, *running, tracked, seed, momentum, norm.eps,
                CODES[norm.activation], float(norm.dropout))  # fmt: skip
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args[:6]):
            output: Tensor = _LinearBatchNorm.apply(*args)  # type: ignore[no-untyped-call]
        else:
            save_mask = False
            output = FORWARD(*args, save_mask, float32_precision())[0]
        if not torch.compiler.is_compiling():  # compiled graphs see the mutation in the schema
            increment_version([t for t in (*running, tracked) if t is not None])
        return output
