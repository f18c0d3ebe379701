"""Kernels run on the CPU: correct ones pass in every order, seeded mistakes are caught, results can be measured."""

import ctypes
import itertools
import os
import subprocess
import sys

import pytest
from emulator import build
from emulator.counters import counters
from emulator.mistakes import MISTAKES, Mistake

ORDERS = ["forward", "reverse", "random"]
COMPLETIONS = ["eager", "lazy", "random"]
SCHEDULES = list(itertools.product(ORDERS, COMPLETIONS))
FLAVOURS = ["plain", "race", pytest.param("san", marks=pytest.mark.slow)]


def program(flavour: str) -> str:
    """The kernels of tests/emulator/mistakes as one program, with the mistake chosen at run time."""
    return build.build_program(flavour, "mistakes", sorted((build.EMULATOR / "mistakes").glob("*.c*")))


def run(flavour: str, case: str, mistake: int = 0, order: str = "forward", completion: str = "eager", seed: int = 1):
    env = dict(os.environ, FASTDL_ORDER=order, FASTDL_COMPLETION=completion, FASTDL_SEED=str(seed),
               ASAN_OPTIONS="detect_leaks=0")  # fmt: skip
    arguments = [program(flavour), case, str(mistake)]
    return subprocess.run(arguments, capture_output=True, text=True, env=env, timeout=300, errors="replace")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_correct_kernels_pass_in_every_order(flavour):
    for order, completion in SCHEDULES:
        result = run(flavour, "all", 0, order, completion)
        assert result.returncode == 0, f"{flavour} {order} {completion}: {result.stdout}{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["plain", "race"])
def test_correct_kernels_pass_with_many_seeds(flavour):
    for seed in range(20):
        result = run(flavour, "all", 0, "random", "random", seed)
        assert result.returncode == 0, f"{flavour} seed {seed}: {result.stdout}{result.stderr}"


def name_of(mistake: Mistake) -> str:
    return f"{mistake.number}-{mistake.what}".replace(" ", "_")


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.flavour != "san"], ids=name_of)
def test_mistake_is_caught(mistake):
    assert mistake.number > 0
    result = run(mistake.flavour, mistake.case, mistake.number, mistake.order, mistake.completion)
    output = result.stdout + result.stderr
    assert result.returncode != 0, f"not caught: {mistake.what}"
    assert mistake.report in output


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.flavour == "san"], ids=name_of)
def test_mistake_is_caught_by_sanitizers(mistake):
    test_mistake_is_caught(mistake)


def test_every_mistake_in_the_kernels_is_listed():
    sources = "".join(path.read_text() for path in (build.EMULATOR / "mistakes").glob("*.cu"))
    listed = {m.number for m in MISTAKES}
    assert len(listed) == len(MISTAKES) >= 60
    seeded = {int(word.split(")")[0]) for word in sources.split("mistake(")[1:]}
    assert seeded == listed


@pytest.mark.parametrize(
    ("case", "mistake", "place"), [("hand_over", 102, "async.cu:"), ("histogram", 64, "basics.cu:")]
)
def test_race_names_both_places(case, mistake, place):
    output = run("race", case, mistake).stdout
    assert "DATA RACE" in output
    assert output.count(place) == 2, output


def test_library_is_built_once():
    path = build.build("plain")
    before = os.stat(path).st_mtime_ns
    assert build.build("plain") == path
    assert os.stat(path).st_mtime_ns == before
    library = ctypes.CDLL(path)
    library.fastdl_emulator_reset_counters()
    assert counters(library) == (0, 0, 0, "")


def test_unknown_flavour():
    with pytest.raises(ValueError, match="flavour must be one of plain, san, race, got 'fast'"):
        build.build("fast")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("flavour", ["san", "race"])
def test_suite_passes_in_this_flavour(flavour):
    """Everything that runs kernels on the CPU, once more under the sanitizers and the race checker."""
    kernels = "(emulated or kernel) and not gate"  # by test and by file
    arguments = ["-m", "pytest", "-q", "-x", "-k", kernels, "-m", "not slow and not fuzz", "-p", "no:cacheprovider"]
    tool = [sys.executable, "tests/emulator/build.py", "run", flavour, "--", *arguments, "tests"]
    result = subprocess.run(tool, capture_output=True, text=True, timeout=3600, cwd=build.ROOT)
    assert result.returncode in (0, 5), result.stdout[-5000:] + result.stderr[-3000:]
