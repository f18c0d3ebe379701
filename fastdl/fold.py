"""Batch norm in evaluation costs nothing: its multiply-add goes into the weights of the layer before it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from fastdl.linear import Linear

_ACTIVATIONS = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.01), "silu": nn.SiLU(), "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}  # fmt: skip


def fold(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Return one module that computes norm(layer(input)), both in evaluation; neither is changed.

    layer: Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d without an activation of its own; norm: BatchNorm over its
    outputs, with running statistics; each torch's or fastdl's. The result is a copy of the layer with weight * s and
    (bias - running_mean) * s + norm.bias, s = norm.weight / sqrt(running_var + eps), computed in float64. An activation
    of the norm follows, inside of a Linear, else in an nn.Sequential. A residual belongs before that activation: where
    there is one, fold a norm without. Raises TypeError for other modules, ValueError where the two cannot be one.
    """
    _check(layer, norm)
    scale, shift = _multiply_add(norm)
    folded: Any = copy.deepcopy(layer)
    weight, bias = folded.weight, folded.bias
    rest = [1] * (weight.dim() - 2)
    with torch.no_grad():
        if isinstance(folded, _ConvTransposeNd):  # (inputs, outputs of a group, ...)
            values = weight.double().unflatten(0, (folded.groups, -1)) * scale.view(folded.groups, 1, -1, *rest)
            values = values.flatten(0, 1)
        else:
            values = weight.double() * scale.view(-1, 1, *rest)
        shift = shift if bias is None else bias.double() * scale + shift
    folded.weight = nn.Parameter(values.to(weight.dtype), weight.requires_grad)
    folded.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
    activation = getattr(norm, "activation", None)
    if activation is None:
        return folded  # type: ignore[no-any-return]
    if isinstance(layer, nn.Linear):
        folded.__class__, folded.activation, folded.dropout = Linear, activation, 0.0
        return folded  # type: ignore[no-any-return]
    return nn.Sequential(folded, copy.deepcopy(_ACTIVATIONS[activation])).eval()


def _multiply_add(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel, in float64."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        return scale, shift if norm.bias is None else shift + norm.bias.double()


def _check(layer: Any, norm: Any) -> None:
    if not isinstance(layer, (nn.Linear, _ConvNd)) or not isinstance(norm, _BatchNorm):
        raise TypeError(
            f"fold: takes a Linear or convolution and a BatchNorm, got {type(layer).__name__} and {type(norm).__name__}"
        )
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    reason = None
    if layer.training or norm.training:
        reason = "both modules must be in evaluation; call .eval() first"
    elif norm.running_mean is None or norm.running_var is None:
        reason = "the norm has no running statistics (track_running_stats=False)"
    elif norm.num_features != outputs:
        reason = f"the norm's num_features must be the layer's {outputs} outputs, got {norm.num_features}"
    elif getattr(layer, "activation", None) is not None:
        reason = f"the layer's activation {layer.activation!r} stands between it and the norm"
    elif is_parametrized(layer) or isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        reason = "the layer's weight is computed (parametrized or lazy); make it a plain parameter first"
    if reason:
        raise ValueError(f"fold: {reason}")
