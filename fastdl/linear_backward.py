"""Gradients of linear layers: what a layer's activation, dropout and bias add to the two products."""

import torch
from torch import Tensor

from fastdl import _library, tune
from fastdl.activation import CODES, activation_backward
from fastdl.gemm import product
from fastdl.philox import keep_mask

NAMES = {code: name for name, code in CODES.items()}


def rows(tensor: Tensor) -> Tensor:
    """Return (*, N) as (rows, N), also where N is 0."""
    return tensor.unsqueeze(0).flatten(0, -2)


def drop_by_seed(input: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Return the input with dropped elements zero and the others scaled; its own gradient."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    return input if seed is None else torch.where(keep_mask(input.shape, seed, p), input * scale, 0)


def linear_backward_reference(
    grad_output: Tensor, saved: Tensor | None, seed: Tensor | None, activation: int, p: float, bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients at the preactivation and at the bias (or nothing)."""
    grad = drop_by_seed(grad_output, seed, p)
    if saved is not None:
        grad = activation_backward(grad, saved, NAMES[activation])
    grad = grad.clone() if grad is grad_output else grad
    return grad, rows(grad).sum(0) if bias else grad.new_empty(0)


def linear_grad_weight_reference(grad_output: Tensor, input: Tensor, precision: int = 0) -> tuple[Tensor, Tensor]:
    """Return the gradients at the weight (N, K) and at the bias (N); grad_output (M, N), input (M, K)."""
    return grad_output.mT @ input, grad_output.sum(0)


def linear_grad_input_reference(
    grad_output: Tensor, weight: Tensor, saved: Tensor | None, seed: Tensor | None, activation: int, p: float,
    bias: bool, precision: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients at the preactivation (M, K) and the bias of the layer before; grad_output (M, N)."""
    return linear_backward_reference(grad_output @ weight, saved, seed, activation, p, bias)


def _fake(grad_output, saved, seed, activation, p, bias):  # type: ignore[no-untyped-def]
    grad = grad_output.new_empty(grad_output.shape)
    return grad, grad_output.new_empty(grad_output.size(-1) if bias else 0)


def _fake_grad_weight(grad_output, input, precision=0):  # type: ignore[no-untyped-def]
    return input.new_empty(grad_output.size(1), input.size(1)), input.new_empty(grad_output.size(1))


def _fake_grad_input(grad_output, weight, saved, seed, activation, p, bias, precision=0):  # type: ignore[no-untyped-def]
    grad = grad_output.new_empty(grad_output.size(0), weight.size(1))
    return grad, grad_output.new_empty(weight.size(1) if bias else 0)


BACKWARD = _library.define(
    "linear_backward(Tensor grad_output, Tensor? saved, Tensor? seed, int activation, float p, bool bias) "
    "-> (Tensor, Tensor)",
    fake=_fake,
    reference=linear_backward_reference,
)
GRAD_WEIGHT = _library.define(
    "linear_grad_weight(Tensor grad_output, Tensor input, int precision=0) -> (Tensor, Tensor)",
    fake=_fake_grad_weight,
    reference=linear_grad_weight_reference,
)
GRAD_INPUT = _library.define(
    "linear_grad_input(Tensor grad_output, Tensor weight, Tensor? saved, Tensor? seed, int activation, float p, "
    "bool bias, int precision=0) -> (Tensor, Tensor)",
    fake=_fake_grad_input,
    reference=linear_grad_input_reference,
)


def gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    precision: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients at input (M, K), weight (N, K) and bias (N) from that at the output (M, N).

    The bias costs no pass of its own where the weight's gradient is wanted too. precision: of the forward pass.
    """
    grad_input = grad_weight = grad_bias = None
    if 1 not in grad.stride():  # an expanded gradient, as of a sum: the products want rows or columns
        grad = grad.contiguous()
    if needs_input:
        grad_input = product(grad, weight, precision)
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    kernels = grad.is_cuda or GRAD_WEIGHT.run is not GRAD_WEIGHT.overload
    if needs_weight and needs_bias and kernels and not recorded and input.size(1) > 0:
        if tune.is_on():
            tune.meet(grad.mT, input, precision, lambda: GRAD_WEIGHT(grad, input, precision), tune.ROW_SUMS)
        grad_weight, grad_bias = GRAD_WEIGHT(grad, input, precision)
    else:
        grad_weight = product(grad.mT, input, precision) if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
    return grad_input, grad_weight, grad_bias
