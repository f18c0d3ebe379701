"""Stochastic rounding: unbiased, by one seed on all backends, and with no word to a generator once it runs."""

import copy
import io

import pytest
import torch
from test_optim import NAMES, give_gradients, parameters, twins

from fastdl import _library, optim
from fastdl.optim._rounding import round_stochastically


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_unbiased_and_seeded(backend, dtype):
    """Steps of 1/16 of a spacing: nearest rounding would never move, the mean must move by the step."""
    n, steps, spacing = 4096, 32, torch.finfo(dtype).eps
    for sign in (1.0, -1.0):
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            p = torch.full((n,), 1.0 + 8 * spacing, dtype=dtype).mul(sign).requires_grad_()
            ours = optim.SGD([p], lr=spacing / 16, stochastic_rounding=True)
            for _ in range(steps):
                p.grad = torch.full_like(p, sign)
                ours.step()
            runs.append(p.detach().clone())
        moved = (8 * spacing + 1.0 - runs[0].double() * sign).mean() / (steps * spacing / 16)
        deviation = (steps * 15 / 256) ** 0.5 / (steps / 16) / n**0.5
        assert abs(moved - 1) < 5 * deviation
        assert torch.equal(*runs)
        assert runs[0].unique().numel() > 3  # elements round apart from each other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_bits_agree_on_all_backends(backend, dtype):
    """One seed, one result: kernels and formula draw the same bits for parameter and states."""

    def step():
        torch.manual_seed(1)
        params = parameters(dtype)
        params[1].data[0, 0] = 1e-6 if dtype == torch.float16 else torch.inf
        give_gradients(params)
        optimizer = optim.Adam(params, stochastic_rounding=True)
        optimizer.step()
        return params, optimizer

    params, ours = step()
    with _library.use("reference"):
        again, theirs = step()
    differing = sum((a != b).sum().item() for a, b in zip(params, again))
    assert differing <= 2  # where one ulp of torch's square root crosses a threshold
    for p, q in zip(params, again):
        assert (ours.state[p]["exp_avg_sq"] != theirs.state[q]["exp_avg_sq"]).sum() == 0


def test_rounding_hits_only_the_neighbours():
    seed, n = 7, 100_000
    for dtype in (torch.float16, torch.bfloat16):
        for value in (1.0001, -3.14159, 1e-6, 5.9e-8, -1e-9, 60000.0, 0.0):
            rounded = round_stochastically(torch.full((n,), value), dtype, seed).double()
            assert rounded.unique().numel() <= 2
            exact = torch.tensor(value).double()
            gap = rounded.max() - rounded.min()
            assert rounded.min() - 1e-12 <= exact <= rounded.max() + 1e-12 or gap == 0
            assert abs(rounded.mean() - exact) <= 6 * gap * 0.5 / n**0.5 + gap / 2**16 + 1e-12


def rounding(name, params, seed=None):
    options = {"momentum": 0.9} if name == "SGD" else {}
    return getattr(optim, name)(params, lr=0.01, stochastic_rounding=True, rounding_seed=seed, **options)


def all_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_run_continues_with_its_bits(backend, name):
    params = parameters(torch.bfloat16)
    ours = rounding(name, params)
    for _ in range(3):
        give_gradients(params)
        ours.step()
    assert 0 <= ours.param_groups[0]["rounding_seed"] < 2**53
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other = twins(params)
    theirs = rounding(name, other)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    alien = rounding(name, aliens := twins(params), seed=1)
    alien.load_state_dict({**copy.deepcopy(ours.state_dict()), "param_groups": alien.state_dict()["param_groups"]})
    for _ in range(3):
        give_gradients(params, other, aliens)
        for optimizer in (ours, theirs, alien):
            optimizer.step()
    assert all_equal(params, other)
    assert not all_equal(params, aliens)  # another seed: other bits


@pytest.mark.parametrize("name", NAMES)
def test_torchs_optimizers_load_the_states(name):
    params = parameters(torch.bfloat16)
    ours = rounding(name, params)
    give_gradients(params)
    ours.step()
    other = twins(params)
    theirs = getattr(torch.optim, name)(other)
    theirs.load_state_dict(ours.state_dict())
    give_gradients(other)
    theirs.step()
    assert all(p.isfinite().all() for p in other)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_running_step_asks_no_generator(backend, name):
    params = parameters(torch.bfloat16)
    ours = rounding(name, params)
    states = []
    for _ in range(4):
        give_gradients(params)
        before = torch.get_rng_state()
        ours.step()
        states.append(torch.equal(before, torch.get_rng_state()))
    assert states == [False, True, True, True]


def test_bits_are_the_parameters_own(backend):
    """Of its place, its steps and the elements, whoever else has a gradient; the same for no two steps."""
    n, seed = 512, 11
    params = [torch.ones(n, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    ours = optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1e-4, stochastic_rounding=True,
                     rounding_seed=seed)  # fmt: skip
    steps, drawn = [0] * 3, set()
    for present in ((0, 2), (0, 2), (0, 1, 2), (1,), (0, 1, 2), (0, 1, 2)):
        for i, p in enumerate(params):
            p.data.fill_(1)
            p.grad = torch.ones_like(p) if i in present else None
        ours.step()
        for i in present:
            steps[i] += 1
            expected = round_stochastically(torch.full((n,), 1.0 - 1e-4), torch.bfloat16, seed, steps[i], i)
            assert torch.equal(params[i], expected)
            drawn.add(params[i].detach().view(torch.int16).numpy().tobytes())
    assert len(drawn) == sum(steps)


def test_groups_that_round_and_groups_that_do_not_share_a_step(backend):
    """SGD counts the steps of the former alone."""
    params = [torch.ones(n, dtype=torch.bfloat16).requires_grad_() for n in (5, 5000)]
    ours = optim.SGD([{"params": params[:1]}, {"params": params[1:], "stochastic_rounding": True}], lr=1e-4)
    for step in range(1, 4):
        for p in params:
            p.grad = torch.ones_like(p)
        params[1].data.fill_(1)
        ours.step()
        seed = ours.param_groups[1]["rounding_seed"]
        assert (params[0] == 1).all()
        expected = round_stochastically(torch.full((5000,), 1.0 - 1e-4), torch.bfloat16, seed, step, 1)
        assert torch.equal(params[1], expected)
        assert ours.state[params[1]]["step"] == step
    assert ours.param_groups[0]["rounding_seed"] is None
    assert "step" not in ours.state[params[0]]


def test_group_added_later_has_the_seed_of_the_others():
    params = parameters(torch.bfloat16, sizes=((4,), (5,)))
    ours = rounding("Adam", params[:1])
    give_gradients(params)
    ours.step()
    ours.add_param_group({"params": params[1:]})
    ours.step()
    seeds = {group["rounding_seed"] for group in ours.param_groups}
    assert len(seeds) == 1
    assert None not in seeds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bits_do_not_depend_on_where_a_parameter_begins(backend, dtype):
    values, grads = [[torch.randn(n).to(dtype) for n in (5, 1030)] for _ in range(2)]

    def train(offset):
        params = [torch.cat((torch.zeros(offset, dtype=dtype), v))[offset:].requires_grad_() for v in values]
        ours = rounding("Adam", params, seed=3)
        for _ in range(2):
            for p, grad in zip(params, grads):
                p.grad = grad
            ours.step()
        return [*params, *(t for state in ours.state.values() for t in state.values())]

    expected = train(0)
    assert all(all_equal(train(offset), expected) for offset in range(1, 6))
