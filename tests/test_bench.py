"""The measuring protocol, and the tables and plots made of its results."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdl import bench

pytestmark = pytest.mark.xdist_group("bench")
ROOT = Path(__file__).parent.parent
KEYS = {
    "implementation", "op", "shape", "dtype", "layout", "direction", "device_us", "host_us", "bytes", "flops",
    "fraction_of_bound", "launches", "peak_mib",
}  # fmt: skip
EXAMPLE = """
import time, torch
from protocol import call, cases, compiled, gradients, randn

def test_example(compare):
    def broken(x):
        raise RuntimeError("no kernel\\nfor this")
    for direction, wrap in (("forward", call), ("backward", gradients)):
        compare(op="scale", shape=(3, 5), dtype=torch.float32, operands=lambda: [randn(3, 5)], direction=direction,
                arms={"fastdl": wrap(lambda x: x * 2), "slow": wrap(lambda x: (time.sleep(0.002), x * 2)[1]),
                      "broken": wrap(broken), "compile": wrap(compiled(lambda x: x * 2))}, bytes=120, flops=15)

def test_ours_must_run(compare):
    compare(op="scale", shape=(1,), dtype=torch.float32, operands=lambda: [randn(1)],
            arms={"fastdl": call(lambda x: x.no_such_method())})
