"""Beyond torch: L1, clipping, averages, master weights; and GradScaler's contract."""

import copy

import pytest
import torch
from test_optim import NAMES, assert_near, give_gradients, pair, parameters, twins

from fastdl import optim


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maximize", [False, True])
def test_clipping_is_clip_grad_norm_over_all_groups(backend, name, maximize):
    params = parameters()
    other = twins(params)
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01}]
    ours = getattr(optim, name)(groups, max_grad_norm=0.5, maximize=maximize)
    groups = [{"params": other[:2], "lr": 0.1}, {"params": other[2:], "lr": 0.01}]
    theirs = getattr(torch.optim, name)(groups, foreach=False, maximize=maximize)
    for scale in (1.0, 1e-4, 100.0):  # clipped, not clipped, clipped
        give_gradients(params, other)
        for p in params + other:
            p.grad *= scale
        kept = [p.grad.clone() for p in params]
        torch.nn.utils.clip_grad_norm_(other, 0.5, foreach=False)
        ours.step()
        theirs.step()
        assert all(torch.equal(p.grad, k) for p, k in zip(params, kept))
    assert_near(params, other, ulps=256)


def test_clipping_bits_do_not_depend_on_threads():
    results = []
    for threads in (1, 2):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        params = parameters(sizes=((100_000,), (3,), (77_777,)))
        give_gradients(params)
        optim.SGD(params, max_grad_norm=1.0).step()
        results.append(params)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_nan_shows_unless_a_scaler_skips(backend):
    """Without GradScaler a NaN gradient reaches every clipped parameter, as after clip_grad_norm_."""
    params = parameters(sizes=((4,), (4,)))
    give_gradients(params)
    params[1].grad[3] = torch.nan
    optim.SGD(params, max_grad_norm=1.0).step()
    assert params[0].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_l1_subgradient_joins_the_gradient(backend, name):
    params = parameters()
    ours, theirs, other = pair(name, params, maximize=True, lr=0.01)
    ours.param_groups[0]["l1"] = 0.3
    for _ in range(5):
        give_gradients(params, other)
        for p in other:
            p.grad -= 0.3 * p.detach().sign()  # maximize turns the sign
        ours.step()
        theirs.step()
    assert_near(params, other)


@pytest.mark.parametrize("name", NAMES)
def test_l1_proximal_shrinks_after_the_update(backend, name):
    params = parameters()
    ours, theirs, other = pair(name, params, lr=0.01)
    ours.param_groups[0].update(l1=5.0, l1_mode="proximal")
    for _ in range(5):
        give_gradients(params, other)
        ours.step()
        theirs.step()
        for p in other:
            p.data = (p.data.abs() - 0.05).clamp(min=0) * p.data.sign()
    assert_near(params, other)
    assert any((p == 0).any() for p in params)


@pytest.mark.parametrize("name", NAMES)
def test_averages_are_swa_utils(backend, name):
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    ours = getattr(optim, name)(model.parameters(), ema_decay=0.9)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)  # the first call copies
    assert all(torch.equal(a, b) for a, b in zip(ours.ema_parameters(), model.parameters()))
    for k in range(6):
        ours.zero_grad()
        out = model[0](torch.randn(4, 5)) if k == 3 else model(torch.randn(4, 5))  # one layer rests once
        out.square().sum().backward()
        ours.step()
        average.update_parameters(model)
    for a, b in zip(ours.ema_parameters(), average.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    clone = getattr(optim, name)(model.parameters(), ema_decay=0.9)
    clone.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.ema_parameters(), clone.ema_parameters()))
    with pytest.raises(RuntimeError, match="set ema_decay"):
        getattr(optim, name)(model.parameters()).ema_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_master_weights_are_the_float32_run_rounded(backend, name, dtype):
    params = parameters(dtype)
    ours = getattr(optim, name)(params, master_weights=True, ema_decay=0.5)
    full = [p.detach().float().requires_grad_() for p in params]
    theirs = getattr(optim, name)(full, ema_decay=0.5)
    for k in range(20):
        give_gradients(params)
        for f, p in zip(full, params):
            f.grad = p.grad.float()
        ours.step()
        theirs.step()
        if k == 10:
            saved = copy.deepcopy(ours.state_dict())
            ours = getattr(optim, name)(params, master_weights=True, ema_decay=0.5)
            ours.load_state_dict(saved)
            assert {v.dtype for s in ours.state.values() for v in s.values()} == {torch.float32}
    for p, f in zip(params, full):
        assert torch.equal(ours.state[p]["master_param"], f)
        assert torch.equal(p, f.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(ours.ema_parameters(), theirs.ema_parameters()))


