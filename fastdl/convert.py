"""Turn a model's torch.nn modules into fastdl's, and back, without touching parameters, hooks or names.

A converted module stays the object it was and changes its class, so optimizers, hooks, tied modules and references
that others hold go on working, and the state_dict keeps its keys.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def _batch_norm_arguments(m: Any) -> dict[str, Any]:
    flags = {"affine": m.affine, "track_running_stats": m.track_running_stats}
    return {"num_features": m.num_features, "eps": m.eps, "momentum": m.momentum, **flags, "device": "meta"}


def _dropout_arguments(m: Any) -> dict[str, Any]:
    return {"p": m.p, "inplace": m.inplace}


def _linear_arguments(m: Any) -> dict[str, Any]:
    return {"in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None, "device": "meta"}


# torch.nn class -> the arguments that build its like, without memory
_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    **dict.fromkeys(["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"], _batch_norm_arguments),
    **dict.fromkeys(["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"], _dropout_arguments),
    "Linear": _linear_arguments,
}
_FUSE_INTO = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Linear"}


class Absorbed(nn.Identity):
    """Stands where a module was that its predecessor now computes; `revert` puts the module back."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = (original,)  # in a tuple: no submodule, so names and state_dict stay
        self.training = original.training

    def extra_repr(self) -> str:
        """Name what is computed elsewhere."""
        return f"{type(self.original[0]).__name__}, computed by the module before"


def convert(model: Model, *, fuse: bool = False, report: Callable[[str], object] | None = None) -> Model:
    """Change every BatchNorm1d/2d/3d, Dropout, Dropout1d/2d/3d and Linear of torch.nn into fastdl's, in place.

    Only modules of exactly these classes are taken: a subclass, parametrized, lazy or patched module may compute
    something else. Parameters stay the same objects, and so do buffers, hooks, training flags and names.

    With `fuse`, a BatchNorm or Linear inside an nn.Sequential also takes over a following ReLU, LeakyReLU(0.01), SiLU
    or GELU, and a following Dropout after that; the places of those keep a module that does nothing. It leaves alone
    what has hooks or is used in several places. Call it only where the Sequential is run as a whole.

    `report`, for example `print`, is called with a line per change. Returns the model. `revert` undoes all of it.
    """
    say = report or (lambda line: None)
    for name, module in model.named_modules():
        if _convertible(module):
            stem = type(module).__name__
            _become(module, stem)
            say(f"{name or '(the model itself)'}: {stem} -> fastdl.nn.{stem}")
    if fuse:
        uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        for name, sequence in model.named_modules():
            if isinstance(sequence, nn.Sequential) and type(sequence).forward is nn.Sequential.forward:
                for line in _fuse(sequence, uses):
                    say(f"{name}.{line}" if name else line)
    return model


def revert(model: Model, *, report: Callable[[str], object] | None = None) -> Model:
    """Undo `convert` in place: torch.nn's classes again, absorbed activations and dropouts in their old places.

    Modules that were built from fastdl.nn stay what they are. `report` is called with a line per change. Returns the
    model.
    """
    say = report or (lambda line: None)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Absorbed):
                setattr(module, name, child.original[0].train(child.training))
    for name, module in model.named_modules():
        if "_added_by_convert" in module.__dict__:
            for key in module.__dict__.pop("_added_by_convert"):
                module.__dict__.pop(key, None)
            stem = type(module).__name__
            module.__class__ = getattr(nn, stem)
            say(f"{name or '(the model itself)'}: fastdl.nn.{stem} -> {stem}")
    return model


def _convertible(module: nn.Module) -> bool:
    """Tell whether the module computes what its torch.nn class says, and fastdl has that class."""
    import fastdl.nn

    stem = type(module).__name__
    return (
        stem in _ARGUMENTS
        and type(module) is getattr(nn, stem)
        and hasattr(fastdl.nn, stem)
        and "forward" not in module.__dict__
    )


def _become(module: nn.Module, stem: str, **extras: Any) -> None:
    """Give the module fastdl's class and the attributes that this class has beyond torch's."""
    import fastdl.nn

    ours = getattr(fastdl.nn, stem)
    template = ours(**_ARGUMENTS[stem](module), **extras)
    added = set(module.__dict__.get("_added_by_convert", ()))
    added |= {key for key in template.__dict__ if key not in module.__dict__}
    for key in added:
        module.__dict__[key] = template.__dict__[key]
    module.__dict__["_added_by_convert"] = tuple(sorted(added))
    module.__class__ = ours


def _activation_name(module: nn.Module) -> str | None:
    """Return fastdl's name of an activation module, or None where it has none."""
    if type(module) is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else None
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    names: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu"}
    return names.get(type(module))


def _hooked(module: nn.Module) -> bool:
    tables = [value for key, value in module.__dict__.items() if key.endswith("_hooks") and "state_dict" not in key]
    return any(tables)


def _fuse(sequence: nn.Sequential, uses: Counter[int]) -> Iterator[str]:
    """Absorb activations and dropouts into the converted module before them; yield a line per change."""
    import fastdl.nn

    dropouts = (nn.Dropout, getattr(fastdl.nn, "Dropout", nn.Dropout))
    children = list(sequence.named_children())
    if len(children) != len(sequence):  # the same module twice in one sequence
        return
    for position, (name, module) in enumerate(children):
        stem = type(module).__name__
        if stem not in _FUSE_INTO or "_added_by_convert" not in module.__dict__ or uses[id(module)] > 1:
            continue
        extras: dict[str, Any] = {}
        taken: list[tuple[str, nn.Module]] = []
        for follower_name, follower in children[position + 1 :]:
            if _hooked(module if not taken else taken[-1][1]) or _hooked(follower):
                break
            activation = _activation_name(follower)
            if activation and not extras:
                extras["activation"] = activation
            elif type(follower) in dropouts and "dropout" not in extras and follower.training == module.training:
                extras["dropout"] = follower.p
            else:
                break
            taken.append((follower_name, follower))
        if not taken:
            continue
        _become(module, stem, **extras)
        for follower_name, follower in taken:
            setattr(sequence, follower_name, Absorbed(follower))
        yield f"{name}: computes " + ", ".join(f"{n} ({type(m).__name__})" for n, m in taken) + " as well"
