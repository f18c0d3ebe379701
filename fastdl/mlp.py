"""Two linear layers with an activation between them, whose backward is fused across the two.

The gradient at the hidden preactivation leaves the second layer's product finished: dropout, the activation's
derivative and the first bias's sums happen where its elements are computed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastdl import tune
from fastdl.activation import CODES, check_activation
from fastdl.dropout import check_probability
from fastdl.gemm import autocast, float32_precision, has_kernel, product
from fastdl.linear import FORWARD, SIGNED, Linear, fits, forward, has_hooks, linear, linear_reference
from fastdl.linear_backward import BACKWARD, GRAD_INPUT, gradients, rows
from fastdl.philox import new_seed


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, weight1, bias1, weight2, bias2, residual, seed1, seed2, activation, p = args
        precision = float32_precision()
        save = activation is not None and activation not in SIGNED  # of those the output tells the slope
        hidden, preactivation = forward(input, weight1, bias1, None, seed1, activation, p, save, precision)
        output = forward(hidden, weight2, bias2, residual, seed2, None, p, False, precision)[0]
        saved = preactivation if save else hidden
        ctx.save_for_backward(input, weight1, bias1, weight2, bias2, seed1, seed2, hidden, saved)
        ctx.activation, ctx.p, ctx.precision = activation, p, precision
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad_output,), need = grads, ctx.needs_input_grad
        input, weight1, bias1, weight2, bias2, seed1, seed2, hidden, saved = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: every step differentiable
            inputs = [t for t, n in zip((input, weight1, bias1, weight2, bias2), need) if n]
            output = _layers(input, weight1, bias1, weight2, bias2, seed1, seed2, ctx.activation, ctx.p)
            found = iter(torch.autograd.grad(output, inputs, grad_output, create_graph=True) if inputs else ())
            five = [next(found) if n else None for n in need[:5]]
            return (*five, grad_output if need[5] else None, *[None] * 4)
        grad, grad_bias2 = grad_output, None
        if seed2 is not None:
            grad, grad_bias2 = BACKWARD(grad_output, None, seed2, CODES[None], ctx.p, need[4])
        _, grad_weight2, sums = gradients(
            rows(grad), rows(hidden), weight2, False, need[3], need[4] and grad_bias2 is None, ctx.precision
        )
        grad_bias2 = sums if grad_bias2 is None else grad_bias2
        grad_input = grad_weight1 = grad_bias1 = None
        if any(need[:3]):
            kept = None if ctx.activation is None else rows(saved)
            grad, grad_bias1 = _grad_input(
                rows(grad), weight2, kept, seed1, ctx.activation, ctx.p, need[2], ctx.precision
            )
            grad_weight1 = product(grad.mT, rows(input), ctx.precision) if need[1] else None
            grad_input = product(grad, weight1, ctx.precision).view(input.shape) if need[0] else None
        return (grad_input, grad_weight1, grad_bias1 if need[2] else None, grad_weight2,
                grad_bias2 if need[4] else None, grad_output if need[5] else None, *[None] * 4)  # fmt: skip


def _grad_input(
    grad: Tensor, weight: Tensor, saved: Tensor | None, seed: Tensor | None, activation: str | None, p: float,
    bias: bool, precision: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient at the layer before, and its bias's; in the fastest way, if that is wanted."""
    arguments = (grad, weight, saved, seed, CODES[activation], p, bias, precision)
    if tune.is_on():
        exit = tune.COLUMN_SUMS if bias else 0 if saved is None and seed is None else tune.FULL
        tune.meet(grad, weight, precision, lambda: GRAD_INPUT(*arguments), exit)
    return GRAD_INPUT(*arguments)  # type: ignore[no-any-return]


def _layers(
    input: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, seed1: Tensor | None,
    seed2: Tensor | None, activation: str | None, p: float,
) -> Tensor:  # fmt: skip
    """Return the two layers by operations that are differentiable any number of times."""
    hidden = linear_reference(input, weight1, bias1, None, seed1, CODES[activation], p, False)[0]
    return linear_reference(hidden, weight2, bias2, None, seed2, CODES[None], p, False)[0]


def mlp(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None = None,
    *,
    activation: str | None = "gelu",
    dropout: float = 0.0,
    residual: Tensor | None = None,
    training: bool = True,
) -> Tensor:
    """Return dropout(linear(dropout(activation(linear(input, weight1, bias1))), weight2, bias2)) + residual.

    input (*, K), weight1 (H, K), bias1 (H), weight2 (N, H), bias2 (N), residual (*, N). activation and dropout as in
    `fastdl.functional.linear`, whose values and masks these are; the backward computes the gradient at the hidden
    preactivation, and bias1's, inside the second layer's product. Raises ValueError for an unknown activation or a
    probability outside [0, 1]; RuntimeError as the two calls of `linear` do.
    """
    check_activation("mlp", activation)
    check_probability(dropout)
    first = (autocast(input), autocast(weight1), bias1 if bias1 is None else autocast(bias1))
    second = (autocast(weight2), bias2 if bias2 is None else autocast(bias2))
    tensors = [t for t in (*first, *second, residual) if t is not None]
    if (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and weight2.dim() == 2
        and weight2.size(-1) == weight1.size(0) > 0
        and has_kernel(FORWARD, *tensors)
        and fits(*first, None)
        and (bias2 is None or bias2.shape == weight2.shape[:1])
        and (residual is None or residual.shape == (*input.shape[:-1], weight2.size(0)))
    ):
        p = float(dropout) if training else 0.0
        seeds = [new_seed(input.device) if p > 0 else None for _ in range(2)]
        return _Mlp.apply(*first, *second, residual, *seeds, activation, p)  # type: ignore[no-any-return, no-untyped-call]
    hidden = linear(input, weight1, bias1, activation=activation, dropout=dropout, training=training)
    return linear(hidden, weight2, bias2, dropout=dropout, residual=residual, training=training)


class MLP(nn.Module):
    """A transformer's feed-forward block: `fc1`, activation, dropout, `fc2`, dropout, and the residual added last.

    forward(input, *, residual=None): input (*, in_features), residual and output (*, out_features). hidden_features
    and out_features are in_features unless given; bias, device, dtype are both layers', as in torch.nn.Linear;
    activation and dropout as in `fastdl.functional.linear`. Raises ValueError for an unknown activation or a
    probability outside [0, 1]. Source: Vaswani et al. 2017, section 3.3.

    >>> MLP(16, 64)(torch.randn(2, 3, 16)).shape
    torch.Size([2, 3, 16])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "gelu",
        dropout: float = 0.0,
    ) -> None:
        check_activation("MLP", activation)
        check_probability(dropout)
        super().__init__()
        hidden = in_features if hidden_features is None else hidden_features
        out = in_features if out_features is None else out_features
        self.fc1 = Linear(in_features, hidden, bias, device, dtype, activation=activation, dropout=dropout)
        self.fc2 = Linear(hidden, out, bias, device, dtype, dropout=dropout)

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return dropout(fc2(dropout(activation(fc1(input))))) + residual."""
        first, second = self.fc1, self.fc2
        plain = type(first) is type(second) is Linear and not has_hooks(first) and not has_hooks(second)
        if (
            not plain
            or first.dropout != second.dropout
            or second.activation is not None
            or first.training != second.training
        ):
            output: Tensor = second(first(input), residual=residual)
            return output
        return mlp(
            input, first.weight, first.bias, second.weight, second.bias, activation=first.activation,
            dropout=first.dropout, residual=residual, training=first.training,
        )  # fmt: skip
