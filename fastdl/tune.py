"""Measured plans for matrix products: which kernel and which tiles are fastest here, kept on disk per device.

The plan that kernels follow by themselves is an estimate. Inside `autotune()`, or with FASTDL_AUTOTUNE=1, every product
that is met for the first time is made in each of the most promising ways instead, and the fastest is kept: for the rest
of the process, and in a file under `$XDG_CACHE_HOME/fastdl` (else `~/.cache/fastdl`) for later ones.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdl import _library

MOST = 16  # ways that are measured; by published experience they hold one within a few percent of the best

Cut = list[int]  # family, tile_m, tile_n, splits, turns, cluster, near: csrc/gemm/plan_types.h


def _no_kernels(*args: Any) -> Any:
    """Raise: there is nothing to measure without kernels."""
    raise NotImplementedError("autotune: products of these tensors are torch's own; only kernels have plans")


CANDIDATES = _library.define(
    "gemm_candidates(Tensor a, Tensor b, int precision) -> Tensor", fake=_no_kernels, reference=_no_kernels
)
CHOOSE = _library.define(
    "gemm_choose(Tensor a, Tensor b, int precision, int[] way) -> ()", fake=_no_kernels, reference=_no_kernels
)

_on = os.environ.get("FASTDL_AUTOTUNE", "0") not in ("", "0")
_met: set[str] = set()


@contextmanager
def autotune() -> Iterator[None]:
    """Measure, inside the scope, every matrix product met for the first time; what was found stays in use.

    Products of CUDA tensors by `fastdl.matmul` and linear layers, forward and backward, are measured when first met
    (some ten milliseconds each), results unchanged but for the order of additions. Nothing is measured while a graph
    is captured or compiled. Raises nothing of its own: the file of a device is ignored, with a UserWarning, where it
    cannot be read or belongs to other kernels.

    >>> with autotune():
    ...     pass  # a training step
    """
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def is_on() -> bool:
    """Return whether products are to be measured when they are first met."""
    return _on


def cache_file(device: torch.device) -> Path:
    """Return the file of a device's measurements."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu execution"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdl"
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def load(path: Path) -> dict[str, Cut]:
    """Return a file's measurements; none, with a warning, where it is damaged or of other kernels."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["sources"] != _library.BUILD["sources"]:
            raise ValueError("it was measured with other kernels")
        return {str(key): [int(x) for x in cut] for key, cut in content["plans"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"fastdl.autotune: {path} is ignored ({error}); products are measured anew", stacklevel=2)
        return {}


def save(path: Path, key: str, cut: Cut) -> None:
    """Add one measurement to a file that other processes may be writing too: each sees a whole file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plans = {**load(path), key: cut}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
            json.dump({"sources": _library.BUILD["sources"], "plans": plans}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"fastdl.autotune: {path} cannot be written ({error}); this process alone knows", stacklevel=2)


def key_of(a: Tensor, b: Tensor, precision: int) -> str:
    """Return what a measurement holds for: dtype, sizes, strides, alignment, precision."""
    operands = [f"{tuple(t.shape)} {tuple(t.stride())} +{t.data_ptr() % 16}" for t in (a, b)]
    return f"{a.dtype} {precision} " + " x ".join(operands)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return how long one of several calls in a row takes on the device, at best."""
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(4):
            call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 4e3)
    return best


def meet(
    a: Tensor, b: Tensor, precision: int, product: Callable[[], Any],
    timer: Callable[[Callable[[], Any], torch.device], float] | None = None,
) -> None:  # fmt: skip
    """See that the product of two matrices, or batches, is made in the fastest way; measure it when first met."""
    by_kernels = CANDIDATES.run not in (CANDIDATES.overload, CANDIDATES.reference)  # executed on the CPU
    if not by_kernels and not (a.is_cuda and "CUDA" in CANDIDATES.implementations()):
        return
    if torch.compiler.is_compiling() or (a.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    key = key_of(a, b, precision)
    if f"{a.device} {key}" in _met:
        return
    _met.add(f"{a.device} {key}")
    cuts: list[Cut] = CANDIDATES(a, b, precision).tolist()
    if len(cuts) < 2:
        return
    path = cache_file(a.device)
    cut = load(path).get(key)
    if cut not in cuts:
        cut = _fastest(a, b, precision, product, cuts[:MOST], timer or seconds)
        save(path, key, cut)
    CHOOSE(a, b, precision, cut)


def _fastest(a: Tensor, b: Tensor, precision: int, product: Any, cuts: list[Cut], timer: Any) -> Cut:
    times = []
    for cut in cuts:
        CHOOSE(a, b, precision, cut)
        with torch.no_grad():
            times.append(timer(product, a.device))
    return cuts[times.index(min(times))]
