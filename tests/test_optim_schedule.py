"""Schedules on the device against torch's schedulers of the same meaning; and all of torch's on our optimizers."""

import pytest
import torch
from test_optim import assert_near, give_gradients, pair, parameters, twins
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


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 7], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.2, 5),
}


def test_schedulers_are_all_that_torch_has():
    abstract = {"LRScheduler", "_LRScheduler"}
    assert set(lr_scheduler.__all__) - abstract <= set(SCHEDULERS) | {"EPOCH_DEPRECATION_WARNING"}


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
            d.step(1.0) if isinstance(d, lr_scheduler.ReduceLROnPlateau) else d.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert_near(params, other)
