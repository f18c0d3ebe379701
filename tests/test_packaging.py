"""Installing: every way it can fail prints one line that says what was found and what to type."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from fastdl import _C, _library

ROOT = Path(__file__).parent.parent
FAKE_TORCH = """
__version__ = {version!r}
class version: cuda = {cuda!r}
class cuda:
    is_available = staticmethod(lambda: False)
"""


@pytest.fixture
def fake_torch(tmp_path):
    """Make a torch that has nothing but a version."""

    def make(version: str, cuda: str | None) -> Path:
        package = tmp_path / "fake" / "torch"
        (package / "utils").mkdir(parents=True)
        (package / "__init__.py").write_text(FAKE_TORCH.format(version=version, cuda=cuda))
        (package / "utils" / "__init__.py").write_text("")
        (package / "utils" / "cpp_extension.py").write_text("")
        return package.parent

    return make


def setup_fails(*, path: Path | None = None, **environment: str) -> str:
    """Run setup.py, which must fail before it compiles anything; return the one line that it printed."""
    env = {**os.environ, **environment}
    if path:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-n"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.startswith("fastdl: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def fake_nvcc(folder: Path, release: str) -> Path:
    binary = folder / "bin" / "nvcc"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.0'\n")
    binary.chmod(0o755)
    return folder


def test_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch', name='torch')")
    message = setup_fails(path=tmp_path)
    assert "building needs torch" in message
    assert "pip install 'torch>=2.10'" in message
    assert "--no-build-isolation" in message


def test_with_an_old_torch(fake_torch):
    message = setup_fails(path=fake_torch("2.5.1+cu124", "12.4"))
    assert "found torch 2.5.1+cu124, needs 2.10 or newer" in message


def test_with_an_old_setuptools(fake_torch):
    """As a virtual environment of Python 3.10 or 3.11 brings it, where build isolation is off."""
    path = fake_torch("2.11.0+cpu", None)
    (path / "setuptools.py").write_text("__version__ = '65.5.0'")
    assert "found setuptools 65.5.0, needs 77.0 or newer: pip install 'setuptools>=77.0'" in setup_fails(path=path)


def test_cuda_forced_without_nvcc(tmp_path):
    message = setup_fails(FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    assert "FORCE_CUDA=1 but no nvcc" in message
    assert str(tmp_path) in message
    assert "set CUDA_HOME" in message


def test_nvcc_of_another_major_version(fake_torch, tmp_path):
    home = fake_nvcc(tmp_path / "cuda", "11.8")
    message = setup_fails(path=fake_torch("2.11.0+cu130", "13.0"), CUDA_HOME=str(home))
    assert "nvcc is CUDA 11, torch 2.11.0+cu130 is CUDA 13.0" in message


def copied_tree(folder: Path) -> Path:
    """Return a copy of the project without what a build leaves behind."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.so", "*.egg-info", "__pycache__", ".*_cache", ".benchmarks"
    )
    return shutil.copytree(ROOT, folder / "tree", ignore=ignored)


def run_dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "dev", *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_dev_alone_says_what_there_is():
    shown = run_dev().stdout
    for command in ("demo", "test", "bench", "gpu", "check", "build", "info"):
        assert f"\n  {command} " in shown


def test_dev_names_an_unknown_command():
    done = run_dev("tset")
    assert done.returncode != 0
    assert "no command 'tset'" in done.stderr


def test_dev_in_an_environment_without_torch(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = run_dev("test", FASTDL_ENV="current", PYTHON=str(python))
    assert done.returncode != 0
    assert "has no torch" in done.stderr


def test_dev_without_a_fitting_python(tmp_path):
    done = run_dev("test", PYTHON="/bin/false", FASTDL_VENV=str(tmp_path / "venv"), FASTDL_ENV="")
    assert done.returncode != 0
    assert "no Python 3.10 to 3.13" in done.stderr


def test_library_of_another_build_says_how_to_make_one(tmp_path):
    shutil.copytree(ROOT / "fastdl", tmp_path / "fastdl", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", "import fastdl.nn, fastdl._library"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastdl: the compiled library cannot be loaded")
    assert "pip install --no-build-isolation ." in last


def test_library_older_than_its_sources_says_how_to_rebuild(tmp_path):
    """After a pull; otherwise the first call of a new function would be a bare AttributeError."""
    shutil.copytree(ROOT / "fastdl", tmp_path / "fastdl", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "fastdl" / Path(_C.__file__).name).symlink_to(_C.__file__)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")

    def import_it() -> str:
        command = [sys.executable, "-c", "import fastdl"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr

    (tmp_path / "csrc" / "philox.cuh").write_text("// what Python does not call")
    assert import_it() == ""
    (tmp_path / "csrc" / "optim" / "cpu.cpp").write_text("// another signature")
    last = import_it().splitlines()[-1]
    assert last.startswith(f"ImportError: fastdl: the compiled library {tmp_path}")
    assert "is older than the sources" in last
    assert "./dev build" in last


def test_an_installed_library_is_not_compared(tmp_path):
    _library.check_sources(tmp_path / "csrc")


def test_source_archive(tmp_path):
    """It holds what any build needs, CUDA's part too, and is packed where there is no torch."""
    tree = copied_tree(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch', name='torch')")
    code = f"import build_backend; print(build_backend.build_sdist({str(tmp_path)!r}))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "build_backend.py", "pyproject.toml", "LICENSE", "README.md", "fastdl/py.typed"} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")} <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".so")]


@pytest.mark.slow
def test_wheel(tmp_path):
    """A wheel holds the package, its types and its licence, and nothing that only tests need."""
    tree = copied_tree(tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", "-w", "out"]
    subprocess.run(command, cwd=tree, check=True, env={**os.environ, "FORCE_CUDA": "0"})
    (wheel,) = (tree / "out").glob("fastdl-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastdl/py.typed" in names
    assert any(n.startswith("fastdl/_C.") and n.endswith(".so") for n in names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    top = {n.split("/")[0] for n in names}
    assert top == {"fastdl", next(n for n in top if n.endswith(".dist-info"))}
    assert not [n for n in names if "emulat" in n or "test" in n]
    # it must load beside nothing but torch, in a place of its own
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = "import fastdl, fastdl.functional, torch; print(fastdl.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(target)},
    )
    assert done.stdout.startswith(str(target)), done.stderr


def test_torch_is_one_that_the_package_supports():
    assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 10)
