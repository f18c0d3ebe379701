"""Measured plans: what is measured, what is kept, and that a choice is followed."""

import json

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import integers

import fastdl
from fastdl import _library, tune
from fastdl.activation import activate


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


@pytest.fixture
def thirds(tuner, monkeypatch):
    """The timer likes the third way of every product, and keeps the kernels that each way ran."""
    ways = []

    def fastest(a, b, precision, exit, product, cuts, timer):
        ways.append((exit, cuts))
        for cut in cuts:
            tune.CHOOSE(a, b, precision, cut, exit)
            product()
        return cuts[min(2, len(cuts) - 1)]

    monkeypatch.setattr(tune, "_fastest", fastest)
    return ways


@pytest.mark.parametrize(("activation", "exits"), [(None, [0, 0, tune.ROW_SUMS]), ("gelu", [0, 0, tune.FULL])])
def test_all_that_a_layer_runs_is_measured(thirds, activation, exits):
    """Forward with its epilogue, the weight's gradient with the bias's sums, the input's gradient."""
    layer = fastdl.nn.Linear(64, 72, dtype=torch.bfloat16, activation=activation)
    x = torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)
    with fastdl.autotune():
        layer(x).sum().backward()
    assert sorted(exit for exit, _ in thirds) == exits
    expected = activate(torch.nn.functional.linear(x, layer.weight, layer.bias), activation)
    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.02)
    ours = layer.weight.grad, layer.bias.grad, x.grad
    layer.weight.grad = layer.bias.grad = x.grad = None
    expected.sum().backward()
    for mine, theirs in zip(ours, (layer.weight.grad, layer.bias.grad, x.grad)):
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)


def test_all_that_blocks_run_is_measured(thirds):
    """Two layers whose backward sums columns, and a layer whose product leaves moments; statistics move once."""
    mlp = fastdl.nn.MLP(64, 72, dtype=torch.bfloat16)
    with fastdl.autotune():
        mlp(torch.randn(40, 64, dtype=torch.bfloat16)).sum().backward()
    assert {tune.ROW_SUMS, tune.COLUMN_SUMS, tune.FULL} <= {exit for exit, _ in thirds}
    thirds.clear()
    block, twin = (fastdl.nn.LinearBatchNormAct(64, 72, dtype=torch.bfloat16) for _ in range(2))
    twin.load_state_dict(block.state_dict())
    x = torch.randn(40, 64, dtype=torch.bfloat16)
    with fastdl.autotune():
        block(x)
    twin(x)
    assert tune.COLUMN_SUMS in {exit for exit, _ in thirds}
    assert block.norm.num_batches_tracked == twin.norm.num_batches_tracked == 1
    torch.testing.assert_close(block.norm.running_mean, twin.norm.running_mean, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("exit", [0, tune.ROW_SUMS, tune.COLUMN_SUMS, tune.FULL])
def test_a_choice_holds_for_its_kind_alone(tuner, library, exit):
    """Sums and epilogues are other products: each follows its own choice, whatever the others chose."""
    g, w = integers(136, 200, dtype=torch.bfloat16), integers(200, 264, dtype=torch.bfloat16)
    ops = torch.ops.fastdl_emulated
    calls = {
        0: lambda: ops.gemm(g, w),
        tune.ROW_SUMS: lambda: ops.linear_grad_weight(g.mT, w),
        tune.COLUMN_SUMS: lambda: ops.linear_grad_input(g, w, None, None, 0, 0.0, True),
        tune.FULL: lambda: ops.linear_forward(g, w.mT, None, None, None, 1, 0.0, False),
    }

    def kernels(call):
        counters(library)
        call()
        return counters(library)[3]

    before = {kind: kernels(call) for kind, call in calls.items()}
    for way in tune.CANDIDATES(g, w, 0, exit).tolist():
        tune.CHOOSE(g, w, 0, way, exit)
        after = {kind: kernels(call) for kind, call in calls.items()}
        assert all(after[kind] == before[kind] for kind in calls if kind != exit), way
        family, tile_m, tile_n, splits = way[:4]
        assert ("split_sum_kernel" in after[exit]) == (splits > 1 and not way[6])
        if family == 2 and way[4] != 2:  # wgmma, not the transposed one
            assert f", {tile_m}, {tile_n}, " in after[exit]


def test_a_kind_that_does_not_exist(tuner):
    a = integers(65, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="gemm_candidates: exit must be 0 to 7, got 8"):
        tune.CANDIDATES(a, a.mT, 0, 8)


OTHERS = '{"format": 2, "sources": "other", "plans": {}}'
FORMAT_1 = json.dumps({"sources": _library.BUILD["sources"], "plans": {"torch.bfloat16 0 a x b": [0, 64, 64, 1, 0, 1]}})


@pytest.mark.parametrize("content", ["", "{", "[]", OTHERS, '{"format": 2, "sources": 1}', FORMAT_1])
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
