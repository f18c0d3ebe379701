"""What this installation is and what it would do here: `python -m fastdl.info [--json]`, or `report()`.

Nothing in here raises: what cannot be found out is None, or says why.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from fastdl._plans import H200, plans


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
        "shared_bytes": getattr(p, "shared_memory_per_block_optin", 0),
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


def _arch_check(library: dict[str, Any], capability: tuple[int, int]) -> str:
    """Say whether the library holds code for a GPU of this compute capability: "built for / you have"."""
    archs = library.get("archs")
    have = f"you have {capability[0]}.{capability[1]}"
    if not archs:
        return f"no: built without CUDA, {have}; install with nvcc at hand (FORCE_CUDA=1 pip install .)"
    later = False
    for arch in archs.split(","):
        number, _, ptx = arch.partition("+")
        major, minor = (int(digits) for digits in number.rstrip("af").split("."))
        exact = number[-1].isalpha()  # 9.0a runs on 9.0 alone, its PTX too
        if (major, minor) == capability or (not exact and major == capability[0] and minor <= capability[1]):
            return f"yes: built for {archs}, {have}"
        later |= bool(ptx) and not exact and (major, minor) <= capability
    if later:
        return f"yes, compiled by the driver at first use: built for {archs}, {have}"
    return f"no: built for {archs}, {have}; rebuild with TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}"


def samples(device: torch.device, *, gradients: bool = False) -> dict[str, Callable[[], Any]]:
    """Return a small call of every public part, of sizes that no vector width divides.

    What such a call runs is the path that this machine takes; `gradients` makes its inputs require them.
    """
    x = torch.randn(7, 13, device=device, requires_grad=gradients)
    image = torch.randn(3, 5, 7, 7, device=device, requires_grad=gradients)
    nn, functional = _part("nn"), _part("functional")

    def step(name: str) -> None:
        parameter = torch.nn.Parameter(torch.zeros(131, device=device))
        parameter.grad = torch.ones_like(parameter)
        getattr(_part("optim"), name)([parameter], lr=0.1).step()

    def batch() -> None:
        bytes_ = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)
        _part("data").BatchTransform(4, crop="random")(bytes_)

    def module(name: str, *arguments: Any, input: torch.Tensor = x, **extras: Any) -> Callable[[], Any]:
        return lambda: getattr(nn, name)(*arguments, **extras).to(device)(input)

    return {
        "dropout": lambda: functional.dropout(x, 0.5),
        "dropout + residual": lambda: functional.dropout(x, 0.5, residual=x),
        "batch_norm (N, C)": module("BatchNorm1d", 13),
        "batch_norm (N, C, H, W)": module("BatchNorm2d", 5, input=image),
        "batch_norm + relu": module("BatchNorm2d", 5, input=image, activation="relu"),
        "linear": module("Linear", 13, 11),
        "linear + gelu": module("Linear", 13, 11, activation="gelu"),
        "MLP": module("MLP", 13, 11),
        "LinearBatchNormAct": module("LinearBatchNormAct", 13, 11),
        "matmul": lambda: fastdl.matmul(x, x.T),
        "initialize": lambda: _part("init").initialize(torch.nn.Linear(4, 4).to(device)),
        **{name: partial(step, name) for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")},
        "BatchTransform": batch,
    }


def _part(name: str) -> Any:
    """Import a part of fastdl."""
    return importlib.import_module(f"fastdl.{name}")


class _Recorder(TorchDispatchMode):
    """Keeps the names of the ops that run, fastdl's apart from torch's."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours: list[str] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the op and run it."""
        namespace, _, name = func._schema.name.partition("::")
        seen = self.ours if namespace == "fastdl" else self.others
        if name not in seen and name != "optim_library":  # asks which library there is, and computes nothing
            seen.append(name)
        return func(*args, **(kwargs or {}))


