"""The compiled library: loading it, defining ops, and choosing the path that a call takes.

An op is defined by one call of `define`: schema, fake kernel and reference. C++ registers faster implementations
under the same schema (csrc/<op>/cpu.cpp for CPU tensors, csrc/<op>/op.cpp for CUDA tensors); where there is none,
torch's dispatcher runs the reference.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastdl._sources import digest

try:
    # Before any schema: a library built for another torch then raises here instead of aborting the process later.
    from fastdl import _C as _C
except ImportError as error:
    raise ImportError(
        f"fastdl: the compiled library cannot be loaded ({error}). Build it for this torch ({torch.__version__}) "
        "with `pip install --no-build-isolation .` in the source folder, and run Python outside of that folder."
    ) from error

BUILD: dict[str, Any] = _C.build_info()


def check_sources(csrc: Path) -> None:
    """Raise ImportError where `csrc`, in a source tree, is no longer what the library was compiled from."""
    if (csrc / "module.cpp").exists() and BUILD.get("sources") != digest(csrc, bool(BUILD["cuda"])):
        raise ImportError(
            f"fastdl: the compiled library {_C.__file__} is older than the sources in {csrc}. Rebuild it with "
            "`./dev build`, or with `pip install --no-build-isolation -e .` in that tree."
        )


check_sources(Path(__file__).parents[1] / "csrc")
_definitions = torch.library.Library("fastdl", "DEF")
_ops: dict[str, "Op"] = {}
_warned: set[str] = set()


def fall_back(op: str, reason: str) -> None:
    """Tell once per reason that `op` takes a slower path; with FASTDL_STRICT=1 raise RuntimeError instead."""
    message = f"fastdl: {op} takes the reference path: {reason}"
    if os.environ.get("FASTDL_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{message} (FASTDL_STRICT=1)")
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


class Op:
    """A tensor op. Calling it runs the implementation of the backend in use (see `use`)."""

    def __init__(self, name: str, schema: str, reference: Callable[..., Any]) -> None:
        self.name, self.schema, self.reference = name, schema, reference
        self.overload = getattr(torch.ops.fastdl, name).default
        self.run: Callable[..., Any] = self.overload

    def __call__(self, *args: Any) -> Any:
        """Run the op."""
        return self.run(*args)

    def implementations(self) -> list[str]:
        """Return which of "CPU" and "CUDA" have compiled code."""
        return [
            key
            for key in ("CPU", "CUDA")
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdl::{self.name}", key)
        ]


def define(schema: str, *, fake: Callable[..., Any], reference: Callable[..., Any]) -> Op:
    """Define an op by its schema, e.g. "dropout(Tensor input, Tensor seed, float p) -> Tensor".

    `fake` computes output shapes, dtypes and strides without data; `reference` is the formula in torch ops, on any
    device. Gradients belong to the autograd.Function that calls the op.
    """
    name = schema.split("(", 1)[0]
    _definitions.define(schema)

    def run_reference(*args: Any) -> Any:
        tensor = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if tensor is not None and tensor.is_cuda:
            built = f"its kernels were built with CUDA {BUILD['cuda']}" if BUILD["cuda"] else "built without CUDA"
            fall_back(name, f"no CUDA kernel in this library ({built})")
        return reference(*args)

    torch.library.impl(_definitions, name, "CompositeExplicitAutograd")(run_reference)
    torch.library.register_fake(f"fastdl::{name}", fake, lib=_definitions)
    op = _ops[name] = Op(name, schema, reference)
    return op


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run every op on one backend inside the scope, for tests and comparisons.

    "auto" follows the tensor's device, "reference" runs the formulas, "emulated" runs the CUDA kernels on the CPU
    (only where the tests have loaded that library).
    """
    previous = {op: op.run for op in _ops.values()}
    for name, op in _ops.items():
        if backend == "reference":
            op.run = op.reference
        elif backend == "emulated":
            op.run = getattr(torch.ops.fastdl_emulated, name).default
        elif backend == "auto":
            op.run = op.overload
        else:
            raise ValueError(f"use: backend must be 'auto', 'reference' or 'emulated', got {backend!r}")
    try:
        yield
    finally:
        for op, run in previous.items():
            op.run = run
