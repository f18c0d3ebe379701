"""Initialization: the distribution asked for, the same values everywhere, torch's errors."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from fastdl import init

SCHEMES = {
    "uniform": ((-2.0, 3.0), stats.uniform(-2, 5)),
    "normal": ((1.0, 2.0), stats.norm(1, 2)),
    "trunc_normal": ((0.0, 1.0, -2.0, 1.0), stats.truncnorm(-2, 1)),
    "xavier_uniform": ((), stats.uniform(-math.sqrt(6 / 700), 2 * math.sqrt(6 / 700))),
    "xavier_normal": ((), stats.norm(0, math.sqrt(2 / 700))),
    "kaiming_uniform": ((), stats.uniform(-math.sqrt(6 / 300), 2 * math.sqrt(6 / 300))),
    "kaiming_normal": ((), stats.norm(0, math.sqrt(2 / 300))),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_distribution(scheme, backend):
    backend.requires("init_")
    arguments, expected = SCHEMES[scheme]
    w = getattr(init, f"{scheme}_")(torch.empty(400, 300, device=backend.device), *arguments, seed=3)
    assert stats.kstest(w.flatten().cpu().double().numpy(), expected.cdf).pvalue > 1e-3
    assert w.mean().item() == pytest.approx(expected.mean(), abs=5 * expected.std() / math.sqrt(w.numel()))
    assert w.std().item() == pytest.approx(expected.std(), rel=0.02)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_backends_agree_bit_for_bit(scheme, dtype, backend):
    from fastdl import _library

    backend.requires("init_")
    arguments, fill = SCHEMES[scheme][0], getattr(init, f"{scheme}_")
    w = fill(torch.empty(37, 53, dtype=dtype, device=backend.device), *arguments, seed=5, name="w")
    with _library.use("reference"):
        expected = fill(torch.empty(37, 53, dtype=dtype), *arguments, seed=5, name="w")
    assert torch.equal(w.cpu(), expected)


def test_a_value_depends_on_seed_name_and_global_index_alone():
    whole = init.normal_(torch.empty(12, 10), seed=1, name="a.weight")
    part = init.normal_(torch.empty(5, 4), seed=1, name="a.weight", offset=(3, 2), global_shape=(12, 10))
    assert torch.equal(part, whole[3:8, 2:6])
    flat = init.normal_(torch.empty(7), seed=1, name="a.weight", offset=13)
    assert torch.equal(flat, whole.flatten()[13:20])
    strided = init.normal_(torch.empty(10, 12).t(), seed=1, name="a.weight")
    assert torch.equal(strided, whole)
    assert not torch.equal(init.normal_(torch.empty(12, 10), seed=1, name="b.weight"), whole)
    assert not torch.equal(init.normal_(torch.empty(12, 10), seed=2, name="a.weight"), whole)


def test_manual_seed_rules():
    torch.manual_seed(7)
    a = init.xavier_uniform_(torch.empty(4, 4))
    b = init.xavier_uniform_(torch.empty(4, 4))
    torch.manual_seed(7)
    assert torch.equal(init.xavier_uniform_(torch.empty(4, 4)), a)
    assert not torch.equal(a, b)


def test_only_the_view_is_written():
    memory = torch.full((6, 9), -7.0)
    init.uniform_(memory[1:5, 2:8:2], seed=0)
    mask = torch.zeros_like(memory, dtype=torch.bool)
    mask[1:5, 2:8:2] = True
    assert (memory[~mask] == -7).all()
    assert (memory[mask] >= 0).all()


def test_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    assert init.initialize(model, "kaiming_normal", seed=1, nonlinearity="relu") is model
    expected = init.kaiming_normal_(torch.empty(8, 3, 3, 3), nonlinearity="relu", seed=1, name="0.weight")
    assert torch.equal(model[0].weight, expected)
    assert (model[1].weight == 1).all()
    assert all((m.bias == 0).all() for m in (model[0], model[1], model[3]))


def test_version_counter_moves():
    w = torch.zeros(3)
    version = w._version
    init.normal_(w)
    assert w._version > version


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: init.uniform_(torch.empty(3), 2, 1), RuntimeError, "uniform_ expects to return a"),
    (lambda: init.normal_(torch.empty(3), 0, -1), RuntimeError, "normal expects std >= 0.0"),
    (lambda: init.xavier_uniform_(torch.empty(3)), ValueError, "Fan in and fan out can not be computed"),
    (lambda: init.kaiming_normal_(torch.empty(3, 3), mode="fan"), ValueError, "Mode fan not supported"),
    (lambda: init.normal_(torch.empty(3, dtype=torch.int64)), NotImplementedError, "not implemented for"),
    (lambda: init.normal_(torch.empty(1).expand(3)), RuntimeError, "more than one element of the written-to tensor"),
    (lambda: init.initialize(nn.Linear(2, 2), "glorot"), ValueError, "scheme must be one of"),
    (lambda: init.normal_(torch.empty(3), sed=1), TypeError, "unexpected keyword argument 'sed'"),
    (lambda: init.normal_(torch.empty(3), offset=(1,)), ValueError, "needs global_shape"),
    (lambda: init.normal_(torch.empty(3), offset=(2,), global_shape=(4,)), ValueError, "reaches outside"),
])  # fmt: skip
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_failed_model_initialization_writes_nothing():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    before = model[0].weight.clone()
    with pytest.raises(NotImplementedError):
        init.initialize(model, "normal")
    assert torch.equal(model[0].weight, before)


def test_fans_and_extremes():
    assert init.calculate_gain("relu") == nn.init.calculate_gain("relu")
    assert init.normal_(torch.empty(0, 3)).shape == (0, 3)
    w = init.trunc_normal_(torch.empty(100_000), 0, 1, -6, -3, seed=0)
    assert -6 <= w.min() <= w.max() <= -3
    assert init.normal_(torch.empty(1_000_000), seed=0).abs().max() < 6.4


def test_internals_do_not_show():
    assert dir(init) == sorted(init.__all__)
    assert all(name in dir(torch.nn.init) for name in init.__all__ if name not in ("Stream", "initialize"))
    assert {"Fill", "Rule", "key_of", "place", "run"}.isdisjoint(vars(init))
