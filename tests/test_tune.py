"""Measured plans: what is measured, what is kept, and that a choice is followed."""

import json

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import integers

import fastdl
from fastdl import _library, tune


@pytest.fixture
def tuner(library, monkeypatch, tmp_path):
    """Kernels on the CPU, an empty cache folder, and a timer that counts its calls and likes the third way best."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "_met", set())
    library.fastdl_emulator_device(8, 227 << 10, 90)
    calls = []

    def timer(call, device):
        call()
        calls.append(counters(library)[3])
        return abs(len(calls) - 3) + 1.0

    monkeypatch.setattr(tune, "seconds", timer)
    with _library.use("emulated"):
        yield calls


def test_the_fastest_way_is_kept(tuner, library, tmp_path):
    a, b = integers(200, 96, dtype=torch.bfloat16), integers(96, 264, dtype=torch.bfloat16)
    counters(library)
    fastdl.matmul(a, b)
    estimate = counters(library)[3]
    with fastdl.autotune():
        c = fastdl.matmul(a, b)
    counters(library)
    ways = tune.CANDIDATES(a, b, 0).tolist()
    assert tuner[0] == estimate  # the estimate's own way comes first
    assert 3 <= len(tuner) == min(len(ways), tune.MOST)
    assert torch.equal(c.double(), (a.double() @ b.double()).bfloat16().double())
    fastdl.matmul(a, b)  # outside of the scope too
    assert counters(library)[3] == tuner[2]
    (file,) = tmp_path.rglob("*.json")
    content = json.loads(file.read_text())
    assert list(content["plans"].values()) == [ways[2]]
    measured = len(tuner)
    with fastdl.autotune():
        fastdl.matmul(a, b)
    assert len(tuner) == measured  # once


def test_every_way_is_right(tuner):
    """Whatever a timer may choose makes the same product."""
    a, b = integers(200, 130, dtype=torch.bfloat16), integers(130, 135, dtype=torch.bfloat16)
    expected = (a.double() @ b.double()).bfloat16()
    ways = tune.CANDIDATES(a, b, 0).tolist()
    assert len({tuple(way) for way in ways}) == len(ways) > 5
    for way in ways:
        tune.CHOOSE(a, b, 0, way)
        assert torch.equal(fastdl.matmul(a, b), expected), way


def test_a_later_process_reads_the_file(tuner, monkeypatch):
    a, b = integers(200, 64, dtype=torch.float16), integers(64, 72, dtype=torch.float16)
    with fastdl.autotune():
        fastdl.matmul(a, b)
        measured = len(tuner)
        monkeypatch.setattr(tune, "_met", set())
        fastdl.matmul(a, b)
        assert len(tuner) == measured
        fastdl.matmul(a.mT.contiguous().mT, b)  # another layout is another product
        assert len(tuner) > measured


def test_layers_and_gradients_are_met(tuner):
    layer = fastdl.nn.Linear(64, 72, dtype=torch.bfloat16)
    with fastdl.autotune():
        layer(torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert len(tune._met) >= 2  # the layer's product and its input's gradient
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sources": "other", "plans": {}}', '{"sources": 1}'])
def test_a_damaged_file_is_ignored(tuner, content):
    path = tune.cache_file(torch.device("cpu"))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    a = integers(65, 64, dtype=torch.bfloat16)
    with fastdl.autotune(), pytest.warns(UserWarning, match=r"fastdl.autotune: .* is ignored"):
        fastdl.matmul(a, a.mT)
    assert len(tune.load(path)) == 1


def test_a_folder_that_cannot_be_written(tuner, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    a = integers(65, 64, dtype=torch.bfloat16)
    with fastdl.autotune(), pytest.warns(UserWarning, match="cannot be written"):
        fastdl.matmul(a, a.mT)


def test_a_way_that_does_not_exist(tuner):
    a = integers(65, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="gemm_choose: this way is none of gemm_candidates; measure again"):
        tune.CHOOSE(a, a.mT, 0, [0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(RuntimeError, match="a way has 7 numbers, got 2"):
        tune.CHOOSE(a, a.mT, 0, [0, 1])


def test_torchs_products_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fastdl.autotune():
        fastdl.matmul(torch.ones(2, 3), torch.ones(3, 4))
        with _library.use("reference"):
            fastdl.matmul(torch.ones(2, 3), torch.ones(3, 4))
    assert not list(tmp_path.iterdir())
