"""Kernels run on the CPU: correct ones pass in every order, and seeded mistakes are caught."""

import ctypes
import itertools
import os
import subprocess
import sys

import pytest
from emulator import build

ORDERS = ["forward", "reverse", "random"]
COMPLETIONS = ["eager", "lazy", "random"]


def program(flavour: str) -> str:
    return build.build_program(flavour, "mistakes", sorted((build.EMULATOR / "mistakes").glob("*.c*")))


def run(flavour: str, case: str, mistake: int = 0, order: str = "forward", completion: str = "eager", seed: int = 1):
    env = dict(os.environ, FASTDL_ORDER=order, FASTDL_COMPLETION=completion, FASTDL_SEED=str(seed),
               ASAN_OPTIONS="detect_leaks=0")  # fmt: skip
    arguments = [program(flavour), case, str(mistake)]
    return subprocess.run(arguments, capture_output=True, text=True, env=env, timeout=300, errors="replace")


@pytest.mark.parametrize("flavour", list(build.FLAVOURS))
def test_correct_kernels_pass_in_every_order(flavour):
    for order, completion in itertools.product(ORDERS, COMPLETIONS):
        for case in ("warp_exchange", "histogram", "moments", "cluster_sum"):
            result = run(flavour, case, order=order, completion=completion)
            assert result.returncode == 0, f"{flavour} {order} {completion}: {result.stdout}{result.stderr}"


@pytest.mark.parametrize(("case", "mistake"), [("warp_exchange", 60), ("histogram", 64)])
def test_race_is_reported_with_file_and_line(case, mistake):
    result = run("race", case, mistake)
    assert result.returncode == 1
    assert "DATA RACE" in result.stdout or "UNINITIALISED SHARED MEMORY" in result.stdout
    assert "basics.cu:" in result.stdout


def test_library_builds_once_and_counts():
    path = build.build("plain")
    assert build.build("plain") == path
    library = ctypes.CDLL(path)
    counts = [ctypes.c_uint64() for _ in range(3)]
    library.fastdl_emulator_counters(b"", *map(ctypes.byref, counts))


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["san", "race"])
def test_suite_passes_in_this_flavour(flavour):
    """Everything that runs kernels on the CPU, once more under the sanitizers and the race checker."""
    arguments = ["-m", "pytest", "-q", "-x", "-k", "emulated", "-m", "not slow and not fuzz", "-p", "no:cacheprovider"]
    tool = [sys.executable, "tests/emulator/build.py", "run", flavour, "--", *arguments, "tests"]
    result = subprocess.run(tool, capture_output=True, text=True, timeout=3000, cwd=build.ROOT)
    assert result.returncode in (0, 5), result.stdout[-5000:] + result.stderr[-3000:]
