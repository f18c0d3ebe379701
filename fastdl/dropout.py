"""Dropout: dropout(activation(input)) + residual in one pass, with masks that are computed instead of stored.

Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014. An
element's fate follows from the seed, p and its logical (row-major) index alone (`fastdl.philox.keep_mask`): one seed
means one mask on every device, in every memory format and dtype, and backward draws it again.

A dropped element is zero whatever it was, and so is its gradient. torch multiplies by zero there, which keeps NaN and
turns infinity into NaN.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl._library import define
from fastdl.activation import CODES, activate, activation_backward, check_activation
from fastdl.philox import keep_mask, new_seed

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# ---------------------------------------------------------------------------------------------------------- reference


def dropout_reference(
    input: Tensor, residual: Tensor | None, seed: Tensor, p: float, activation: int = 0, group: int = 1
) -> Tensor:
    """Return dropout(activation(input)) + residual, like `input` (any shape, floating).

    seed: one int64 value; activation: a code of `fastdl.activation.CODES`; group: how many consecutive elements (of
    the row-major order) share one decision, 1 or the size of a channel.
    """
    decisions = keep_mask((input.numel() // group,), seed, p)
    dropped = decisions.logical_not().repeat_interleave(group).reshape(input.shape)
    output = torch.empty_like(input).copy_(activate(input, _NAMES[activation]) * _scale(p)).masked_fill_(dropped, 0)
    return output if residual is None else output.add_(residual)


def dropout_backward_reference(
    grad_output: Tensor, input: Tensor, seed: Tensor, p: float, activation: int, group: int = 1
) -> Tensor:
    """Return the gradient at `input`: the same mask and scale, times the activation's derivative."""
    grad = dropout_reference(grad_output, None, seed, p, 0, group)
    return torch.empty_like(input).copy_(activation_backward(grad, input, _NAMES[activation]))


def _scale(p: float) -> float:
    return 0.0 if p >= 1 else 1.0 / (1.0 - p)


def _dropout_in_place_reference(input: Tensor, *args: Any) -> None:
    """Write dropout_reference(input, ...) over the input."""
    input.copy_(dropout_reference(input, *args))


_NAMES = {code: name for name, code in CODES.items()}

# ----------------------------------------------------------------------------------------------------------------- op

_ARGUMENTS = "Tensor seed, float p, int activation, int group"
_dropout = define(
    f"dropout(Tensor input, Tensor? residual, {_ARGUMENTS}) -> Tensor",
    fake=lambda input, residual, *args: torch.empty_like(input),
    reference=dropout_reference,
)
_dropout_in_place = define(
    f"dropout_(Tensor(a!) input, Tensor? residual, {_ARGUMENTS}) -> ()",
    fake=lambda input, residual, *args: None,
    reference=_dropout_in_place_reference,
)
_dropout_backward = define(
    f"dropout_backward(Tensor grad_output, Tensor input, {_ARGUMENTS}) -> Tensor",
    fake=lambda grad_output, input, *args: torch.empty_like(input),
    reference=dropout_backward_reference,
)

# ----------------------------------------------------------------------------------------------------------- autograd


class _Dropout(torch.autograd.Function):
    """Saves the seed, and the input only where an activation needs it."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, residual: Tensor | None, seed: Tensor, p: float, activation: str | None, group: int
    ) -> Tensor:
        ctx.p, ctx.activation, ctx.group = p, activation, group
        ctx.save_for_backward(seed, *(() if activation is None else (input,)))
        output: Tensor = _dropout(input, residual, seed, p, CODES[activation], group)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        seed, *preactivation = ctx.saved_tensors
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = _gradient(grad_output, seed, ctx.p, ctx.activation, ctx.group, *preactivation)
        return grad_input, grad_output if ctx.needs_input_grad[1] else None, None, None, None, None


class _DropoutInPlace(torch.autograd.Function):
    """The same on the input's own memory; activations, which would need the overwritten input, are not taken."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, residual: Tensor | None, seed: Tensor, p: float, group: int) -> Tensor:
        ctx.p, ctx.group = p, group
        ctx.mark_dirty(input)
        ctx.save_for_backward(seed)
        _dropout_in_place(input, residual, seed, p, 0, group)
        return input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        grad_input = _gradient(grad_output, seed, ctx.p, None, ctx.group) if ctx.needs_input_grad[0] else None
        return grad_input, grad_output if ctx.needs_input_grad[1] else None, None, None, None


