"""Activations that other ops fuse, by name: torch's own functions and their gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def _silu_backward(grad_output: Tensor, input: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(grad_output, input)  # type: ignore[no-any-return]
    sigmoid = torch.sigmoid(input)  # torch's kernel has no derivative of its own
    return grad_output * sigmoid * (1 + input * (1 - sigmoid))


# name -> (function, gradient(grad_output, preactivation))
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda g, x: _aten.threshold_backward(g, x, 0)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.01), lambda g, x: _aten.leaky_relu_backward(g, x, 0.01, False)),
    "silu": (F.silu, _silu_backward),
    "gelu": (F.gelu, lambda g, x: _aten.gelu_backward(g, x)),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda g, x: _aten.gelu_backward(g, x, approximate="tanh"),
    ),
}
CODES: dict[str | None, int] = dict(zip([None, *ACTIVATIONS], range(6)))  # what C++ calls them


def check_activation(op: str, activation: str | None) -> None:
    """Raise ValueError unless `activation` is None or a known name."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def activate(input: Tensor, activation: str | None) -> Tensor:
    """Apply the activation; None is the identity."""
    return input if activation is None else ACTIVATIONS[activation][0](input)


def activation_backward(grad_output: Tensor, preactivation: Tensor, activation: str | None) -> Tensor:
    """Return the gradient at the preactivation, in torch's own kernels; differentiable again."""
    return grad_output if activation is None else ACTIVATIONS[activation][1](grad_output, preactivation)
