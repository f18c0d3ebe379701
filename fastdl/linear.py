"""Linear with activation, dropout and residual in one op: dropout(activation(input weight^T + bias)) + residual."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import _library, tune
from fastdl.activation import CODES, activate, activation_backward, check_activation
from fastdl.dropout import apply as drop
from fastdl.dropout import check_probability, is_ours
from fastdl.gemm import FLOATING, autocast, float32_precision, has_kernel, transforms_active, wished_precision
from fastdl.linear_backward import BACKWARD, NAMES, drop_by_seed, gradients, rows
from fastdl.philox import new_seed

SIGNED = ("relu", "leaky_relu")  # their output has the preactivation's sign


def linear_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None, activation: int,
    p: float, save: bool, precision: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (dropout(activation(linear(input))) + residual, preactivation or nothing)."""
    preactivation = F.linear(input, weight, bias)
    output = drop_by_seed(activate(preactivation, NAMES[activation]), seed, p)
    if residual is not None:
        output = output + residual
    return output, preactivation if save else input.new_empty(0)


def _fake(input, weight, bias, residual, seed, activation, p, save, precision=0):  # type: ignore[no-untyped-def]
    output = input.new_empty((*input.shape[:-1], weight.size(0)))
    return output, torch.empty_like(output) if save else input.new_empty(0)


FORWARD = _library.define(
    "linear_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor? seed, int activation, "
    "float p, bool save, int precision=0) -> (Tensor, Tensor)",
    fake=_fake,
    reference=linear_reference,
)


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, seed: Tensor | None,
    activation: str | None, p: float, save: bool, precision: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the op's output, and the preactivation where it is to be saved; in the fastest way, if that is wanted."""
    arguments = (input, weight, bias, residual, seed, CODES[activation], p, save, precision)
    if tune.is_on():
        plain = activation is None and seed is None and residual is None and not save
        tune.meet(
            rows(input.detach()), weight.detach().mT, precision, lambda: FORWARD(*arguments), 0 if plain else tune.FULL
        )
    return FORWARD(*arguments)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, residual, seed, activation, p, precision):  # type: ignore[no-untyped-def]
        from_output = activation in SIGNED and residual is None
        save = activation is not None and not from_output
        output, preactivation = forward(input, weight, bias, residual, seed, activation, p, save, precision)
        saved = output if from_output else preactivation if save else None
        ctx.save_for_backward(input, weight, bias, seed, saved)
        ctx.activation, ctx.p, ctx.precision = activation, p, precision
        return output

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        input, weight, bias, seed, saved = ctx.saved_tensors
        needs, grad_bias = ctx.needs_input_grad, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: every step differentiable
            grad = drop_by_seed(grad_output, seed, ctx.p)
            if ctx.activation is not None:
                grad = activation_backward(grad, F.linear(input, weight, bias), ctx.activation)
        elif ctx.activation is None and seed is None:
            grad = grad_output
        else:
            grad, grad_bias = BACKWARD(grad_output, saved, seed, CODES[ctx.activation], ctx.p, needs[2])
        grad_input, grad_weight, sums = gradients(
            rows(grad), rows(input), weight, needs[0], needs[1], needs[2] and grad_bias is None, ctx.precision
        )
        grad_input = None if grad_input is None else grad_input.view(input.shape)
        grad_bias = sums if grad_bias is None else grad_bias if needs[2] else None
        return grad_input, grad_weight, grad_bias, grad_output if needs[3] else None, *[None] * 4


def fits(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Return whether the fused op takes these operands; torch's ops (and errors) serve the others."""
    tensors = tuple(t for t in (input, weight, bias, residual) if t is not None)
    return (
        input.dim() >= 1
        and weight.dim() == 2
        and input.size(-1) == weight.size(1)
        and (bias is None or bias.shape == weight.shape[:1])
        and input.dtype in FLOATING
        and all(t.dtype == input.dtype and t.device == input.device and t.layout == torch.strided for t in tensors)
        and not torch.overrides.has_torch_function(tensors)
        and not transforms_active()
    )


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dropout: float = 0.0,
    residual: Tensor | None = None,
    training: bool = True,
    float32: str | None = None,
) -> Tensor:
    """Return dropout(activation(input weight^T + bias)) + residual; counterpart of torch.nn.functional.linear.

    input (*, K), weight (N, K), bias (N), residual (*, N): exactly the output's shape. activation: relu, leaky_relu
    (slope 0.01), silu, gelu (erf) or gelu_tanh. dropout: the probability of a zero, in [0, 1], applied only in
    training; masks follow torch.manual_seed. float32: a mode of `float32_matmul` for this call and its gradients.
    Raises ValueError for an unknown activation or mode, or a probability outside [0, 1]; RuntimeError as
    torch.nn.functional.linear does, and for a residual of another shape.
    """
    check_activation("linear", activation)
    check_probability(dropout)
    p, wish = float(dropout) if training else 0.0, wished_precision("linear", float32)
    operands = (autocast(input), autocast(weight), bias if bias is None else autocast(bias))
    fused = has_kernel(FORWARD, input, weight) and fits(*operands, residual)
    preactivation = None if fused else F.linear(input, weight, bias)  # torch's error, before a seed is drawn
    shape = (*input.shape[:-1], *weight.shape[:-1])
    if residual is not None and residual.shape != shape:
        raise RuntimeError(
            f"linear: residual must have the output's shape {tuple(shape)}, got {tuple(residual.shape)}; "
            "expand it first"
        )
    if preactivation is not None:
        if (p == 0 and residual is None) or not is_ours(preactivation):
            return _plain(preactivation, activation, p, residual)
        return drop(preactivation, p, False, activation, residual, 1)
    seed = new_seed(input.device) if p > 0 else None
    precision = float32_precision() if wish is None else wish
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*operands, residual)):
        return _Linear.apply(*operands, residual, seed, activation, p, precision)  # type: ignore[no-any-return, no-untyped-call]
    return forward(*operands, residual, seed, activation, p, False, precision)[0]


def has_hooks(module: torch.nn.Module) -> bool:
    """Return whether somebody waits for a call of this very module, or of all: it must then be called by itself."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or torch.nn.modules.module._has_any_global_hook()


def _plain(input: Tensor, activation: str | None, p: float, residual: Tensor | None) -> Tensor:
    """Return dropout(activation(input)) + residual by torch's ops, for what our kernels do not take."""
    output = F.dropout(activate(input, activation), p) if p > 0 else activate(input, activation)
    return output if residual is None else output + residual


class Linear(torch.nn.Linear):
    """Drop-in for torch.nn.Linear: forward(input, *, residual=None) is dropout(activation(linear(input))) + residual.

    in_features, out_features: K and N of input (*, K) and output (*, N); bias, device, dtype, initialization and
    state_dict are torch's. `activation`, `dropout` and what forward raises as in `fastdl.functional.linear`. Raises
    ValueError for an unknown activation or a probability outside [0, 1].

    >>> layer = Linear(20, 30, activation="gelu", dropout=0.1)
    >>> layer(torch.randn(7, 20), residual=torch.randn(7, 30)).shape
    torch.Size([7, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_activation("Linear", activation)
        check_probability(dropout)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation, self.dropout = activation, dropout

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return dropout(activation(linear(input))) + residual; dropout only in training."""
        return linear(
            input, self.weight, self.bias, activation=self.activation, dropout=self.dropout, residual=residual,
            training=self.training,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return torch's text, and the extras in use."""
        extras = f", activation={self.activation!r}" if self.activation is not None else ""
        return super().extra_repr() + extras + (f", dropout={self.dropout}" if self.dropout else "")
