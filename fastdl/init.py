"""Initialization: torch.nn.init's functions on one reproducible stream, and `initialize` for a whole model.

An element's value depends on the seed, the parameter's name and the element's index in the whole (unsharded,
row-major) tensor, and on nothing else: it is the same on CPU and GPU, in any memory layout, for a shard of a DTensor
and for any slice whose offset is given.

Sources: Glorot and Bengio 2010; He, Zhang, Ren and Sun 2015.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fastdl import _init

__all__ = [
    "Stream", "calculate_gain", "constant_", "initialize", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_",
    "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Stream(TypedDict, total=False):
    """Keyword arguments of every random function here: which stream of numbers, and where in it.

    seed: an integer; by default drawn from `generator`, or from torch's, so that torch.manual_seed rules.
    name: streams of different names are independent.
    offset: global (row-major) index of the tensor's first element; with global_shape also its coordinates.
    global_shape: shape of the whole tensor of which this one is a box; fans are taken from it.
    """

    seed: int | None
    name: str
    offset: int | Sequence[int]
    global_shape: Sequence[int] | None


_Rule = _init.Rule

# Rules: how a tensor's shape and the arguments become a distribution. The errors are torch's.


def _constant(tensor: Tensor, val: float) -> _Rule:
    return _Rule(_init.CONSTANT, (val,))


def _uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> _Rule:
    limit = torch.finfo(tensor.dtype).max if tensor.is_floating_point() else math.inf
    for name, value in (("from", a), ("to", b)):
        if not -limit <= value <= limit:
            raise RuntimeError(f"{name} is out of bounds for {str(tensor.dtype).removeprefix('torch.')}")
    if a > b:
        raise RuntimeError(f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}")
    return _Rule(_init.UNIFORM, (a, b))


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> _Rule:
    if not std >= 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    return _Rule(_init.NORMAL, (mean, std))


def _trunc_normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> _Rule:
    if not std > 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}; trunc_normal_ needs std > 0")
    if not a <= b:
        raise RuntimeError(f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}")
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=4,
        )
    low, high = (a - mean) / std, (b - mean) / std
    if min(abs(low), abs(high)) > 6 and low * high > 0:
        raise ValueError(f"trunc_normal_: [a, b] = [{a}, {b}] must come within 6 std of mean; mean={mean}, std={std}")
    if low + high > 0:  # mirrored, so that the probabilities are small numbers, which float32 holds well
        low, high, std = -high, -low, -std
    return _Rule(
        _init.TRUNCATED, (mean, std, a, b, 0.5 * math.erfc(-low / math.sqrt(2)), 0.5 * math.erfc(-high / math.sqrt(2)))
    )


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.dim() < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2.0 / max(sum(_fans(tensor)), 1))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode.lower() not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode.lower()} not supported, please use one of ['fan_in', 'fan_out']")
    fan = _fans(tensor)[mode.lower() == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def _xavier_uniform(tensor: Tensor, gain: float = 1.0) -> _Rule:
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return _uniform(tensor, -bound, bound)


def _xavier_normal(tensor: Tensor, gain: float = 1.0) -> _Rule:
    return _normal(tensor, 0.0, _xavier_std(tensor, gain))


def _kaiming_uniform(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> _Rule:
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return _uniform(tensor, -bound, bound)


def _kaiming_normal(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> _Rule:
    return _normal(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


_SCHEMES: dict[str, Callable[..., _Rule]] = {
    "zeros": lambda tensor: _constant(tensor, 0.0),
    "constant": _constant,
    "uniform": _uniform,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "xavier_uniform": _xavier_uniform,
    "xavier_normal": _xavier_normal,
    "kaiming_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
}


def _fill(
    tensor: Tensor,
    scheme: str,
    arguments: tuple[Any, ...],
    generator: torch.Generator | None,
    stream: Stream,
) -> Tensor:
    unknown = stream.keys() - Stream.__annotations__.keys()
    if unknown:
        raise TypeError(f"{scheme}_() got an unexpected keyword argument {min(unknown)!r}")
    seed, shape = stream.get("seed"), stream.get("global_shape")
    whole = tensor if shape is None else torch.empty(shape, dtype=tensor.dtype, device="meta")
    if scheme.startswith("kaiming") and 0 in whole.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
        return tensor
    rule = _SCHEMES[scheme](whole, *arguments)
    local, offset, steps = _init.place(tensor, stream.get("offset", 0), shape)
    _init.check(local, scheme)
    seed = _init.new_seed(generator) if seed is None else int(seed)
    _init.run([_init.Fill(local, rule, _init.key_of(seed, stream.get("name", "")), offset, steps)])
    return tensor


_Generator = torch.Generator | None


def zeros_(tensor: Tensor) -> Tensor:
    """Fill a tensor of any shape and dtype with 0, in place, and return it; as torch.nn.init.zeros_."""
    return nn.init.zeros_(tensor)


def ones_(tensor: Tensor) -> Tensor:
    """Fill a tensor of any shape and dtype with 1, in place, and return it; as torch.nn.init.ones_."""
    return nn.init.ones_(tensor)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill a tensor of any shape and dtype with `val`, in place, and return it; as torch.nn.init.constant_."""
    return nn.init.constant_(tensor, val)


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: _Generator = None, **stream: Unpack[Stream]
) -> Tensor:
    """Fill `tensor` (any shape, floating) in place from U(a, b) and return it; as torch.nn.init.uniform_.

    generator: torch's, which the seed is drawn from; None takes torch's CPU generator. `stream` (seed, name, offset,
    global_shape): see `Stream`. Raises RuntimeError unless a ≤ b and both are finite and for a tensor whose elements
    share memory, NotImplementedError for integers, ValueError for an offset outside global_shape.

    >>> torch.equal(uniform_(torch.empty(8), seed=1)[5:], uniform_(torch.empty(3), seed=1, offset=5))
    True
    """
    return _fill(tensor, "uniform", (a, b), generator, stream)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: _Generator = None, **stream: Unpack[Stream]
) -> Tensor:
    """Fill `tensor` in place from N(mean, std²), up to 6.3 std from the mean; as torch.nn.init.normal_.

    Raises RuntimeError unless std ≥ 0; `generator`, `stream` and errors as in `fastdl.init.uniform_`.
    """
    return _fill(tensor, "normal", (mean, std), generator, stream)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: _Generator = None,
    **stream: Unpack[Stream],
) -> Tensor:
    """Fill `tensor` in place from N(mean, std²) restricted to [a, b]; as torch.nn.init.trunc_normal_.

    By the inverse distribution function: no loop, no synchronization. Raises ValueError where [a, b] lies over 6 std
    from the mean, RuntimeError unless std > 0 and a ≤ b; `generator`, `stream` and errors as in `fastdl.init.uniform_`.
    """
    return _fill(tensor, "trunc_normal", (mean, std, a, b), generator, stream)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: _Generator = None, **stream: Unpack[Stream]
) -> Tensor:
    """Fill `tensor` in place from U(-a, a) with a = gain √(6 / (fan_in + fan_out)); as torch.nn.init.xavier_uniform_.

    `gain` scales the standard deviation. Source: Glorot and Bengio 2010. Raises ValueError for fewer than 2
    dimensions; `generator`, `stream` and errors as in `fastdl.init.uniform_`.
    """
    return _fill(tensor, "xavier_uniform", (gain,), generator, stream)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: _Generator = None, **stream: Unpack[Stream]) -> Tensor:
    """Fill `tensor` in place from N(0, gain² · 2 / (fan_in + fan_out)); as torch.nn.init.xavier_normal_.

    `gain` scales the standard deviation. Source: Glorot and Bengio 2010. Raises ValueError for fewer than 2
    dimensions; `generator`, `stream` and errors as in `fastdl.init.uniform_`.
    """
    return _fill(tensor, "xavier_normal", (gain,), generator, stream)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: _Generator = None,
    **stream: Unpack[Stream],
) -> Tensor:
    """Fill `tensor` in place from U(-b, b) with b = gain √(3 / fan); as torch.nn.init.kaiming_uniform_.

    mode: "fan_in" or "fan_out"; nonlinearity: what calculate_gain takes; a: leaky_relu's slope. Source: He et al. 2015.
    Raises ValueError for another mode or nonlinearity or fewer than 2 dimensions;
    `generator`, `stream` and errors as in `fastdl.init.uniform_`.
    """
    return _fill(tensor, "kaiming_uniform", (a, mode, nonlinearity), generator, stream)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: _Generator = None,
    **stream: Unpack[Stream],
) -> Tensor:
    """Fill `tensor` in place from N(0, gain² / fan); as torch.nn.init.kaiming_normal_.

    mode, nonlinearity, `a` and errors as in `fastdl.init.kaiming_uniform_`. Source: He et al. 2015.
    """
    return _fill(tensor, "kaiming_normal", (a, mode, nonlinearity), generator, stream)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the recommended gain for a nonlinearity, as torch.nn.init.calculate_gain.

    param: leaky_relu's slope, 0.01 where None. Raises ValueError for an unknown nonlinearity or a bad slope.
    """
    return nn.init.calculate_gain(nonlinearity, param)  # type: ignore[arg-type]


_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


def initialize(
    model: nn.Module, scheme: str = "xavier_uniform", *, seed: int | None = None, **arguments: Any
) -> nn.Module:
    """Initialize every parameter of a model in one call of one op, and return the model.

    Parameters of two or more dimensions get `scheme` ("zeros", "constant", "uniform", "normal", "trunc_normal",
    "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal") with its `arguments`, each from the stream
    of its qualified name. Biases become 0 and the weights of normalization layers (modules with an `eps`) 1; other
    vectors and scalars stay as they are. Names are taken without the prefixes of torch.compile, FSDP and checkpoint
    wrappers, so a sharded or compiled model gets the values of the plain one. `seed`: None draws one from torch's
    generator. All arguments are checked before the first write. Raises ValueError for an unknown scheme, and what the
    scheme's own function raises.

    >>> model = initialize(nn.Linear(4, 4), "kaiming_normal", seed=0, nonlinearity="relu")
    >>> model.bias.data
    tensor([0., 0., 0., 0.])
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"initialize: scheme must be one of {', '.join(_SCHEMES)}, got {scheme!r}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    seed = _init.new_seed(None) if seed is None else int(seed)
    norms = {id(m.weight) for m in model.modules() if hasattr(m, "eps") and hasattr(m, "weight")}
    fills = []
    for qualified, parameter in model.named_parameters():
        name = _WRAPPERS.sub("", qualified)
        leaf = name.rpartition(".")[2]
        if id(parameter) in norms:
            rule = _constant(parameter, 1.0)
        elif "bias" in leaf:
            rule = _constant(parameter, 0.0)
        elif parameter.dim() >= 2 and parameter.numel():
            rule = _SCHEMES[scheme](parameter, **arguments)
        else:
            continue
        local, offset, steps = _init.place(parameter, 0, None)
        _init.check(local, scheme)
        fills.append(_init.Fill(local, rule, _init.key_of(seed, name), offset, steps))
    _init.run(fills)
    return model
