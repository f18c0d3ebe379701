"""Compiles the kernels for CPU execution, in one of three flavours; needs g++ and torch, no CUDA toolkit.

plain   fast; shared memory, registers and pending results start as NaN
san     AddressSanitizer and UndefinedBehaviorSanitizer: every access out of bounds, every overflow
race    every load and store of a kernel is checked against the synchronisation between its threads

    python tests/emulator/build.py build FLAVOUR          print the library's path
    python tests/emulator/build.py run FLAVOUR -- ARGS    run `python ARGS` with that flavour (san preloads libasan)
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emulator"
CXX = os.environ.get("CXX", "g++")
STABLE_ABI = "0x020a000000000000"  # as in setup.py

SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# How each flavour compiles kernels, the emulator itself, and links.
FLAVOURS: dict[str, dict[str, list[str]]] = {
    "plain": {"kernel": ["-O2", "-ftrivial-auto-var-init=pattern"], "runtime": ["-O2"], "link": []},
    "san": {
        "kernel": ["-O1", "-ftrivial-auto-var-init=pattern", *SANITIZE],
        "runtime": ["-O2", *SANITIZE],
        "link": ["-fsanitize=address,undefined"],
    },
    "race": {"kernel": ["-O1", "-g", "-fsanitize=thread"], "runtime": ["-O2"], "link": []},
}
# No fused multiply-add unless written: results do not depend on the host's processor.
COMMON = [
    *("-std=c++20", "-fPIC", "-DFASTDL_EMULATED", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-psabi"),
    *(f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}", f"-ffile-prefix-map={ROOT}/="),
]


def digest(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def compiler_version() -> str:
    return subprocess.run([CXX, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("building the emulated ops needs torch")
    return Path(spec.origin).parent


def folder_of(flavour: str) -> Path:
    if flavour not in FLAVOURS:
        raise ValueError(f"flavour must be one of {', '.join(FLAVOURS)}, got {flavour!r}")
    return ROOT / "build" / "emulated" / flavour


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the others then find everything done."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def dependencies(depfile: Path) -> list[str]:
    """Return the project's own files that a compilation read; torch and the compiler have versions instead."""
    words = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    own = {os.path.relpath(word, ROOT) for word in words if Path(word).resolve().is_relative_to(ROOT)}
    return sorted(path for path in own if "site-packages" not in path)


def compile_one(source: Path, flags: Sequence[str], folder: Path) -> Path:
    """Compile unless the object of the same flags and the same files is there."""
    name = hashlib.sha256(" ".join([compiler_version_once(), str(source), *flags]).encode()).hexdigest()[:16]
    out = folder / f"{source.parent.name}_{source.stem}_{name}.o"
    record = out.with_suffix(".json")
    if out.exists() and record.exists():
        known = json.loads(record.read_text())
        if all((ROOT / path).exists() and digest(ROOT / path) == value for path, value in known.items()):
            return out
    depfile = out.with_suffix(".d")
    command = [CXX, *flags, "-MMD", "-MF", str(depfile), "-x", "c++", "-c", str(source), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        record.unlink(missing_ok=True)
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    sys.stderr.write(result.stderr)  # warnings
    record.write_text(json.dumps({path: digest(ROOT / path) for path in dependencies(depfile)}))
    return out


_version: list[str] = []


def compiler_version_once() -> str:
    if not _version:
        _version.append(compiler_version())
    return _version[0]


def link(objects: Sequence[Path], flags: Sequence[str], out: Path) -> Path:
    """Link unless it was linked from these very objects; a process that has the old file loaded keeps it."""
    stamp = out.with_suffix(".stamp")
    inputs = [*(f"{o.name} {digest(o)}" for o in objects), *flags]
    key = hashlib.sha256(" ".join(inputs).encode()).hexdigest()
    if out.exists() and stamp.exists() and stamp.read_text() == key:
        return out
    temporary = out.with_name(out.name + ".new")
    subprocess.run([CXX, *map(str, objects), *flags, "-ldl", "-o", str(temporary)], check=True)
    os.replace(temporary, out)
    stamp.write_text(key)
    return out


def compile_all(jobs: Sequence[tuple[Path, list[str]]], folder: Path) -> list[Path]:
    compiler_version_once()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda job: compile_one(job[0], job[1], folder), jobs))


def runtime_jobs(flavour: str) -> list[tuple[Path, list[str]]]:
    race = ("banks.cpp", "bank_passes.cpp", "race.cpp", "race_report.cpp", "tsan.cpp")
    sources = sorted(p for p in EMULATOR.glob("*.cpp") if flavour == "race" or p.name not in race)
    return [(source, [*COMMON, *FLAVOURS[flavour]["runtime"]]) for source in sources]


def kernel_flags(flavour: str) -> list[str]:
    return [*COMMON, *FLAVOURS[flavour]["kernel"]]


def build(flavour: str = "plain") -> str:
    """Return the path of the library with every op's kernels, registered as torch.ops.fastdl_emulated."""
    folder, torch = folder_of(flavour), torch_folder()
    include = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    glue = [*COMMON, "-O1", "-fvisibility=hidden", *include, f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
    jobs = runtime_jobs(flavour)
    jobs += [(source, kernel_flags(flavour)) for source in sorted(ROOT.glob("csrc/*/api*.cu"))]
    jobs += [(source, glue) for source in sorted(ROOT.glob("csrc/*/op*.cpp"))]
    libraries = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    with locked(folder):
        objects = compile_all(jobs, folder)
        flags = ["-shared", "-Wl,--no-as-needed", *FLAVOURS[flavour]["link"], *libraries]
        return str(link(objects, flags, folder / "libfastdl_emulated.so"))


def build_program(flavour: str, name: str, sources: Sequence[Path]) -> str:
    """Return the path of a program made of kernel sources and the emulator alone, without torch."""
    folder = folder_of(flavour)
    with locked(folder):
        objects = compile_all([*runtime_jobs(flavour), *((s, kernel_flags(flavour)) for s in sources)], folder)
        return str(link(objects, ["-rdynamic", "-pthread", *FLAVOURS[flavour]["link"]], folder / name))


def environment(flavour: str) -> dict[str, str]:
    """Return the environment for a Python that loads the flavour's library."""
    env = dict(os.environ, FASTDL_FLAVOUR=flavour)
    if flavour == "san":
        libraries = []
        for name in ("libasan.so", "libubsan.so"):
            found = subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
            libraries.append(os.path.realpath(found.stdout.strip()))
        env["LD_PRELOAD"] = ":".join([*libraries, *filter(None, [env.get("LD_PRELOAD")])])
        # Python and torch never free some memory, and torch's own libraries are no part of the question.
        env["ASAN_OPTIONS"] = "detect_leaks=0:abort_on_error=0:" + env.get("ASAN_OPTIONS", "")
        env["UBSAN_OPTIONS"] = "print_stacktrace=1:" + env.get("UBSAN_OPTIONS", "")
    return env


def main() -> int:
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "build":
        print(build(arguments[1]))
        return 0
    if len(arguments) > 3 and arguments[0] == "run" and arguments[2] == "--":
        build(arguments[1])
        return subprocess.call([sys.executable, *arguments[3:]], env=environment(arguments[1]))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
