"""Optimizers against torch's own: the same values, in every dtype, option and kind of parameter."""

import pytest
import torch
from torch.testing._internal.optests import opcheck

from fastdl import _library, optim

NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"]
OPTIONS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1, "maximize": True}, {"betas": (0.5, 0.6)}],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.3}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.5}, {"centered": True}],
    "Adagrad": [{}, {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "maximize": True}],
}  # fmt: skip
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]


def parameters(dtype=torch.float32, sizes=((64, 8), (7, 3), (1,), (), (0, 4), (513,))):
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in sizes]


def twins(params):
    return [p.detach().clone().requires_grad_() for p in params]


def give_gradients(*lists):
    for same in zip(*lists):
        grad = torch.randn(same[0].shape, dtype=torch.float64)
        for p in same:
            p.grad = grad.to(p.dtype)


def pair(name, params, **options):
    """Return ours, torch's for-loop on the same values, and its parameters."""
    other = twins(params)
    return getattr(optim, name)(params, **options), getattr(torch.optim, name)(other, foreach=False, **options), other


def assert_near(ours, theirs, ulps=64):
    """Near: steps of the dtype at the largest value. torch's sqrt on CPU (MKL) misses one result in five by one."""
    for a, b in zip(ours, theirs, strict=True):
        tiny = torch.finfo(a.real.dtype).eps * ulps * max(1.0, b.abs().max().item() if b.numel() else 1.0)
        torch.testing.assert_close(a, b, rtol=0, atol=tiny)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fifty_steps_as_torch(backend, name, options, dtype):
    params = parameters(dtype)
    ours, theirs, other = pair(name, params, **options)
    for _ in range(50):
        give_gradients(params, other)
        ours.step()
        theirs.step()
    assert_near(params, other)


@pytest.mark.parametrize("options", OPTIONS["SGD"], ids=str)
def test_sgd_bits_are_torchs(options):
    """No square root, so every bit: vector bodies here, since torch's scalar tails do without fused multiply-adds."""
    params = parameters(sizes=((64, 64), (4096,), (128, 3, 2)))
    ours, theirs, other = pair("SGD", params, **options)
    for _ in range(20):
        give_gradients(params, other)
        ours.step()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(params, other))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_further_from_the_truth_than_torch(backend, name, options, dtype):
    params, exact = parameters(dtype), None
    ours, theirs, other = pair(name, params, **options)
    exact = [p.detach().double().requires_grad_() for p in params]
    truth = getattr(torch.optim, name)(exact, foreach=False, **options)
    for _ in range(5):
        give_gradients(params, other, exact)
        for q, p in zip(exact, params):
            q.grad = p.grad.double()
        for optimizer in (ours, theirs, truth):
            optimizer.step()
    for a, b, t in zip(params, other, exact):
        if a.numel():
            err, budget = (a.double() - t).abs().max(), 2 * (b.double() - t).abs().max()
            budget = budget.nan_to_num(nan=0.01)  # torch's float16 steps divide 0 by 0 where eps rounds to 0
            assert err <= budget + 2 * torch.finfo(dtype).eps * t.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_lr_may_be_a_tensor(backend, name):
    params = parameters()
    lr = torch.tensor(0.05)
    ours, theirs, other = pair(name, params, lr=0.05)
    ours.param_groups[0]["lr"] = lr
    for k in range(5):
        give_gradients(params, other)
        lr.fill_(0.05 / (k + 1))
        theirs.param_groups[0]["lr"] = lr.item()
        ours.step()
        theirs.step()
    assert_near(params, other)


@pytest.mark.parametrize("name", NAMES)
def test_complex_parameters(backend, name):
    params = [torch.randn(7, 3, dtype=torch.complex64).requires_grad_()]
    ours, theirs, other = pair(name, params, weight_decay=0.1)
    for _ in range(5):
        params[0].grad = torch.randn(7, 3, dtype=torch.complex64)
        other[0].grad = params[0].grad.clone()
        ours.step()
        theirs.step()
    assert_near(params, other)


def test_swapped_data_and_reused_addresses():
    params = parameters(sizes=((64,),))
    ours, theirs, other = pair("Adam", params)
    for _ in range(4):
        give_gradients(params, other)
        for p in (params[0], other[0]):
            p.data = p.data.clone()
        ours.step()
        theirs.step()
    assert_near(params, other)


def test_opcheck():
    """Schema (what it says it writes), fake kernel, and tracing of the op itself."""
    p, g, m, v = (torch.rand(5, 3) for _ in range(4))
    row = dict.fromkeys(optim._step.OPTIONS, 0.0) | {"lr": 0.1, "lr_index": -1.0, "beta1": 0.9, "beta2": 0.9}
    row |= {"ema_decay": -1.0, "eps": 1e-8}
    opcheck(
        torch.ops.fastdl.optim_step_.default,
        (1, [p], [g], [torch.tensor(0.0), m, v], [], [1], list(row.values()), None, None, 1.0, None, [], []),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert "CPU" in _library._ops["optim_step_"].implementations()