def _gradient(
    grad_output: Tensor, seed: Tensor, p: float, activation: str | None, group: int, input: Tensor | None = None
) -> Tensor:
    """Dropout is linear: its gradient is itself. An activation's is fused, unless it is differentiated again."""
    if input is None:
        return _run(grad_output, None, seed, p, None, group)
    if _needs_grad(grad_output, input):
        return activation_backward(_run(grad_output, None, seed, p, None, group), input, activation)
    grad_input: Tensor = _dropout_backward(grad_output, input, seed, p, CODES[activation], group)
    return grad_input


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _transformed() -> bool:
    """Whether torch.func or forward-mode derivatives are at work, which differentiate the formula itself."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _run(input: Tensor, residual: Tensor | None, seed: Tensor, p: float, activation: str | None, group: int) -> Tensor:
    output: Tensor
    if _transformed():
        output = dropout_reference(input, residual, seed, p, CODES[activation], group)
    elif _needs_grad(input, residual):
        output = _Dropout.apply(input, residual, seed, p, activation, group)  # type: ignore[no-untyped-call]
    else:
        output = _dropout(input, residual, seed, p, CODES[activation], group)
    return output


def _run_in_place(
    input: Tensor, residual: Tensor | None, seed: Tensor, p: float, activation: str | None, group: int
) -> Tensor:
    needs_grad = _needs_grad(input, residual)
    if _transformed() or torch.compiler.is_compiling() or (needs_grad and (activation is not None or input._is_view())):
        source = input if activation is None else input.clone()  # backward needs what is overwritten here
        return input.copy_(_run(source, residual, seed, p, activation, group))  # torch's own rules for views
    if needs_grad:
        output: Tensor = _DropoutInPlace.apply(input, residual, seed, p, group)  # type: ignore[no-untyped-call]
        return output
    _dropout_in_place(input, residual, seed, p, CODES[activation], group)
    torch.autograd.graph.increment_version(input)
    return input


# --------------------------------------------------------------------------------------------------------- functional


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return dropout(activation(input)) + residual; counterpart of `torch.nn.functional.dropout`.

    input: any shape, strides and floating dtype; residual: exactly the input's shape; activation: None, "relu",
    "leaky_relu" (slope 0.01), "silu", "gelu" (erf) or "gelu_tanh". With training each element is zeroed with
    probability p and scaled by 1 / (1 - p) otherwise; without, only activation and residual act. inplace: write the
    output over the input. The output has the input's memory format; the seed comes from torch's generator of its
    device.

    Raises ValueError for p outside [0, 1] or an unknown activation, RuntimeError for a residual of another shape.

    >>> dropout(torch.ones(4), 0.5, training=False, residual=torch.ones(4))
    tensor([2., 2., 2., 2.])
    """
    check_probability(p)
    check_activation("dropout", activation)
    if not is_ours(input):
        if activation is not None or residual is not None:
            kind = str(input.dtype).removeprefix("torch.") if isinstance(input, Tensor) else type(input).__name__
            raise NotImplementedError(f'"dropout" not implemented for {kind!r} with an activation or a residual')
        return F.dropout(input, p, training, inplace)
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(
            f"dropout: residual must have the input's shape {tuple(input.shape)}, got {tuple(residual.shape)}; "
            "expand or reshape it first"
        )
    return apply(input, p if training else 0.0, inplace, activation, residual, 1)


def apply(
    input: Tensor, p: float, inplace: bool, activation: str | None, residual: Tensor | None, group: int
) -> Tensor:
    """Return dropout of checked arguments; `group` consecutive elements share a decision."""
    if p == 0 and activation is None and residual is None:
        return input
    if inplace and input.is_leaf and _needs_grad(input):  # before a seed is drawn
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    if inplace and input.numel() and any(n > 1 and s == 0 for n, s in zip(input.shape, input.stride())):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )
    if residual is not None and residual.dtype != input.dtype:  # torch's type promotion
        output = apply(input, p, inplace, activation, None, group)
        return output.add_(residual) if inplace else output + residual
    seed = new_seed(input.device) if 0 < p < 1 else torch.zeros(1, dtype=torch.int64, device=input.device)
    return (_run_in_place if inplace else _run)(input, residual, seed, p, activation, group)


def check_probability(p: float) -> None:
    """Raise torch's ValueError for p outside [0, 1]."""
    if p < 0.0 or p > 1.0 or p != p:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def is_ours(input: Any) -> bool:
    """Whether our ops take this input; whatever else there is (integers, sparse, no tensor) torch answers."""
    return isinstance(input, Tensor) and input.dtype in _DTYPES and input.layout == torch.strided


# ------------------------------------------------------------------------------------------------------------- module


class Dropout(torch.nn.Dropout):
    """Drop-in for `torch.nn.Dropout`: forward(input, *, residual=None) is dropout(activation(input)) + residual.

    Args:
        p: probability of an element to be zeroed.
        inplace: write the output over the input.
        activation: None, "relu", "leaky_relu" (slope 0.01), "silu", "gelu" (erf) or "gelu_tanh".

    Input, residual and output have the same shape. Raises ValueError for p outside [0, 1] or an unknown activation.
    """

    activation: str | None = None

    def __init__(self, p: float = 0.5, inplace: bool = False, *, activation: str | None = None) -> None:
        super().__init__(p, inplace)
        check_activation("Dropout", activation)
        self.activation = activation

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return dropout(activation(input)) + residual."""
        return dropout(input, self.p, self.training, self.inplace, activation=self.activation, residual=residual)

    def extra_repr(self) -> str:
        """Return torch's text, and the activation where there is one."""
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra
