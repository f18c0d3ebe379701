"""Schedules on the device against torch's schedulers of the same meaning."""

import pytest
import torch
from test_optim import assert_near, give_gradients, parameters, twins
from torch.optim import lr_scheduler

from fastdl import optim
from fastdl.optim import schedule

PAIRS = {
    "constant": (lambda o: schedule.Constant(o, 0.5, 4), lambda o: lr_scheduler.ConstantLR(o, 0.5, 4)),
    "step": (lambda o: schedule.Step(o, 3, 0.5), lambda o: lr_scheduler.StepLR(o, 3, 0.5)),
    "exponential": (lambda o: schedule.Exponential(o, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "cosine": (lambda o: schedule.Cosine(o, 12, 1e-3), lambda o: lr_scheduler.CosineAnnealingLR(o, 12, 1e-3)),
    "warm-up": (lambda o: schedule.LinearWarmup(o, 0.1, 6), lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=6)),
    "warm-up, then cosine": (
        lambda o: schedule.LinearWarmup(o, 0.1, 4, after=schedule.Cosine(o, 12)),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 12)], [4]
        ),
    ),
    "one cycle": (
        lambda o: schedule.OneCycle(o, 0.3, 20),
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, 20, cycle_momentum=False),
    ),
    "one cycle, straight": (
        lambda o: schedule.OneCycle(o, 0.3, 20, anneal_strategy="linear", div_factor=5),
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, 20, anneal_strategy="linear", div_factor=5, cycle_momentum=False),
    ),
}


def groups(params):
    return [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.02}]


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_rates_and_steps_are_torchs(backend, name, make):
    params = parameters(sizes=((5,), (3, 3)))
    other = twins(params)
    ours, theirs = getattr(optim, name)(groups(params)), getattr(torch.optim, name)(groups(other), foreach=False)
    mine, torchs = make[0](ours), make[1](theirs)
    for _ in range(14):
        torch.testing.assert_close(mine.get_last_lr(), torchs.get_last_lr(), rtol=1e-9, atol=1e-12)
        give_gradients(params, other)
        ours.step()
        theirs.step()
        mine.step()
        torchs.step()
    assert_near(params, other)


def test_continues_in_the_same_tensors():
    optimizers = [optim.SGD(parameters(), lr=0.1) for _ in range(2)]
    schedules = [schedule.Cosine(o, 10) for o in optimizers]
    for _ in range(4):
        schedules[0].step()
    tensor = optimizers[1].param_groups[0]["lr"]
    schedules[1].load_state_dict(schedules[0].state_dict())
    assert optimizers[1].param_groups[0]["lr"] is tensor
    assert schedules[0].get_last_lr() == schedules[1].get_last_lr() == [tensor.item()]
    with pytest.raises(ValueError, match="anneal_strategy must be one of"):
        schedule.OneCycle(optimizers[0], 0.1, 5, anneal_strategy="steps")