"""


@pytest.fixture
def protocol(monkeypatch):
    monkeypatch.setenv("FASTDL_BENCH_DEVICE", "cpu")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("protocol")
    for name in ("protocol", "machine"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A real run of the example above, through pytest and the project's conftest."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("protocol.py", "machine.py", "conftest.py"):
        (folder / name).write_text((ROOT / "benchmarks" / name).read_text())
    (folder / "bench_example.py").write_text(EXAMPLE)
    path = folder / "results.json"
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", folder, "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, folder / "bench_example.py", f"--benchmark-json={path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTDL_BENCH_DEVICE": "cpu"}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_XDIST")}  # or nothing is timed
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "no_such_method" in done.stdout
    return path


def test_rows_have_exactly_the_published_keys(results):
    content = json.loads(results.read_text())
    rows = content["benchmarks"]
    assert [(r["extra_info"]["implementation"], r["extra_info"]["direction"]) for r in rows] == [
        ("fastdl", "forward"), ("slow", "forward"), ("fastdl", "backward"), ("slow", "backward"),
    ]  # fmt: skip
    assert all(set(row["extra_info"]) == KEYS for row in rows)
    assert len({row["fullname"] for row in rows}) == len(rows)
    assert all(row["stats"]["rounds"] >= 7 for row in rows)
    assert rows[0]["conditions"]["failed"] == {"broken": "RuntimeError: no kernel"}
    assert rows[0]["conditions"]["cache"] == "warm"  # 3 x 5 elements never fill a cache
    assert content["machine_info"]["bounds"]["copy_bytes_per_second"] > 1e8
    assert content["machine_info"]["bounds"]["matrix_flops_per_second"]["float32"] > 1e8
    assert content["machine_info"]["torch"] == torch.__version__
    assert "node" not in content["machine_info"]  # no host names in committed files
    assert len(content["commit_info"]["id"]) >= 7


def test_times_are_those_of_the_calls(results):
    rows = {r["extra_info"]["direction"] + " " + r["extra_info"]["implementation"]: r["extra_info"]
            for r in json.loads(results.read_text())["benchmarks"]}  # fmt: skip
    assert 2000 < rows["forward slow"]["device_us"] < 200_000
    assert rows["forward fastdl"]["device_us"] < rows["forward slow"]["device_us"] / 4
    assert rows["backward slow"]["device_us"] < 1000  # what an arm does before it returns its call is not timed


def test_both_arms_get_the_same_operands_in_alternating_order(protocol):
    seen, sets = [], [[object()] for _ in range(3)]
    arms = [protocol.Arm(name, lambda x, name=name: lambda: seen.append((name, x)), sets) for name in "AB"]
    assert {id(x) for name, x in seen if name == "A"} == {id(x) for name, x in seen if name == "B"}
    for arm in arms:
        arm.repeats = 1
    seen.clear()
    protocol._measure(arms)
    assert "".join(name for name, _ in seen) == "ABBA" * (protocol.ROUNDS // 2)
    assert [x for name, x in seen if name == "A"][:3] == [x for name, x in seen if name == "B"][:3]
    assert len({id(x) for name, x in seen if name == "A"}) == 3  # the sets rotate


def test_rounds_with_moving_clocks_are_taken_again(protocol, monkeypatch):
    speeds = iter([1980, 1500, *[1980] * 100])

    class Clocks:
        fast = True

        def read(self):
            return {"sm_mhz": next(speeds), "power_w": 600.0, "throttle": ["power cap"]}

    monkeypatch.setattr(protocol, "Clocks", Clocks)
    arms = [protocol.Arm(name, lambda: lambda: None, [[]]) for name in "AB"]
    discarded, clocks = protocol._measure(arms)
    assert discarded == 1
    assert len(arms[0].device) == len(arms[1].device) == protocol.ROUNDS
    assert clocks["sm_mhz"] == [1980, 1980]
    assert clocks["throttle"] == ["power cap"]


def test_nvidia_smi_is_read_when_nvml_is_missing(protocol, monkeypatch, tmp_path):
    import machine

    clocks = machine.Clocks()
    assert clocks.read() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980, 612.50, 61, 0x0000000000000004'\n")
    program.chmod(0o755)
    clocks._smi, clocks._uuid = str(program), "GPU-0"
    assert clocks.read() == {"sm_mhz": 1980, "power_w": 612.5, "temperature_c": 61, "throttle": ["power cap"]}
    program.write_text("#!/bin/sh\necho '[N/A], [N/A]'\n")
    assert clocks.read() == {}


def test_bound_is_the_larger_of_memory_and_arithmetic(protocol, monkeypatch):
    import machine

    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 100.0)
    monkeypatch.setattr(machine, "matrix_rate", lambda dtype: 10.0)
    assert machine.bound(200, 0, torch.float32) == 2
    assert machine.bound(200, 50, torch.float32) == 5


# ------------------------------------------------------------------------------------------------- tables and plots


def entry(op, shape, implementation, us, iqr=0.1, flops=0, **info):
    nbytes = 8 * torch.Size(shape).numel()
    extra = {
        "implementation": implementation, "op": op, "shape": list(shape), "dtype": "float32", "layout": "contiguous",
        "direction": "forward", "device_us": us, "host_us": us, "bytes": nbytes, "flops": flops,
        "fraction_of_bound": 0.5, "launches": None, "peak_mib": None, **info,
    }  # fmt: skip
    group = f"{op} forward {'x'.join(map(str, shape))} {extra['dtype']} {extra['layout']}"
    return {"group": group, "extra_info": extra, "stats": {"iqr": iqr * 1e-6}, "conditions": {"cache": "cold"}}


def write(path, entries, datetime="2026-01-02T00:00:00", gpu="NVIDIA H200"):
    info = {
        "gpus": [{"name": gpu}] if gpu else [], "cpu": "Some CPU @ 3 GHz", "threads": 2, "torch": "2.13.0",
        "driver": "580",        "torch_cuda": "13.0", "load": [0.5],
        "bounds": {"copy_bytes_per_second": 4e12, "matrix_flops_per_second": {}},
    }  # fmt: skip
    content = {"machine_info": info, "commit_info": {"id": "abcdef0123", "dirty": False}, "datetime": datetime}
    path.write_text(json.dumps({**content, "benchmarks": entries}))


@pytest.fixture
def folder(tmp_path):
    sizes = [2**k for k in (16, 20, 24)]
    entries = [
        entry("copy", (n,), name, us * n / 2**16) for n in sizes for name, us in (("fastdl", 2.0), ("torch", 3.0))
    ]
    entries += [entry("copy", (7,), "fastdl", 5.0, iqr=2), entry("copy", (7,), "torch", 4.5)]
    entries += [entry("mm", (8, 8), "fastdl", 4.0, flops=9), entry("mm", (8, 8), "torch", 2.0, flops=9)]
    entries += [entry("mm", (9, 9), "torch", 2.0, flops=9), {**entry("copy", (7,), "torch", 9.0), "group": "x host"}]
    write(tmp_path / "a.json", entries)
    return tmp_path


def test_ratio_is_to_the_best_peer_and_below_the_spread_it_is_level(folder):
    cases = {c.label + c.info["op"]: c for c in bench.load([folder])}
    assert cases["65536 float32copy"].ratio == 1.5
    assert not cases["65536 float32copy"].tied
    assert cases["7 float32copy"].tied
    assert cases["8×8 float32mm"].ratio == 0.5
    assert cases["9×9 float32mm"].ratio is None


def test_the_newest_run_counts(folder):
    write(folder / "older.json", [entry("mm", (8, 8), "fastdl", 1.0, flops=9)], datetime="2025-01-01T00:00:00")
    write(folder / "newer.json", [entry("copy", (7,), "fastdl", 1.0)], datetime="2027-01-01T00:00:00")
    cases = {c.label: c for c in bench.load([folder])}
    assert cases["8×8 float32"].rows["fastdl"].us == 4.0
    assert set(cases["7 float32"].rows) == {"fastdl"}  # runs are not mixed within a case


def test_summary_counts_losses(folder):
    text = bench.summary(bench.load([folder]))
    assert "**nvidia-h200**: NVIDIA H200, driver 580, CUDA 13.0, torch 2.13.0, commit abcdef0" in text
    assert "| copy, forward | 1.32× | 0.90–1.50× | 3 / 1 / 0 | 0.50 |" in text
    assert "| mm, forward | 0.50× | 0.50–0.50× | 0 / 0 / 1 | 0.50 |" in text


def test_tables_show_every_case(folder):
    text = bench.tables(bench.load([folder]))
    assert "| 8×8 float32 | 4 µs | 2 µs | 0.50× | 0.50 |" in text
    assert "| 9×9 float32 | – | 2 µs | – | 0.50 |" in text
    assert "| 7 float32 | 5 µs | 4.5 µs | 0.90× (level) | 0.50 |" in text


def test_readme_is_rewritten_between_its_markers_and_checked(folder, tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", folder)
    assert bench.main(["table", "--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert "old" in page.read_text()
    assert bench.main(["table", "--readme"]) == 0
    assert "| copy, forward |" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("<!-- /results -->\nafter\n")
    assert bench.main(["table", "--check"]) == 0


def test_plots(folder, tmp_path, capsys):
    assert bench.main(["plot", str(folder), "-o", str(tmp_path / "out")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == [
        "nvidia-h200/bandwidth.png", "nvidia-h200/speedup.png",
    ]  # fmt: skip
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in written)


def test_bad_paths_and_arguments(capsys):
    assert bench.main(["table", "/nowhere"]) == 2
    assert "no such results: /nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["table", "--nonsense"])


def test_machine_names_are_folder_names():
    assert bench.machine_name({"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}) == "nvidia-h100-80gb-hbm3"
    assert bench.machine_name({"gpus": [], "cpu": "AMD EPYC 9654 (96C)"}) == "cpu-amd-epyc-9654-96c"


def test_committed_results_have_the_published_keys():
    for path in (ROOT / "benchmarks/results").rglob("*.json"):
        content = json.loads(path.read_text())
        for row in content.get("benchmarks", []):
            assert set(row["extra_info"]) == KEYS, path


def test_a_closed_pipe_ends_quietly(folder):
    command = f"{sys.executable} -m fastdl.bench table {folder} | head -n 1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("# ")
    assert done.stderr == ""
