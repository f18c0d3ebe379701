"""What this installation is and what it would do here: `python -m fastdl.info [--json]`, or `report()`.

Nothing in here raises: what cannot be found out is None, or says why.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastdl

PARTS = ("dropout", "batch_norm", "matmul", "optim", "init", "augment")


def _try(what: Callable[[], Any]) -> Any:
    """Return what() or None: one odd driver or file must not cost the rest of the report."""
    try:
        return what()
    except Exception:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _driver() -> str | None:
    """Return the NVIDIA driver's version, from the kernel's own file or nvidia-ml-py."""
    file = Path("/proc/driver/nvidia/version")
    if file.exists():
        return next((w for w in file.read_text().split() if w.count(".") >= 1 and w[0].isdigit()), None)
    pynvml = importlib.import_module("pynvml")  # nvidia-ml-py, optional
    pynvml.nvmlInit()
    version = pynvml.nvmlSystemGetDriverVersion()
    return version.decode() if isinstance(version, bytes) else str(version)


def _gpu(index: int) -> dict[str, Any]:
    p = torch.cuda.get_device_properties(index)
    return {
        "name": p.name,
        "compute_capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_gib": round(p.total_memory / 2**30, 1),
        "l2_mib": round(getattr(p, "L2_cache_size", 0) / 2**20, 1),
    }


def _gpus() -> list[dict[str, Any]]:
    return [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _library() -> dict[str, Any]:
    """Return what the compiled library was built with, or why it cannot be loaded."""
    try:
        from fastdl._library import BUILD
    except Exception as error:
        return {"error": str(error)}
    return dict(BUILD)


def _ops() -> dict[str, Any]:
    """Return, per op, its compiled implementations."""
    for part in PARTS:
        _try(lambda part=part: importlib.import_module(f"fastdl.{part}"))  # type: ignore[misc]
    from fastdl._library import _ops as defined

    return {name: op.implementations() for name, op in sorted(defined.items())}


def report(*, ops: bool = True) -> dict[str, Any]:
    """Return versions, library, machine and (with `ops`) the path of each op, as plain values fit for JSON."""
    result: dict[str, Any] = {
        "fastdl": fastdl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": _try(torch.backends.cudnn.version),
        "platform": platform.platform(),
        "cpu": _try(_cpu_model),
        "cores": os.cpu_count(),
        "threads": _try(torch.get_num_threads),
        "simd": _try(torch.backends.cpu.get_cpu_capability),
        "memory_gib": _try(_memory_gib),
        "driver": _try(_driver),
        "gpus": _try(_gpus) or [],
        "library": _library(),
    }
    if ops:
        result["ops"] = _try(_ops) or {}
    return result


def main(arguments: list[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m fastdl.info", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    print(json.dumps(report(), indent=None if not options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
