"""Optimizers against torch's own: same inputs, state dicts, hooks, schedulers, errors."""

import copy
import pickle

import pytest
import torch
from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs, optim_db
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


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_both_ways(name):
    for options in OPTIONS[name]:
        params = parameters()
        ours, theirs, other = pair(name, params, **options)
        for _ in range(3):
            give_gradients(params, other)
            ours.step()
            theirs.step()
        assert {k: sorted(v) for k, v in ours.state_dict()["state"].items()} == {
            k: sorted(v) for k, v in theirs.state_dict()["state"].items()
        }
        ours2, theirs2, other2 = pair(name, twins(params), lr=123.0)
        params2 = ours2.param_groups[0]["params"]
        ours2.load_state_dict(copy.deepcopy(theirs.state_dict()))
        theirs2.load_state_dict(copy.deepcopy(ours.state_dict()))
        for targets, sources in ((params2, other), (other2, params)):
            for target, source in zip(targets, sources):
                target.data.copy_(source.data)
        for _ in range(20):
            give_gradients(params, other, params2, other2)
            for optimizer in (ours, theirs, ours2, theirs2):
                optimizer.step()
        assert_near(params2, other)
        assert_near(other2, params)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    params = parameters()
    ours = getattr(optim, name)(params, ema_decay=0.9, l1=0.1)
    give_gradients(params)
    ours.step()
    for duplicate in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        clone = duplicate(ours)
        assert repr(clone) == repr(ours)
        assert "l1: 0.1" in repr(clone)
        members = clone.param_groups[0]["params"]
        give_gradients(params, members)
        ours.step()
        clone.step()
        assert all(torch.equal(a, b) for a, b in zip(params, members))
    assert isinstance(ours, getattr(torch.optim, name))


def test_options_of_groups_are_read_at_every_step():
    params = parameters(sizes=((33,), (5, 5), (9,)))
    other = twins(params)

    def groups(p):
        return [{"params": p[:1], "lr": 0.1}, {"params": p[1:2], "weight_decay": 0.3, "amsgrad": True}]

    ours, theirs = optim.Adam(groups(params)), torch.optim.Adam(groups(other), foreach=False)
    for k in range(12):
        if k == 4:
            ours.add_param_group({"params": params[2:], "betas": (0.5, 0.5)})
            theirs.add_param_group({"params": other[2:], "betas": (0.5, 0.5)})
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] *= 0.9
        give_gradients(params, other)
        if k % 3 == 1:  # a frozen or unused parameter, and one whose first gradient comes late
            params[1].grad = other[1].grad = None
        ours.step()
        theirs.step()
    assert_near(params, other)
    with pytest.raises(ValueError, match="Invalid l1 value: -1"):
        ours.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "l1": -1})


S = torch.optim.lr_scheduler
SCHEDULERS = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda k: 0.95),
    "StepLR": lambda o: S.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [3, 7], 0.3),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: S.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.3, total_steps=20),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, 0.9)]),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.ConstantLR(o), S.ExponentialLR(o, 0.9)], [4]),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.2, 5),
}


def test_schedulers_are_all_that_torch_has():
    abstract = {"LRScheduler", "_LRScheduler"}
    assert set(S.__all__) - abstract <= set(SCHEDULERS) | {"EPOCH_DEPRECATION_WARNING"}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_torchs_schedulers_drive_it(backend, name, schedule):
    params = parameters(sizes=((33,), (4, 4)))
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs, other = pair(name, params, lr=0.05, **options)
    drivers = [schedule(ours), schedule(theirs)]
    for _ in range(12):
        give_gradients(params, other)
        ours.step()
        theirs.step()
        for d in drivers:
            d.step(1.0) if isinstance(d, S.ReduceLROnPlateau) else d.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert_near(params, other)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_raises_has_changed_nothing(name):
    params = parameters(sizes=((8,), (3, 3)))
    ours = getattr(optim, name)(params, ema_decay=0.9)
    for started in (False, True):
        if started:
            give_gradients(params)
            ours.step()
        give_gradients(params)
        params[1].data, good = params[1].data[:2], params[1].data  # the gradient no longer fits
        values = copy.deepcopy([p.detach() for p in params])
        state = copy.deepcopy(ours.state_dict()["state"])
        with pytest.raises(RuntimeError, match="one shape"):
            ours.step()
        params[1].data = good
        assert all(torch.equal(p[: len(v)], v) for p, v in zip(params, values))
        torch.testing.assert_close(ours.state_dict()["state"], state, rtol=0, atol=0)


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


def test_saved_tensors_notice_the_step():
    p = torch.randn(3, requires_grad=True)
    loss = p.square().sum()
    p.grad = torch.ones(3)
    version = p._version
    optim.SGD([p], lr=0.1).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


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
