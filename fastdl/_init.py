"""The stream that initialization draws from: formula, op, and which part of a tensor is at hand.

An element's value depends on the seed, the parameter's name and the element's index in the whole (unsharded,
row-major) tensor, and on nothing else: it is the same on CPU and GPU, in any memory layout, for a shard of a DTensor
and for any slice whose offset is given. Element i reads word i % 4 of Philox4x32-10(key(seed, name), i // 4).

Sources: Glorot and Bengio 2010; He, Zhang, Ren and Sun 2015; Giles 2010 (inverse error function).
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl import _library
from fastdl.philox import philox

_STREAM = 0x696E6974  # "init", as in csrc/init/rule.h
CONSTANT, UNIFORM, NORMAL, TRUNCATED = range(4)
_LOG = (0.087199934, -0.14366187, 0.14952753, -0.16562499, 0.199568, -0.25002068, 0.33334187, -0.49999988, 1.0)
_CENTRE = (4.0354287e-08, 4.861035e-07, -4.990561e-06, -6.217988e-06, 0.0003091502, -0.0017730101, -0.005908171,
           0.34880266, 2.1233137)  # fmt: skip
_TAIL = (-0.00023958084, 0.0007984053, -0.0010966052, 0.0014118752, -0.0028498366, 0.0046693156, 1.4246262, 4.7170877)


# The formula: float32 operations, each rounded on its own, so that csrc/init/rule.h has the same bits.


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x + c
    return y


def _log(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    return exponent.float() * 0.6931472 + _polynomial(_LOG, f) * f


def two_sided_quantile(t: Tensor) -> Tensor:
    """Return z ≥ 0 with P(|Z| > z) = t for a standard normal Z; t float32 in [2**-32, 1], relative error < 1e-6."""
    w = -_log(t * (2 - t))
    s = w.abs().double().sqrt().float()  # torch's float32 root is not correctly rounded on every CPU
    return (1 - t) * torch.where(w < 5, _polynomial(_CENTRE, w - 2.5), _polynomial(_TAIL, s - 3.5))


def _uniform01(word: Tensor) -> Tensor:
    return ((word >> 9).float() + 0.5) * 2.0**-23


def _values(word: Tensor, distribution: int, p: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Turn 32-bit words (int64 tensor) into values, computed in float32 (float64 for float64 tensors)."""
    if distribution == CONSTANT:
        return torch.full_like(word, p[0], dtype=dtype)
    if distribution == UNIFORM:
        low, high = _scalars(p[:2], word, dtype)
        return ((high - low) * _uniform01(word).to(low.dtype) + low).clamp(low, high)
    mean, std, low, high = _scalars(p[:4], word, dtype)
    if distribution == NORMAL:
        z = two_sided_quantile(((word >> 1).float() + 0.5) * 2.0**-31)
        return std * torch.where(word & 1 == 1, -z, z).to(std.dtype) + mean
    cdf_low, cdf_high = _scalars(p[4:], word, torch.float32)
    q = (cdf_high - cdf_low) * _uniform01(word) + cdf_low
    z = two_sided_quantile((2 * torch.where(q < 0.5, q, 1 - q)).clamp(min=2.0**-32))
    return (std * torch.where(q < 0.5, -z, z).to(std.dtype) + mean).clamp(low, high)


