"""The kernels' registers, shared memory and spills; any spill, local-memory stack or C75xx warning fails.

    python tests/kernel_gate.py [FILE.cu ...]     default: every csrc/*/api*.cu

Compiles for an older architecture, Ampere and Hopper with `nvcc -Xptxas -v`, in parallel, once per content. Without
a CUDA toolkit a pip-installed compiler will do: pip install "cuda-toolkit[nvcc,cccl]==13.0.*"
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from emulator.build import ROOT, dependencies, digest

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")  # the first stands for everything older that runs by PTX
FLAGS = ["-std=c++20", "-O3", "-Xptxas", "-v", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
CACHE = ROOT / "build" / "kernel_gate"


@dataclass
class Kernel:
    """What ptxas reports of one kernel for one architecture; memory in bytes."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    warnings: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Return what is not allowed in a shipped kernel."""
        found = []
        if self.spill_stores or self.spill_loads:
            found.append(f"spills {self.spill_stores} bytes out, {self.spill_loads} bytes in")
        if self.stack:
            found.append(f"keeps {self.stack} bytes of local memory on a stack")
        return found + self.warnings


def find_nvcc() -> str | None:
    """Return nvcc of CUDA_HOME, of the PATH, or of a pip-installed toolkit."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    candidates += [*sorted(packages.glob("cu*/bin/nvcc"), reverse=True), packages / "cuda_nvcc" / "bin" / "nvcc"]
    return next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def parse(report: str, architecture: str) -> list[Kernel]:
    """Read the output of ptxas -v."""
    kernels: dict[str, Kernel] = {}
    current = None
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            current = kernels.setdefault(match[1], Kernel(match[1], architecture))
        elif match := re.search(r"Function properties for (\w+)", line):
            # A function that is no kernel was not inlined; what it spills counts for the kernel before it.
            current = kernels.get(match[1], current)
        elif current and (match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line)):
            current.stack += int(match[1])
            current.spill_stores += int(match[2])
            current.spill_loads += int(match[3])
        elif current and (match := re.search(r"Used (\d+) registers", line)):
            current.registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            current.shared = int(shared[1]) if shared else 0
        if match := re.search(r"\(C75\d\d\).*", line):
            named = next((k for name, k in kernels.items() if name in line), current)
            if named is None:
                named = kernels.setdefault("?", Kernel("?", architecture))
            named.warnings.append(match[0])
    return list(kernels.values())


def compile_one(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """Return the kernels of a file; the answer is kept until a file that it includes changes."""
    whole = architecture == ARCHITECTURES[-1]  # host code with it: launch stubs have rules of their own
    command = [nvcc, *FLAGS, "-c" if whole else "-cubin", f"-arch={architecture}"]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(" ".join([*command, str(source), version]).encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    record, depfile = CACHE / f"{key}.json", CACHE / f"{key}.d"
    if record.exists():
        known = json.loads(record.read_text())
        if all((ROOT / path).exists() and digest(ROOT / path) == value for path, value in known["files"].items()):
            return [Kernel(**kernel) for kernel in known["kernels"]]
    arguments = ["-MMD", "-MF", str(depfile), "-o", str(CACHE / f"{key}.out"), str(source)]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source} does not compile for {architecture}:\n{result.stderr}")
    kernels = parse(result.stdout + result.stderr, architecture)
    files = {path: digest(ROOT / path) for path in [*dependencies(depfile), os.path.relpath(source, ROOT)]}
    record.write_text(json.dumps({"files": files, "kernels": [asdict(kernel) for kernel in kernels]}))
    return kernels


def short_name(name: str) -> str:
    """Return a demangled kernel's name without the project's namespace and the parameter list."""
    depth, start = 0, len(name)
    while name.endswith(")") and (start := start - 1) > 0:  # back to the parenthesis that opens the parameters
        depth += {")": 1, "(": -1}.get(name[start], 0)
        if depth == 0:
            break
    return name[:start].removeprefix("void ").replace("fastdl::", "").replace("> >", ">>")


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Return C++ names; as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if not tool or not names:
        return {name: name for name in names}
    lines = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(names, map(short_name, lines), strict=True))


def measure(nvcc: str, sources: Sequence[Path]) -> list[Kernel]:
    """Return all kernels of all files for all architectures, under their C++ names."""
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        kernels = [k for found in pool.map(lambda job: compile_one(nvcc, *job), jobs) for k in found]
    names = demangled(sorted({kernel.name for kernel in kernels}))
    for kernel in kernels:
        kernel.name = names[kernel.name]
    return kernels


def table(kernels: Sequence[Kernel]) -> str:
    """Return one line per kernel and architecture."""
    width = max(len(kernel.name) for kernel in kernels)
    lines = [f"{'kernel':{width}}  {'for':7} registers  shared  stack  spills"]
    for k in sorted(kernels, key=lambda k: (k.name, ARCHITECTURES.index(k.architecture))):
        spills = k.spill_stores + k.spill_loads
        lines.append(f"{k.name:{width}}  {k.architecture:7} {k.registers:9}  {k.shared:6}  {k.stack:5}  {spills:6}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the table and every violation; 1 if there is one."""
    sources = [Path(a).resolve() for a in arguments] or sorted(ROOT.glob("csrc/*/api*.cu"))
    if not sources:
        print("kernel gate: no kernels (csrc/*/api*.cu)")
        return 0
    nvcc = find_nvcc()
    if nvcc is None:
        print('kernel gate: skipped, no nvcc; pip install "cuda-toolkit[nvcc,cccl]==13.0.*" brings one')
        return 0
    try:
        kernels = measure(nvcc, sources)
    except RuntimeError as error:
        print(f"kernel gate: {error}")
        return 1
    if kernels:
        print(table(kernels))
    failures = [f"{k.name} ({k.architecture}): {text}" for k in kernels for text in k.violations()]
    for failure in failures:
        print(f"kernel gate: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
