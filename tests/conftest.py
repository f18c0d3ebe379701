"""Backends: one suite runs on the formulas, on the kernels executed on the CPU, and on a GPU."""

import ctypes
import os
import re

import pytest
import torch

from fastdl import _library

BACKENDS = ["reference", "cpu", "emulated", "cuda"]
H200 = (132, 227 << 10, 90)  # what the emulator imitates: multiprocessors, shared bytes a block, capability


def load_emulated() -> None:
    """Build and load the kernels for CPU execution (flavour: FASTDL_FLAVOUR), and define their ops."""
    try:
        from emulator.build import build
    except ImportError:
        pytest.skip("no CPU execution of kernels in this tree")
    definitions = torch.library.Library("fastdl_emulated", "DEF")
    load_emulated.definitions = definitions  # keeps them alive
    for op in _library._ops.values():
        definitions.define(op.schema)
    torch.ops.load_library(build(os.environ.get("FASTDL_FLAVOUR", "plain")))


@pytest.fixture(scope="session")
def emulated_library():
    load_emulated()


@pytest.fixture
def library(emulated_library):
    """The emulated library's own functions; a device or schedule that a test sets is taken back after it."""
    library = ctypes.CDLL(next(p for p in torch.ops.loaded_libraries if "emulated" in p))
    library.fastdl_emulator_reset_counters()
    yield library
    library.fastdl_emulator_device(*H200)
    order = ("forward", "reverse", "random").index(os.environ.get("FASTDL_ORDER", "forward"))
    completion = ("eager", "lazy", "random").index(os.environ.get("FASTDL_COMPLETION", "eager"))
    library.fastdl_emulator_settings(order, completion, int(os.environ.get("FASTDL_SEED", "0")))


class Backend:
    """Where a test runs: `device` for its tensors, `name`, and `requires(op)` to skip what has no kernel yet."""

    def __init__(self, name: str) -> None:
        self.name, self.device = name, torch.device("cuda" if name == "cuda" else "cpu")

    def requires(self, *ops: str) -> None:
        for op in ops:
            if self.name == "emulated" and not torch._C._dispatch_has_kernel_for_dispatch_key(
                f"fastdl_emulated::{op}", "CPU"
            ):
                pytest.skip(f"{op} has no CUDA kernel yet")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the test once per backend: formulas, CPU ops, CUDA kernels on the CPU, CUDA kernels on a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "emulated":
        request.getfixturevalue("emulated_library")
    with _library.use({"reference": "reference", "emulated": "emulated"}.get(request.param, "auto")):
        yield Backend(request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip, by name of the op, what the emulated library has no kernel for yet."""
    try:
        return (yield)
    except NotImplementedError as error:
        missing = re.search(r"fastdl_emulated::(\w+)", str(error))
        if missing:
            pytest.skip(f"{missing[1]} has no CUDA kernel yet")
        raise
