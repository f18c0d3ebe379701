"""The `compare` fixture, and what every results file says about its machine."""

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import machine
import protocol
import pytest

from fastdl import info


@pytest.fixture
def compare(benchmark: Any) -> Any:
    """protocol.compare, filing its rows under this benchmark."""
    return functools.partial(protocol.compare, benchmark)


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Versions, driver and ceilings replace pytest-benchmark's description, host name included."""
    machine_info.clear()
    machine_info.update(info.report(ops=False), bounds=machine.bounds(), load=list(os.getloadavg()))


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    git = functools.partial(subprocess.run, capture_output=True, text=True, cwd=Path(__file__).parent)
    commit = git(["git", "rev-parse", "HEAD"]).stdout.strip() or os.environ.get("FASTDL_COMMIT", "unknown")
    dirty = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    commit_info.update(id=commit, dirty=dirty)


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    for row in output_json["benchmarks"]:
        row["conditions"] = protocol.CONDITIONS.get(row["fullname"], {})
