"""./dev gpu [PART ...]: on a machine with an NVIDIA GPU, build for it, prove and measure; no network, no installs.

Each part has a time limit and leaves a stamp: a part that is done is skipped when the command is typed again, one that
failed says why in a line and lets the next one run. Everything lands in benchmarks/results/<gpu>/<date>/.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
COUNTS = r"\d+ (passed|failed|skipped|deselected|error)"  # pytest's last line


class Failure(Exception):
    """One line that says what was found and what to do."""


class Machine:
    """What torch sees here, and where results go. `rehearse` lets every part run without a GPU, on CPU tensors."""

    def __init__(self, rehearse: bool, results: str | None) -> None:
        import torch

        self.rehearse = rehearse
        if not rehearse and not torch.cuda.is_available():
            seen = "nvidia-smi sees one" if shutil.which("nvidia-smi") else "nvidia-smi is not on the PATH"
            raise Failure(
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU; {seen}. "
                "Use a Python whose torch is a CUDA build (FASTDL_ENV=current PYTHON=... ./dev gpu), or --rehearse"
            )
        major, minor = (9, 0) if rehearse else torch.cuda.get_device_capability()
        self.name = (
            "rehearsal" if rehearse else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        )
        self.arch = f"{major}.{minor}a" if major >= 9 else f"{major}.{minor}"
        self.backend = self.device = "cpu" if rehearse else "cuda"
        default = ROOT / ("build" if rehearse else "benchmarks/results") / self.name / time.strftime("%Y-%m-%d")
        self.folder = Path(results).resolve() if results else default
        self.folder.mkdir(parents=True, exist_ok=True)

    def forget(self, part: str) -> None:
        """Drop what says that the part is done, so that all of it runs again."""
        results = [f".done-{name}" for name in SANITIZERS] if part == "sanitizer" else []
        results += [f"{stem(path)}.json" for path in benchmark_files(part)]
        for name in (f".done-{part}", *results):
            (self.folder / name).unlink(missing_ok=True)

    def run(
        self, command: Sequence[str | Path], limit: float, log: str, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Run to the log file; at the limit interrupt, so that what was measured is saved, then kill the group."""
        path = self.folder / log
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with path.open("w") as file:
            file.write("$ " + " ".join(map(str, command)) + "\n")
            file.flush()
            process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                print(f"  {log}: stopped at its limit of {limit:.0f} s", flush=True)
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return process.returncode, path.read_text(errors="replace")


def tail(text: str, pattern: str) -> str:
    """Return the last line that matches, or the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.search(pattern, line)), lines[-1] if lines else "no output")


def need(module: str, part: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Failure(f"{part} needs the Python package {module}, which {sys.executable} lacks")


def pytest_command(*arguments: str | Path) -> list[str | Path]:
    """pytest with the plug-ins at hand: the project's options name some that may be missing."""
    spread = ["-n", "4"] if "--spread" in arguments and importlib.util.find_spec("xdist") else []
    rest = [a for a in arguments if a != "--spread"]
    return [sys.executable, "-m", "pytest", "-o", "addopts=-ra", "-p", "no:cacheprovider", "-q", *spread, *rest]


def unimportable(folder: Path) -> list[str]:
    """Return --ignore options for test files that import a package which this Python lacks."""
    missing = [
        m
        for m in ("hypothesis", "expecttest", "scipy", "sklearn", "skimage", "rich", "PIL")
        if not importlib.util.find_spec(m)
    ]
    guilty = [
        path
        for path in sorted(folder.glob("test_*.py"))
        if any(re.search(rf"^(import|from) {m}\b", path.read_text(), re.M) for m in missing)
    ]
    if guilty:
        print(f"  without {', '.join(missing)}: leaving out {', '.join(p.name for p in guilty)}", flush=True)
    return [f"--ignore={path}" for path in guilty]


def build(machine: Machine, limit: float) -> str:
    """Compile for this GPU and check that the library holds code for it."""
    for module in ("ninja", "pybind11", "setuptools"):
        need(module, "build")
    if not machine.rehearse and not (shutil.which("nvcc") or os.environ.get("CUDA_HOME")):
        raise Failure(
            "no nvcc on the PATH and no CUDA_HOME: point CUDA_HOME at a CUDA toolkit of torch's major version"
        )
    env = {} if machine.rehearse else {"TORCH_CUDA_ARCH_LIST": machine.arch, "FORCE_CUDA": "1"}
    force = [] if machine.rehearse else ["--force"]
    code, text = machine.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *force], limit, "build.txt", env
    )
    if code:
        raise Failure(
            f"the build failed: {tail(text, r'^fastdl:|error|Error')} (all of it: {machine.folder}/build.txt)"
        )
    code, text = machine.run([sys.executable, "-m", "fastdl.info", "--json"], 120, "info.json")
    if code:
        raise Failure(f"built, but fastdl.info fails: {tail(text, 'Error')}")
    found = json.loads(text.split("\n", 1)[1])
    (machine.folder / "info.json").write_text(json.dumps(found, indent=2) + "\n")
    if "error" in found["library"]:
        raise Failure(f"built, but not loadable: {found['library']['error']}")
    verdicts = [gpu["library_has_code"] for gpu in found["gpus"]]
    if any(not str(v).startswith("yes") for v in verdicts):
        raise Failure(f"code for this GPU: {verdicts}")
    return f"for {found['library']['archs']}"


