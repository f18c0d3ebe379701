"""The report tells the truth, fits JSON, and never raises."""

import json
import subprocess
import sys

import pytest
import torch

from fastdl import info


def test_report_fits_json_and_names_this_machine():
    report = json.loads(json.dumps(info.report()))
    assert report["torch"] == torch.__version__
    assert report["library"]["torch_abi"] == "2.10"
    assert report["cores"] >= 1
    assert report["memory_gib"] > 0
    assert {"dropout", "linear", "AdamW", "BatchTransform", "batch_norm + relu"} <= set(report["ops"])
    assert not [path for path in report["ops"].values() if "does not run" in path]
    (subjects,) = report["plans"].values()
    for layout in ("contiguous", "channels_last"):
        plans = subjects.pop(f"Batch norm of {layout} bfloat16 images")
        assert all(plan.startswith("forward ") and "; backward " in plan for plan in plans.values())
        assert len(plans) >= 6
    for kind in ("bfloat16", "float32", 'float32, "high" (tf32)'):
        plans = subjects.pop(f"Products of {kind}")
        assert all(", tiles of " in plan for plan in plans.values())
        assert len(plans) >= 6
    assert subjects == {}


def test_command_prints_text_and_json():
    command = [sys.executable, "-m", "fastdl.info"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"fastdl      {info.report(ops=False)['fastdl']}" in text
    assert "tensors here:" in text
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["ops"]


@pytest.mark.parametrize(
    ("archs", "capability", "answer"),
    [
        ("8.0+PTX,9.0a", (9, 0), "yes: built for"),
        ("8.0+PTX,9.0a", (8, 6), "yes: built for"),
        ("8.0+PTX,9.0a", (10, 0), "yes, compiled by the driver"),
        ("9.0a", (10, 0), "no: built for 9.0a, you have 10.0; rebuild with TORCH_CUDA_ARCH_LIST=10.0"),
        ("9.0a+PTX", (12, 0), "no"),
        ("8.6", (8, 0), "no"),
        ("8.0", (7, 5), "no"),
        ("9.0", (9, 0), "yes"),
        (None, (9, 0), "no: built without CUDA, you have 9.0"),
    ],
)
def test_arch_check(archs, capability, answer):
    assert info._arch_check({"archs": archs}, capability).startswith(answer)


def test_a_gpu_without_code_is_told(monkeypatch):
    gpu = {"name": "GPU", "compute_capability": "12.0", "multiprocessors": 1, "memory_gib": 1.0, "l2_mib": 1.0}
    monkeypatch.setattr(info, "_gpus", lambda: [dict(gpu)])
    monkeypatch.setattr(info, "_library", lambda: {"cuda": "13.0", "archs": "9.0a", "compiler": "g", "torch_abi": "2"})
    report = info.report(ops=False)
    assert "built for 9.0a, you have 12.0" in report["gpus"][0]["library_has_code"]
    assert "rebuild with TORCH_CUDA_ARCH_LIST=12.0" in info._text(report)


def test_nothing_raises(monkeypatch):
    """Every probe fails, and the report still comes."""

    def broken(*_):
        raise OSError("broken")

    for probe in ("_cpu_model", "_memory_gib", "_driver", "_gpus", "_ops"):
        monkeypatch.setattr(info, probe, broken)
    report = info.report()
    assert report["cpu"] is None
    assert report["gpus"] == []
    assert info._text(report)


def test_library_that_cannot_be_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastdl._library", None)
    report = info.report()
    assert "error" in report["library"]
    assert report["ops"] == {}
    assert "not loaded" in info._text(report)


def test_path_names_the_reference_when_nothing_is_compiled(monkeypatch):
    from fastdl import _library

    monkeypatch.setattr(_library.Op, "implementations", lambda self: [])
    assert "reference formula" in info.report()["ops"]["dropout"]
