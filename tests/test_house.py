"""The walls of CONTRIBUTING.md, checked on the tree itself."""

import ast
import re
from pathlib import Path

import pytest

import fastdl
from fastdl import _library

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
OPS = sorted(p.name for p in CSRC.iterdir() if p.is_dir())


def lines(path: Path) -> int:
    return path.read_text().count("\n")


def code(path: Path) -> str:
    """Return a C++ file without its comments."""
    return re.sub(r"//.*", "", path.read_text())


def test_kernels_know_no_torch():
    kernels = [*CSRC.rglob("*.cuh"), *CSRC.rglob("api.h"), *CSRC.rglob("api*.cu"), CSRC / "simt.h"]
    guilty = [
        p.relative_to(ROOT) for p in kernels if p.exists() and re.search(r"torch/|torch_glue|at::|c10::", code(p))
    ]
    assert guilty == []


def test_asm_lives_in_one_file():
    guilty = [
        p.relative_to(ROOT)
        for p in [*CSRC.rglob("*.cuh"), *CSRC.rglob("*.cu"), *CSRC.rglob("*.h")]
        if re.search(r"\basm\b", code(p)) and p.name != "ptx.cuh"
    ]
    assert guilty == []


def test_only_api_files_launch():
    guilty = [
        p.relative_to(ROOT)
        for p in [*CSRC.rglob("*.cuh"), *CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu")]
        if re.search(r"<<<|\blaunch\(", code(p)) and p.name != "simt.h" and not re.fullmatch(r"api\w*\.cu", p.name)
    ]
    assert guilty == []


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_found_by_its_stem(op):
    assert (ROOT / "fastdl" / f"{op}.py").exists() or (ROOT / "fastdl" / op).is_dir()
    assert list((ROOT / "tests").glob(f"test_{op}*.py"))
    assert list((ROOT / "benchmarks").glob(f"bench_{op}*.py")) or op == "init"


@pytest.mark.parametrize("op", OPS)
def test_an_op_with_kernels_has_all_their_places(op):
    present = {name for name in ("api.h", "api.cu", "op.cpp") if (CSRC / op / name).exists()}
    assert present in (set(), {"api.h", "api.cu", "op.cpp"})
    if present:
        assert list((CSRC / op).glob("*.cuh"))


def test_every_op_has_schema_reference_and_fake():
    for name, op in _library._ops.items():
        assert callable(op.reference), name
        assert op.reference.__doc__ or op.reference.__name__ == "<lambda>", f"{name}: its reference has no docstring"
        assert torch_has_fake(name), name


def torch_has_fake(name: str) -> bool:
    from torch._library.simple_registry import singleton

    return singleton.find(f"fastdl::{name}").fake_impl.kernel is not None


def test_facades_hold_no_logic():
    for facade in ("nn", "functional", "reference", "data"):
        tree = ast.parse((ROOT / "fastdl" / f"{facade}.py").read_text())
        kinds = {type(node) for node in tree.body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Import, ast.Assign}, facade


def test_rooms_stay_small():
    """A file that outgrows its room gets a second room."""
    rooms = [(p, 330) for p in ROOT.glob("fastdl/**/*.py")]
    rooms += [(p, 400) for p in CSRC.rglob("*") if p.is_file()]
    too_long = [f"{lines(p)} {p.relative_to(ROOT)}" for p, most in rooms if lines(p) > most]
    assert too_long == []
    assert lines(ROOT / "setup.py") <= 90


def test_version_stands_once():
    assert f'version = "{fastdl.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {fastdl.__version__}" in (ROOT / "CHANGELOG.md").read_text()
