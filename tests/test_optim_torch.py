"""Optimizers in torch's own company: its test inputs, its errors, its hooks, and where its code takes the step."""

import copy

import pytest
import torch
from test_optim import NAMES, assert_near, give_gradients, pair, parameters
from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs, optim_db

from fastdl import optim

INFOS = [info for info in optim_db if info.optim_cls.__name__ in NAMES]


def configurations(info):
    """All that torch tests it with, plain and with each of foreach, fused and differentiable, for CPU and CUDA."""
    for device in ("cpu", "cuda"):
        for case in _get_optim_inputs_including_global_cliquey_kwargs(device, torch.float32, info):
            if not (case.kwargs.get("differentiable") and case.kwargs.get("capturable")):  # on a GPU alone
                yield case.kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.optim_cls.__name__)
def test_torchs_inputs(backend, info, dtype):
    """optim_db in every configuration."""
    ran = 0
    for options in configurations(info):
        params = parameters(dtype, sizes=((9, 5), (1,), (), (0, 4), (33,)))
        if options.get("differentiable"):  # torch's step in place wants no leaves
            params = [p * 1 for p in params]
        other = [p.detach().clone().requires_grad_() for p in params]
        if options.get("differentiable"):
            other = [q * 1 for q in other]
        ours = getattr(optim, info.optim_cls.__name__)(params, **copy.deepcopy(options))
        plain = {k: v for k, v in options.items() if k not in ("foreach", "fused", "capturable")}
        if dtype == torch.float64 and "lr" in plain:  # a tensor's torch rounds to float32 along the way
            plain["lr"] = float(plain["lr"])
            plain |= {"betas": tuple(map(float, plain["betas"]))} if "betas" in plain else {}
        theirs = info.optim_cls(other, foreach=False, **copy.deepcopy(plain))
        for _ in range(4):
            for p, q in zip(params, other):
                p.grad = torch.randn(p.shape, dtype=dtype)
                q.grad = p.grad.clone()
            ours.step()
            theirs.step()
        assert_near([p.detach() for p in params], [q.detach() for q in other])
        ran += 1
    assert ran >= 30


def test_torchs_errors():
    """optim_db's bad inputs: torch's type and words."""
    ran = 0
    for info in optim_db:
        if info.optim_cls.__name__ not in NAMES or info.optim_error_inputs_func is None:
            continue
        for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            bad = case.optimizer_error_input
            if issubclass(case.error_type, Warning):
                continue
            with pytest.raises(case.error_type, match=case.error_regex):
                getattr(optim, info.optim_cls.__name__)(bad.params, **bad.kwargs).step()
            ran += 1
    assert ran > 10


def test_accepts_every_flag_of_torchs():
    for name in NAMES:
        for flag in ("foreach", "fused", "capturable", "maximize"):
            if (name == "RMSprop" and flag == "fused") or (flag == "capturable" and name in ("SGD", "Adagrad")):
                continue
            params = parameters()
            ours = getattr(optim, name)(params, **{flag: True})
            give_gradients(params)
            ours.step()
            assert all(p.isfinite().all() for p in params)
    with pytest.raises(RuntimeError, match="cannot be `True` together"):
        optim.Adam(parameters(), fused=True, foreach=True)
    with pytest.raises(TypeError, match="should be an iterable"):
        optim.Adam(torch.zeros(3, requires_grad=True))


def test_hooks_closures_and_profiler():
    params = parameters(sizes=((8,),))
    ours = optim.SGD(params, lr=0.1)
    calls = []
    ours.register_step_pre_hook(lambda *a: calls.append("pre"))
    ours.register_step_post_hook(lambda *a: calls.append("post"))

    def closure():
        calls.append("closure")
        ours.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.profiler.profile() as profile:
        assert ours.step(closure).item() > 0
    assert calls == ["pre", "closure", "post"]
    names = [e.key for e in profile.key_averages()]
    assert "Optimizer.step#SGD.step" in names
    assert "fastdl::optim_step_" in names


def test_sparse_gradients_take_torchs_path():
    for name, options in [("SGD", {"momentum": 0.9}), ("Adagrad", {})]:
        models = [torch.nn.Embedding(10, 3, sparse=True) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        dense = parameters(sizes=((5,),))
        ours, theirs, other = pair(name, [models[0].weight, *dense], lr=0.1, **options)
        theirs = getattr(torch.optim, name)([models[1].weight, *other[1:]], lr=0.1, foreach=False, **options)
        for _ in range(3):
            give_gradients(dense, other[1:])
            for model in models:
                model.zero_grad()
                model(torch.tensor([1, 4, 4])).square().sum().backward()
            ours.step()
            theirs.step()
        assert torch.equal(models[0].weight, models[1].weight)
        assert_near(dense, other[1:])
    before = models[0].weight.detach().clone()
    for cls in (optim.Adam, optim.RMSprop):
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            cls([*dense, models[0].weight]).step()
    with pytest.raises(RuntimeError, match="has no l1"):
        optim.SGD([models[0].weight], l1=0.1).step()
    assert torch.equal(before, models[0].weight)


def test_differentiable_takes_torchs_path():
    grad, lr = torch.randn(4, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    p = torch.randn(4, requires_grad=True).clone()
    p.grad = grad
    optim.SGD([p], lr=lr, differentiable=True).step()
    p.sum().backward()
    torch.testing.assert_close(lr.grad, -grad.detach().sum())


def test_averaged_models_are_equal():
    """swa_utils over a model that ours trains, and over one that torch's does."""
    models = [torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    averages = [torch.optim.swa_utils.AveragedModel(m) for m in models]
    optimizers = [library.SGD(m.parameters(), lr=0.1, momentum=0.9) for library, m in zip((optim, torch.optim), models)]
    for _ in range(8):
        x = torch.randn(4, 6)
        for model, average, optimizer in zip(models, averages, optimizers):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
    assert_near(list(averages[0].parameters()), list(averages[1].parameters()))
