"""The demo, as a user runs it: thresholds, tables and pictures, off a terminal."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastdl.demo import __main__ as demo
from fastdl.demo import course

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def run(*arguments, **options):
    env = {**os.environ, "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "fastdl.demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, **options)


@pytest.mark.slow
def test_demo(tmp_path):
    done = run("--output", tmp_path / "demo.png", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("10 layers, Xavier", "CNN, nine crops averaged", "fastdl", "torch", "The path that ran"):
        assert text in done.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in done.stdout  # plain lines off a terminal


def test_own_dataset(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = generator.integers(0, 60, (60, 12, 12, 3), dtype=np.uint8)
    images[labels == 1, 3:9] += 150
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    done = run("--dataset", tmp_path / "own.npz", "--output", tmp_path / "own.png", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 images to train on, 12 to test" in done.stdout
    assert (tmp_path / "own.png").exists()


def test_a_missing_dataset_is_one_line(tmp_path):
    done = run("--dataset", tmp_path / "absent")
    assert done.returncode == 2
    assert "no file or folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1


GOOD = {"gaussian": 10.0, "xavier": 93.0, "norm": 94.0, "cnn": 98.8, "crops": 98.7, "torch": 98.0}


def test_claims_that_fail_are_named():
    assert demo.check(GOOD) == []
    assert "batch norm must gain" in demo.check({**GOOD, "norm": 49.0})[0]
    assert "98.0 %" in demo.check({**GOOD, "cnn": 97.9, "crops": 98.0})[0]
    assert "nine crops" in demo.check({**GOOD, "crops": 98.5})[0]


class Axes:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("panel", [course.momentum, course.adam, course.initialization, course.regularizers])
def test_course_meets_theory(panel):
    for claim, measured, theory in panel(Axes()):
        expected = float(theory.split()[0])
        assert float(measured) == pytest.approx(expected, rel=0.05 if "σ at" in claim else 0.02, abs=1e-12), claim


@pytest.mark.slow
def test_course_page(tmp_path):
    done = run("--course", "--output", tmp_path / "course.png")
    assert done.returncode == 0, done.stderr
    assert "momentum, factor per step" in done.stdout
    assert (tmp_path / "course.png").read_bytes().startswith(b"\x89PNG")


def test_the_twin_network_has_the_same_parameters():
    task = demo.tasks.digits()
    ours, torchs = demo.tasks.cnn(task), demo.tasks.cnn(task, "torch")
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), torchs.state_dict().values()))
