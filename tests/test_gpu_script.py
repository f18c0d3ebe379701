"""./dev gpu, rehearsed: parts, stamps, limits and messages, with stand-ins for what only a GPU machine has."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


@pytest.fixture
def machine(tmp_path):
    return gpu.Machine(rehearse=True, results=str(tmp_path / "results"))


def stand_in(folder, name, script):
    """Put an executable of this name first on the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def parts(monkeypatch, **functions):
    monkeypatch.setattr(gpu, "PARTS", {name: (function, 5.0) for name, function in functions.items()})


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["build"]) == 2
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "sees no GPU" in output
    assert "FASTDL_ENV=current" in output


def test_unknown_part(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["biuld"])
    assert "no part 'biuld'; there are build, conformance" in capsys.readouterr().err


def test_a_failed_part_does_not_stop_the_next_and_done_ones_are_skipped(tmp_path, capsys, monkeypatch):
    calls = []

    def fails(machine, limit):
        calls.append("fails")
        raise gpu.Failure("nothing to build with")

    def works(machine, limit):
        calls.append("works")
        return "fine"

    parts(monkeypatch, build=fails, bench=works)
    arguments = ["--rehearse", "--results", str(tmp_path)]
    assert gpu.main(arguments) == 1
    output = capsys.readouterr().out
    assert "build: FAILED: nothing to build with [0 s]" in output
    assert "bench: fine [0 s]" in output
    gpu.main(arguments)
    assert "bench: done before (fine)" in capsys.readouterr().out
    assert calls == ["fails", "works", "fails"]
    gpu.main([*arguments, "--again", "bench"])
    assert calls[-1] == "works"


def test_limit_interrupts_first_so_that_results_are_saved(machine):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('saved', flush=True), sys.exit(3)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    start = time.monotonic()
    code, text = machine.run([sys.executable, "-c", script], 1.5, "log.txt")
    assert code == 3
    assert text.endswith("ready\nsaved\n")
    assert time.monotonic() - start < 15


def test_arch_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, arch in (((9, 0), "9.0a"), ((8, 6), "8.6"), ((12, 0), "12.0a")):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200 (test)")
        machine = gpu.Machine(rehearse=False, results=str(tmp_path))
        assert (machine.name, machine.arch, machine.backend) == ("nvidia-h200-test", arch, "cuda")


def test_build_failure_shows_the_compilers_line(machine, monkeypatch):
    monkeypatch.setattr(
        machine, "run", lambda *a, **k: (1, "$ x\nfoo\nfastdl: nvcc is CUDA 12, torch is CUDA 13\nbye\n")
    )
    with pytest.raises(gpu.Failure, match="nvcc is CUDA 12, torch is CUDA 13"):
        gpu.build(machine, 10)


def test_missing_packages_and_tools_are_named(machine, monkeypatch):
    with pytest.raises(gpu.Failure, match=r"bench needs the Python package no_such_package, which .* lacks"):
        gpu.need("no_such_package", "bench")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(gpu.Failure, match="no compute-sanitizer on the PATH"):
        gpu.sanitizer(machine, 10)


def test_conformance_shows_every_difference(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(gpu.Failure, match="not in this tree"):
        gpu.conformance(machine, 10)
    script = tmp_path / "tests" / "conformance.py"
    script.parent.mkdir()
    machine.rehearse = False
    script.write_text("import sys\nprint('ldmatrix: 1 here, 2 there')\nprint('wgmma: 3 here, 4 there')\nsys.exit(1)")
    with pytest.raises(gpu.Failure, match="2 lines of differences"):
        gpu.conformance(machine, 10)
    assert "  ldmatrix: 1 here, 2 there\n  wgmma: 3 here, 4 there\n" in capsys.readouterr().out
    script.write_text(
        "import sys\nassert sys.argv[1:] == ['gpu', '--record']\nprint('conformance: 99 all as on the CPU')"
    )
    assert gpu.conformance(machine, 10) == "conformance: 99 all as on the CPU"


def test_sanitizer_resumes_and_reports(machine, path):
    tool = (
        "import os, sys\nname = sys.argv[sys.argv.index('--tool') + 1] if '--tool' in sys.argv else ''\n"
        "if '--help' in sys.argv: sys.exit(print('--kernel-regex'))\n"
        "assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n"
        "print('========= ERROR SUMMARY:', 2 if name == {0!r} else 0, 'errors')\nsys.exit(99 * (name == {0!r}))\n"
    )
    stand_in(path, "compute-sanitizer", tool.format("racecheck"))
    with pytest.raises(gpu.Failure, match=r"^racecheck: ========= ERROR SUMMARY: 2 errors$"):
        gpu.sanitizer(machine, 100)
    stand_in(path, "compute-sanitizer", tool.format("none"))
    assert gpu.sanitizer(machine, 100) == "memcheck, racecheck, initcheck, synccheck clean"


def test_files_that_need_missing_packages_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "test_a.py").write_text("import hypothesis\n")
    (tmp_path / "test_b.py").write_text("import torch\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda m: None if m == "hypothesis" else find(m))
    assert gpu.unimportable(tmp_path) == [f"--ignore={tmp_path / 'test_a.py'}"]


def test_what_the_sanitizers_run_works(machine):
    """Every op, forward and backward, on odd sizes."""
    code, text = machine.run([sys.executable, ROOT / "benchmarks/touch.py", "--device", "cpu"], 120, "touch.txt")
    assert code == 0, text
    assert "AdamW" in text
    assert "batch_norm + relu" in text


def test_measure_runs_files_until_the_time_is_up(machine, monkeypatch):
    done = machine.folder / "copy.json"
    done.touch()
    ran = []
    monkeypatch.setattr(machine, "run", lambda command, *a, **k: (ran.append(str(command)), (0, "1 passed"))[1])
    files = [Path("bench_copy.py"), Path("bench_x.py")]
    assert gpu.measure(machine, 100, files) == "2 files"
    assert len(ran) == 1
    assert "bench_x.py" in ran[0]
    machine.forget("bench")
    assert not done.exists()
    with pytest.raises(gpu.Failure, match="x: no time left"):
        gpu.measure(machine, 5, files)