def _path(sample: Callable[[], Any], key: str) -> str:
    """Run the sample and say by what it was computed, and why."""
    from fastdl import _library

    with _Recorder() as recorder, torch.random.fork_rng():
        sample()
    if not recorder.ours:
        computed = [name for name in recorder.others if name not in _PLUMBING]
        return (
            "torch's own op, the same thing: " + ", ".join(computed) if computed else "code outside torch's dispatcher"
        )
    paths = []
    for name in recorder.ours:
        if key in _library._ops[name].implementations():
            paths.append(f"fastdl::{name} by " + ("a CUDA kernel" if key == "CUDA" else "compiled CPU code"))
        else:
            paths.append(f"fastdl::{name} by its reference formula: no compiled {key} code in this library")
    return "; ".join(paths)


_PLUMBING = (
    "detach",
    "empty",
    "view",
    "t",
    "clone",
    "_to_copy",
    "zeros",
    "ones",
    "arange",
    "alias",
    "uniform_",
    "permute",
)


def _ops(device: torch.device) -> dict[str, str]:
    """Return the path that each part takes on the device, found by running it on a few elements."""
    result = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # falling back is what is being reported
        for name, sample in samples(device).items():
            try:
                result[name] = _path(sample, "CUDA" if device.type == "cuda" else "CPU")
            except Exception as error:
                result[name] = f"does not run here: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return result


def report(*, ops: bool = True) -> dict[str, Any]:
    """Return versions, library, machine and (with `ops`) the path of each part, as plain values fit for JSON."""
    library, gpus = _library(), _try(_gpus) or []
    for gpu in gpus:
        major, minor = (int(digit) for digit in gpu["compute_capability"].split("."))
        gpu["library_has_code"] = _try(lambda: _arch_check(library, (major, minor)))  # noqa: B023
    planned = gpus[0] if gpus else H200
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
        "gpus": gpus,
        "library": library,
        "plans": {planned["name"]: _try(partial(plans, planned)) or {}},
        "strict": os.environ.get("FASTDL_STRICT", "0") not in ("", "0"),
    }
    if ops:
        device = torch.device("cuda" if gpus else "cpu")
        result["device"] = device.type
        result["ops"] = (_try(lambda: _ops(device)) or {}) if "error" not in library else {}
    return result


def _text(found: dict[str, Any]) -> str:
    """Return the report for people, one fact a line."""
    library = found["library"]
    if "error" in library:
        built = f"not loaded: {library['error']}"
    elif library["cuda"]:
        built = (
            f"CUDA {library['cuda']} for {library['archs']}, {library['compiler']}, torch ABI {library['torch_abi']}"
        )
    else:
        built = f"CPU only (no nvcc when it was built), {library['compiler']}, torch ABI {library['torch_abi']}"
    rows = [
        ("fastdl", found["fastdl"]),
        ("library", built),
        ("torch", f"{found['torch']}, CUDA {found['torch_cuda'] or 'none'}, cuDNN {found['cudnn'] or 'none'}"),
        ("python", f"{found['python']}, {found['platform']}"),
        ("cpu", f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['simd']}, "
                f"{found['memory_gib']} GiB"),
        ("driver", found["driver"] or "no NVIDIA driver"),
    ]  # fmt: skip
    for gpu in found["gpus"]:
        facts = f"compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors"
        rows.append(("gpu", f"{gpu['name']}, {facts}, {gpu['memory_gib']} GiB, L2 {gpu['l2_mib']} MiB"))
        rows.append(("", f"code for it: {gpu['library_has_code']}"))
    if not found["gpus"]:
        rows.append(("gpu", "none that torch can use"))
    strict = "raises (FASTDL_STRICT=1)" if found["strict"] else "warns once per reason (FASTDL_STRICT=1 raises)"
    rows.append(("slow paths", strict))
    lines = [f"{name:12}{value}" for name, value in rows]
    if "ops" in found:
        width = max(map(len, found["ops"]), default=0) + 2
        lines += ["", f"On {found['device']} tensors here:"]
        lines += [f"  {name:{width}}{path}" for name, path in found["ops"].items()]
    for gpu_name, subjects in found["plans"].items():
        for subject, rows_of in subjects.items():
            lines += ["", f"{subject} on {gpu_name}:"]
            lines += [f"  {shape:26}{plan}" for shape, plan in rows_of.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m fastdl.info", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    found = report()
    print(json.dumps(found, indent=2) if parser.parse_args(arguments).json else _text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