def conformance(machine: Machine, limit: float) -> str:
    """Compare every instruction's result with the CPU execution's, and record the GPU's answers."""
    script = ROOT / "tests/conformance.py"
    if not script.exists():
        raise Failure("tests/conformance.py is not in this tree")
    where = ["cpu"] if machine.rehearse else ["gpu", "--record"]
    code, text = machine.run([sys.executable, script, *where], limit, "conformance.txt")
    answers = text.splitlines()[1:]
    if code:
        print("\n".join(f"  {line}" for line in answers[-40:]), flush=True)
        raise Failure(f"{len(answers)} lines of differences ({machine.folder}/conformance.txt)")
    return answers[-1] if answers and not machine.rehearse else f"{len(answers)} answers on the CPU"


def tests(machine: Machine, limit: float) -> str:
    """Run the suite on the GPU's backend."""
    need("pytest", "tests")
    select = ["-k", machine.backend, "--junitxml", machine.folder / "tests.xml", "--spread"]
    code, text = machine.run(pytest_command("tests", *unimportable(ROOT / "tests"), *select), limit, "tests.txt")
    summary = tail(text, COUNTS)
    if code:
        raise Failure(f"{summary} ({machine.folder}/tests.txt)")
    return summary.strip("= ")


def sanitizer(machine: Machine, limit: float) -> str:
    """Run one small call of every op, forward and backward, under each of compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if not tool:
        raise Failure("no compute-sanitizer on the PATH (it comes with the CUDA toolkit)")
    usage = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    flag = "--kernel-regex" if "--kernel-regex" in usage else "--kernel-name"
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}
    failed = []
    for name in SANITIZERS:
        if (machine.folder / f".done-{name}").exists():
            continue
        command = [tool, "--tool", name, flag, "kns=fastdl", "--error-exitcode", "99", "--print-limit", "20",
                   sys.executable, ROOT / "benchmarks/touch.py", "--device", machine.device]  # fmt: skip
        code, text = machine.run(command, limit / len(SANITIZERS), f"{name}.txt", env)
        if code:
            failed.append(f"{name}: {tail(text, 'ERROR SUMMARY|RACECHECK SUMMARY|Error|error')}")
        else:
            (machine.folder / f".done-{name}").touch()
    if failed:
        raise Failure("; ".join(failed))
    return f"{', '.join(SANITIZERS)} clean"


def stem(path: Path) -> str:
    return path.stem.removeprefix("bench_")


def benchmark_files(part: str) -> list[Path]:
    """Return the ceilings' file first, then every op's (part "bench") or the rivals' (part "peers")."""
    ceilings, rivals = (ROOT / f"benchmarks/bench_{name}.py" for name in ("copy", "peers"))
    ops = sorted(set((ROOT / "benchmarks").glob("bench_*.py")) - {ceilings, rivals})
    return {"bench": [ceilings, *ops], "peers": [ceilings, rivals]}.get(part, [])


def measure(machine: Machine, limit: float, files: Sequence[Path]) -> str:
    """Run benchmark files one by one, each to a JSON file of its own, as long as time is left."""
    need("pytest", "bench")
    need("pytest_benchmark", "bench")
    end, failed = time.monotonic() + limit, []
    env = {"FASTDL_BENCH_DEVICE": "cpu"} if machine.rehearse else {}
    for path in files:
        result = machine.folder / f"{stem(path)}.json"
        if result.exists():
            continue
        left = end - time.monotonic()
        if left < 10:
            failed.append(f"{stem(path)}: no time left")
            continue
        quick = ["--benchmark-disable"] if machine.rehearse else [f"--benchmark-json={result}"]
        code, text = machine.run(pytest_command(path, *quick), left, f"{stem(path)}.txt", env)
        if code:
            failed.append(f"{stem(path)}: {tail(text, COUNTS)}")
    if failed:
        raise Failure("; ".join(failed))
    return f"{len(files)} files"


def bench(machine: Machine, limit: float) -> str:
    """Measure the ceilings, then every op against its peers."""
    return measure(machine, limit, benchmark_files("bench"))


def peers(machine: Machine, limit: float) -> str:
    """Measure the ceilings and the rivals alone; needs nothing of fastdl to be built."""
    return measure(machine, limit, benchmark_files("peers"))


PARTS: dict[str, tuple[Callable[[Machine, float], str], float]] = {
    "build": (build, 600), "conformance": (conformance, 180), "tests": (tests, 600), "sanitizer": (sanitizer, 600),
    "bench": (bench, 600), "peers": (peers, 540),
}  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev gpu",
        description=(__doc__ or "").replace("./dev gpu [PART ...]: ", ""),
        epilog="parts: "
        + "; ".join(f"{name} ({limit:.0f} s): {part.__doc__}" for name, (part, limit) in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or all (default)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="time limit of each part instead of its own")
    parser.add_argument("--results", metavar="DIR", help="where everything goes")
    parser.add_argument("--again", action="store_true", help="run parts that are done already, too")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: go through the motions on CPU tensors")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in (*PARTS, "all")]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)} and all")
    options.parts = list(PARTS) if not options.parts or "all" in options.parts else options.parts
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        machine = Machine(options.rehearse, options.results)
    except (Failure, ImportError) as error:
        print(f"gpu: {error}")
        return 2
    print(f"gpu: {machine.name}, arch {machine.arch}, results in {machine.folder}", flush=True)
    failures = 0
    for name in options.parts:
        part, limit = PARTS[name]
        stamp = machine.folder / f".done-{name}"
        if options.again:
            machine.forget(name)
        if stamp.exists():
            print(f"{name}: done before ({stamp.read_text().strip()})", flush=True)
            continue
        start = time.monotonic()
        try:
            outcome = part(machine, options.limit or limit)
            stamp.write_text(outcome + "\n")
        except Failure as failure:
            failures += 1
            outcome = f"FAILED: {failure}"
        print(f"{name}: {outcome} [{time.monotonic() - start:.0f} s]", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
