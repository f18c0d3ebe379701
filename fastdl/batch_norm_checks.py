"""What batch_norm refuses, in torch's words."""

import torch
from torch import Tensor

from fastdl.activation import check_activation

_SCALAR_TYPES = {
    torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long",
    torch.bool: "Bool", torch.complex32: "ComplexHalf", torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}  # fmt: skip
_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TITLES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}


def check(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, batch_stats: bool, eps: float, activation: str | None,
) -> None:  # fmt: skip
    """Raise what torch raises, in its words, before anything is written."""
    if batch_stats and input.numel() == input.size(1 if input.dim() > 1 else 0) > 0:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    if batch_stats and eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if input.dim() < 2:
        raise RuntimeError(f"batch_norm: input must have shape (N, C, ...), got {tuple(input.shape)}")
    for name, stat in (("running_mean", running_mean), ("running_var", running_var)):
        if stat is None and not batch_stats:
            raise RuntimeError(f"{name} must be defined in evaluation mode")
        if stat is not None and stat.requires_grad:
            raise RuntimeError(f"batch_norm is not differentiable with respect to argument '{name}'. "
                               "This input cannot have requires_grad True.")  # fmt: skip
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    values = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    given = {name: t for name, t in values.items() if t is not None}
    for name in ("running_mean", "running_var", "weight", "bias"):
        if name in given and given[name].numel() != input.size(1):
            raise RuntimeError(f"{name} should contain {input.size(1)} elements not {given[name].numel()}")
    for name in ("running_mean", "running_var"):
        if name in given and given[name].dim() != 1:
            raise RuntimeError(f"batch_norm: {name} must have shape ({input.size(1)},), got {tuple(given[name].shape)}")
    for t in (*given.values(), *([] if residual is None else [residual])):
        if t.device != input.device:
            raise RuntimeError(f"Tensor on device {t.device} is not on the expected device {input.device}!")
    if input.dtype not in _FLOATING:
        raise NotImplementedError(f"\"batch_norm\" not implemented for '{_SCALAR_TYPES.get(input.dtype, input.dtype)}'")
    first = next((t.dtype for t in given.values()), input.dtype)
    if first != input.dtype:
        if any(t.dtype != torch.float32 for t in given.values()):
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if input.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
    for t in given.values():
        if t.dtype != first:
            expected, found = (str(d).removeprefix("torch.") for d in (first, t.dtype))
            raise RuntimeError(f"expected scalar type {_TITLES[expected]} but found {_TITLES[found]}")
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(f"batch_norm: residual must have the input's shape {tuple(input.shape)}, got "
                           f"{tuple(residual.shape)}; expand it first")  # fmt: skip
    if residual is not None and residual.dtype != input.dtype:
        raise RuntimeError(f"batch_norm: residual must have the input's dtype {input.dtype}, got {residual.dtype}; "
                           "cast it first")  # fmt: skip
    check_activation("batch_norm", activation)