class Scaled:
    """A parameter trained under GradScaler, whose gradients overflow where told."""

    def __init__(self, name, **options):
        torch.manual_seed(0)
        self.params = parameters(sizes=((8,), (5, 3)))
        self.optimizer = getattr(optim, name)(self.params, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(self, overflow=False, unscale=False):
        for p in self.params:
            p.grad = torch.randn_like(p) * self.scaler.get_scale()
        if overflow:
            self.params[-1].grad.view(-1)[-1] = torch.nan  # in the last tensor only
        self.scaler.scale(torch.zeros(1))
        if unscale:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(backend, name, unscale):
    options = {"dampening": 0.3, "momentum": 0.9} if name == "SGD" else {}
    run = Scaled(name, max_grad_norm=1.0, ema_decay=0.9, **options)
    other = twins(run.params)
    theirs = getattr(torch.optim, name)(other, foreach=False, **options)
    before = [p.detach().clone() for p in run.params]
    run.step(overflow=True, unscale=unscale)  # the first step overflows: no state may come of it
    assert all(torch.equal(a, b) for a, b in zip(run.params, before))
    assert run.scaler.get_scale() == 512.0
    for _ in range(4):
        scale = run.scaler.get_scale()
        run.step(unscale=unscale)
        for p, q in zip(run.params, other):
            q.grad = p.grad if unscale else p.grad / scale
        other_grads = [q.grad.clone() for q in other]
        torch.nn.utils.clip_grad_norm_(other, 1.0, foreach=False)
        theirs.step()
        for q, g in zip(other, other_grads):
            q.grad = g
    assert_near(run.params, other, ulps=256)


@pytest.mark.parametrize("name", NAMES)
def test_found_inf_of_two_devices_skips(backend, name):
    params = parameters()
    before = [p.detach().clone() for p in params]
    ours = getattr(optim, name)(params, ema_decay=0.9)
    give_gradients(params)
    ours.grad_scale, ours.found_inf = torch.tensor(2.0), torch.tensor(2.0)
    ours.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    assert all(float(s.get("step", 0)) == 0 for s in ours.state.values())


def test_sparse_gradients_are_unscaled_and_kept():
    model = torch.nn.Embedding(5, 2, sparse=True)
    before = model.weight.detach().clone()
    model(torch.tensor([1])).sum().backward()
    grad = model.weight.grad
    ours = optim.SGD(model.parameters(), lr=1.0)
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    ours.step()
    assert torch.equal(before[1] - model.weight[1], torch.full((2,), 0.25))
    assert model.weight.grad is grad


@pytest.mark.parametrize(
    "extra",
    [{"l1": -1.0}, {"l1": float("nan")}, {"l1_mode": "lasso"}, {"max_grad_norm": 0.0}, {"max_grad_norm": -1},
     {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"rounding_seed": -1}, {"rounding_seed": 2**53},
     {"rounding_seed": 0.5}, {"master_weights": True, "stochastic_rounding": True}],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_bad_extras(name, extra):
    with pytest.raises(ValueError, match=f"{next(iter(extra))}"):
        getattr(optim, name)(parameters(), **extra)
    with pytest.raises(TypeError):
        getattr(optim, name)(parameters(), 0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)


def test_groups_must_agree_on_the_norm():
    ours = optim.SGD([{"params": parameters(), "max_grad_norm": 1.0}, {"params": parameters()}], max_grad_norm=2.0)
    with pytest.raises(ValueError, match="one norm is clipped over all groups"):
        ours.step()
