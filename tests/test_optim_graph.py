"""CUDA graphs of a step, captured on the emulated device: what a replay reads, and when a step cannot be captured."""

from contextlib import contextmanager

import pytest
import torch
from test_optim import assert_near, give_gradients, parameters, twins
from test_optim_device import HOPPER, MANY, OLD, ROUNDING, start, start_rounding
from test_optim_device import device as device

from fastdl import optim


@contextmanager
def capture(device):
    device.library.fastdl_emulator_capture(1)
    try:
        yield
    finally:
        device.library.fastdl_emulator_capture(0)


@pytest.mark.parametrize("capability", [OLD, HOPPER])
def test_a_graph_reads_what_was_captured(device, capability):
    """Its gradients' addresses stay its own, however many steps are taken between its replays."""
    ours, params, theirs, other = start(device, MANY, capability=capability)
    rate = torch.tensor(1e-3)
    ours.param_groups[0]["lr"] = rate
    device.step(ours)
    theirs.step()
    give_gradients(params, other)
    captured = [(p.grad, q.grad) for p, q in zip(params, other)]
    values = [p.detach().clone() for p in params]
    with capture(device):
        device.step(ours)
    assert all(torch.equal(p, v) for p, v in zip(params, values))  # nothing has run yet
    for k in range(4):
        for group in theirs.param_groups:
            group["lr"] = rate.item()
        for p, q, (mine, torchs) in zip(params, other, captured):
            p.grad, q.grad = torch.full_like(p, k), torchs
            mine.copy_(torchs)
        device.library.fastdl_emulator_replay()
        theirs.step()
        give_gradients(params, other)
        device.step(ours)
        theirs.step()
        rate.mul_(0.7)
    assert_near(params, other, ulps=256)


def test_what_a_graph_reads_outlives_the_form_of_a_step(device):
    ours, params, _, _ = start(device, MANY, capability=OLD)
    give_gradients(params)
    captured = [p.grad for p in params]
    with capture(device):
        device.step(ours)
    kept = ours._kept
    ours.add_param_group({"params": parameters(sizes=((2,),))})
    give_gradients(params)
    device.step(ours)
    assert ours._kept is not kept
    assert ours._captured == [kept]
    device.library.fastdl_emulator_replay()
    assert all(p.isfinite().all() for p in params)
    assert all(not torch.equal(p.grad, grad) for p, grad in zip(params, captured))


@pytest.mark.parametrize(("cls", "options"), ROUNDING)
def test_a_graph_that_rounds_draws_new_bits_at_every_replay(device, cls, options):
    ours, theirs = start_rounding(device, cls, **options)
    (p, *rest), others = ours.param_groups[0]["params"], theirs.param_groups[0]["params"]
    with capture(device):
        device.step(ours)
    seen = set()
    for _ in range(4):
        for q in (p, others[0]):
            q.data.fill_(1)  # without momentum, bits alone tell the results apart
        device.library.fastdl_emulator_replay()
        device.step(theirs)
        assert all(torch.equal(a, b) for a, b in zip([p, *rest], others))
        seen.add(p.detach().view(torch.int16).numpy().tobytes())
    assert len(seen) == 4


def replay_both(device, theirs):
    device.library.fastdl_emulator_replay()
    theirs.step()


def test_the_second_step_may_be_captured(device):
    """The first has told the device all, and no later step writes to what the graph reads."""
    params = parameters(sizes=((64,), (5, 5)))
    other = twins(params)
    ours, theirs = optim.Adam(params), torch.optim.Adam(other, foreach=False)
    give_gradients(params, other)
    device.step(ours)
    theirs.step()
    with capture(device):
        assert device.step(ours)[:2] == (0, 0)  # but in the graph
    for _ in range(2):
        replay_both(device, theirs)
    strangers = parameters(sizes=((3,), (4,)))
    ours.param_groups[0]["params"], kept = strangers, params
    give_gradients(strangers)
    for _ in range(3):
        device.step(ours)
    ours.param_groups[0]["params"] = kept
    replay_both(device, theirs)
    assert_near(params, other)


def test_records_that_moved_leave_a_graphs_alone(device):
    """Once captured, a replay steps what it was captured with, though the optimizer has other tensors."""
    ours, params, theirs, other = start(device, ((64,), (5, 5)))
    give_gradients(params, other)
    device.step(ours)
    theirs.step()
    with capture(device):
        device.step(ours)
    captured = params[0].data
    params[0].data = torch.zeros(64)
    for _ in range(2):
        device.step(ours)
        params[1].data.copy_(other[1])
        for name in ("exp_avg", "exp_avg_sq", "step"):
            for p, q in zip(params, other):
                ours.state[p][name].copy_(theirs.state[q][name])
    replay_both(device, theirs)
    assert_near([captured, params[1]], other)


def moved(ours, params):
    ours.state[params[0]]["exp_avg"] = ours.state[params[0]]["exp_avg"].clone()


def grown(ours, params):
    ours.add_param_group({"params": [torch.ones(3, requires_grad=True)]})
    ours.param_groups[1]["params"][0].grad = torch.ones(3)


@pytest.mark.parametrize(
    ("steps", "change", "capability"),
    [(0, None, HOPPER), (3, moved, HOPPER), (3, grown, HOPPER), (1, None, OLD)],
)
def test_a_step_that_cannot_be_captured_says_so(device, steps, change, capability):
    device.become(capability)
    params = parameters(sizes=MANY if capability == OLD else ((64,), (5, 5)))
    ours = optim.Adam(params)
    give_gradients(params)
    for _ in range(steps):
        device.step(ours)
    if change:
        change(ours, params)
    values = [p.detach().clone() for p in params]
    states = {p: {name: v.clone() for name, v in state.items()} for p, state in ours.state.items()}
    with capture(device), pytest.raises(RuntimeError, match="take two steps outside of the capture first"):
        device.step(ours)
    device.library.fastdl_emulator_replay()
    assert all(torch.equal(p, v) for p, v in zip(params, values))
    assert {p: sorted(s) for p, s in ours.state.items()} == {p: sorted(s) for p, s in states.items()}
    assert all(torch.equal(ours.state[p][name], v) for p, state in states.items() for name, v in state.items())
    for _ in range(2):
        device.step(ours)
    before = [p.detach().clone() for p in params]
    with capture(device):
        device.step(ours)
    assert all(torch.equal(p, b) for p, b in zip(params, before))
    device.library.fastdl_emulator_replay()
    assert not any(torch.equal(p, b) for p, b in zip(params, before))


def test_gaps_in_memory_cannot_be_captured(device):
    p = torch.ones(6, 4)[:, ::2].detach().requires_grad_()
    p.grad = torch.ones(6, 2)
    ours = optim.SGD([p])
    for _ in range(2):
        device.step(ours)
    before = p.detach().clone()
    with capture(device), pytest.raises(RuntimeError, match="make them contiguous"):
        device.step(ours)
    assert torch.equal(p, before)
