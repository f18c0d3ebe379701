"""What each instruction computes, on the CPU and on a GPU: builds, runs, records and compares tests/conformance.cu.

    python tests/conformance.py cpu             print the CPU's answers
    python tests/conformance.py cpu --record    write them to tests/conformance_cpu.txt
    python tests/conformance.py gpu             build for the GPU at hand, compare with the CPU, exit 1 on a difference
    python tests/conformance.py gpu --record    the same, and write tests/conformance_gpu/<machine>.txt to be committed

Recorded GPU answers carry machine and date; tests/test_conformance.py holds the CPU execution to them.
"""

import datetime
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from emulator import build
from kernel_gate import find_nvcc

SOURCE = build.ROOT / "tests" / "conformance.cu"
CPU_ANSWERS = build.ROOT / "tests" / "conformance_cpu.txt"
GPU_ANSWERS = build.ROOT / "tests" / "conformance_gpu"


def parse(text: str) -> dict[str, str]:
    """Return the hash of each instruction; lines that begin with # say where they come from."""
    answers = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, value = line.rsplit(maxsplit=1)
            if not re.fullmatch(r"[0-9a-f]{16}", value) or name in answers:
                raise ValueError(f"no answer, or a second one: {line!r}")
            answers[name] = value
    return answers


def differences(ours: Mapping[str, str], theirs: Mapping[str, str], *, subset: bool = False) -> list[str]:
    """Return what differs, one line each; with `subset`, theirs may lack instructions (an older GPU)."""
    found = [f"{name}: {ours.get(name, 'missing')} here, {value} there" for name, value in theirs.items()
             if ours.get(name) != value]  # fmt: skip
    if not subset:
        found += [f"{name}: {value} here, missing there" for name, value in ours.items() if name not in theirs]
    return found


def cpu_answers(flavour: str = "plain", **settings: str) -> str:
    """Run on the CPU and return what the program prints; settings: FASTDL_ORDER=..., FASTDL_COMPLETION=..."""
    program = build.build_program(flavour, "conformance", [SOURCE])
    env = dict(os.environ, ASAN_OPTIONS="detect_leaks=0", **settings)
    result = subprocess.run([program], capture_output=True, text=True, env=env, timeout=1800, errors="replace")
    if result.returncode:
        raise RuntimeError(f"conformance on the CPU ({flavour}): {result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout


def nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def build_for(capability: str) -> Path:
    """Compile for a GPU, e.g. "9.0", with nvcc and return the program."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError('no nvcc; pip install "cuda-toolkit[nvcc,cccl]==13.0.*" brings one')
    architecture = "sm_" + capability.replace(".", "") + ("a" if capability == "9.0" else "")
    program = build.ROOT / "build" / f"conformance_{architecture}"
    program.parent.mkdir(exist_ok=True)
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={architecture}"]
    folders = [f"-I{build.ROOT / 'csrc'}", f"-I{build.ROOT / 'tests'}"]
    command = [nvcc, *flags, *folders, "-o", str(program), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return program


def gpu_answers() -> tuple[str, str]:
    """Run on the GPU at hand; return the machine's name and the answers with their origin on top."""
    machine, driver, capability = nvidia_smi("name,driver_version,compute_cap").split(", ")
    result = subprocess.run([build_for(capability)], capture_output=True, text=True, timeout=600)
    if result.returncode:
        raise RuntimeError(f"conformance on {machine}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return machine, f"# {machine}, driver {driver}, {today}\n{result.stdout}"


def main(arguments: Sequence[str]) -> int:
    """Do what the module's first lines say."""
    record = "--record" in arguments
    if arguments[:1] == ["cpu"]:
        text = cpu_answers()
        if record:
            CPU_ANSWERS.write_text(text)
        else:
            print(text, end="")
        return 0
    if arguments[:1] != ["gpu"]:
        print(__doc__)
        return 2
    machine, text = gpu_answers()
    if record:
        GPU_ANSWERS.mkdir(exist_ok=True)
        (GPU_ANSWERS / f"{re.sub(r'[^A-Za-z0-9]+', '_', machine)}.txt").write_text(text)
    answers = parse(text)
    found = differences(parse(CPU_ANSWERS.read_text()), answers, subset=True)
    print("\n".join(found) or f"conformance: {len(answers)} instructions on {machine}, all as on the CPU")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