def _scalars(values: Sequence[float], like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return [torch.full((), v, dtype=acc, device=like.device) for v in values]


def init_reference(
    tensors: Sequence[Tensor],
    distributions: Sequence[int],
    parameters: Sequence[float],
    keys: Sequence[int],
    offsets: Sequence[int],
    steps: Sequence[int],
) -> None:
    """Fill tensors in place; six parameters per tensor, one step of the global index per dimension."""
    steps = list(steps)
    for i, tensor in enumerate(tensors):
        index = torch.full((), offsets[i], dtype=torch.int64, device=tensor.device)
        for d, n in enumerate(tensor.shape):
            axis = torch.arange(n, device=tensor.device) * steps.pop(0)
            index = index + axis.reshape(-1, *[1] * (tensor.dim() - d - 1))
        key = torch.tensor(keys[i], device=tensor.device)
        words = torch.stack(philox(key, index >> 2, _STREAM), dim=-1)
        word = words.gather(-1, (index & 3).unsqueeze(-1)).squeeze(-1)
        tensor.copy_(_values(word, distributions[i], parameters[6 * i : 6 * i + 6], tensor.dtype))


_init = _library.define(
    "init_(Tensor(a!)[] tensors, int[] distributions, float[] parameters, int[] keys, int[] offsets, int[] steps)"
    " -> ()",
    fake=lambda *args: None,
    reference=init_reference,
)


class Rule(NamedTuple):
    """A distribution and up to six parameters, as in csrc/init/rule.h."""

    distribution: int
    parameters: tuple[float, ...]


def key_of(seed: int, name: str) -> int:
    """Hash seed and name to 64 bits: BLAKE2b of the seed's eight little-endian bytes and the name in UTF-8."""
    data = (seed % 2**64).to_bytes(8, "little") + name.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def new_seed(generator: torch.Generator | None) -> int:
    """Draw a seed from the generator, or from torch's CPU generator: torch.manual_seed rules, on every device."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(-(2**63), 2**63 - 1, (), device=device, generator=generator).item())


class Fill(NamedTuple):
    """What one tensor contributes to a call of the op; `tensor` is local."""

    tensor: Tensor
    rule: Rule
    key: int
    offset: int
    steps: tuple[int, ...]


def place(
    tensor: Any, offset: int | Sequence[int], global_shape: Sequence[int] | None
) -> tuple[Tensor, int, tuple[int, ...]]:
    """Return the local tensor, the global index of its first element, and the index's step along each dimension."""
    if hasattr(tensor, "to_local"):  # DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if any(p.is_partial() for p in tensor.placements):
            raise ValueError(
                f"init: a DTensor must be Shard or Replicate, got {tensor.placements}; redistribute it first"
            )
        global_shape = tensor.shape
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        tensor = tensor.to_local()
    shape = tuple(tensor.shape if global_shape is None else global_shape)
    if len(shape) != tensor.dim():
        raise ValueError(f"init: global_shape must have the tensor's {tensor.dim()} dimensions, got {shape}")
    steps = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
    if isinstance(offset, int):
        start = offset
    else:
        coordinates = tuple(offset)
        if global_shape is None or len(coordinates) != len(shape):
            raise ValueError(
                f"init: an offset per dimension needs global_shape of as many, got {offset}, {global_shape}"
            )
        if tensor.numel() and any(o < 0 or o + n > g for o, n, g in zip(coordinates, tensor.shape, shape)):
            raise ValueError(
                f"init: {tuple(tensor.shape)} at offset {coordinates} reaches outside global_shape {shape}"
            )
        start = sum(o * s for o, s in zip(coordinates, steps))
    if start < 0:
        raise ValueError(f"init: offset must not be negative, got {offset}")
    return tensor, start, steps


def check(tensor: Tensor, scheme: str) -> None:
    """Raise torch's errors for a tensor that cannot be filled."""
    if not tensor.is_floating_point():
        raise NotImplementedError(f'"{scheme}_" not implemented for {tensor.dtype}; initialize a floating-point tensor')
    if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride())):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )


def run(fills: Sequence[Fill]) -> None:
    """Fill any number of tensors; one call of the op per device."""
    by_device: dict[torch.device, list[Fill]] = {}
    for fill in fills:
        if fill.tensor.numel() and not fill.tensor.is_meta:
            by_device.setdefault(fill.tensor.device, []).append(fill)
    for group in by_device.values():
        with torch.no_grad():
            _init(
                [f.tensor.detach() for f in group],
                [f.rule.distribution for f in group],
                [float(p) for f in group for p in (*f.rule.parameters, *[0.0] * (6 - len(f.rule.parameters)))],
                [f.key for f in group],
                [f.offset for f in group],
                [s for f in group for s in f.steps],
            )
        torch.autograd.graph.increment_version([f.tensor for f in group if not f.tensor.is_inference()])
