"""The kernel, executed on the CPU: launches, bytes moved, what it keeps between steps, and layouts of the grid."""

import pytest
import torch
from emulator.counters import counters
from test_optim import assert_near, give_gradients, pair, parameters, twins

from fastdl import _library, optim

# Bytes per parameter in float32: every operand read once, every result written once; clipping reads gradients twice.
MINIMUM = [
    ("SGD", {}, 12),
    ("SGD", {"momentum": 0.9}, 20),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "l1": 0.1}, 20),
    ("RMSprop", {}, 20),
    ("Adagrad", {}, 20),
    ("Adam", {}, 28),
    ("Adam", {"amsgrad": True}, 36),
    ("AdamW", {"ema_decay": 0.9}, 36),
    ("AdamW", {"max_grad_norm": 1.0}, 32),
    ("AdamW", {"max_grad_norm": 1.0, "ema_decay": 0.9, "l1": 0.1, "l1_mode": "proximal"}, 40),
    ("SGD", {"zero_grad": True}, 16),
    ("AdamW", {"zero_grad": True}, 32),
]


@pytest.fixture
def counted(library):
    """Return a function that takes a step on the kernels and returns launches and bytes."""

    def step(optimizer, multiprocessors=1):  # few, since every thread of a cooperative launch lives at once
        library.fastdl_emulator_device(multiprocessors, 227 * 1024, 90)
        library.fastdl_emulator_reset_counters()
        with _library.use("emulated"):
            optimizer.step()
        return counters(library)[:3]

    return step


@pytest.mark.parametrize(("name", "options", "minimum"), MINIMUM)
def test_one_launch_and_the_fewest_bytes(counted, name, options, minimum):
    params = parameters(sizes=((20_000,), (64, 64), (8,), *((16,),) * 30))
    give_gradients(params)
    optimizer = getattr(optim, name)(params, **options)
    for _ in range(2):
        launches, read, written = counted(optimizer)
        assert launches == 1
    elements = sum(p.numel() for p in params)
    counters = (len(params) + 8) * 2 * 4  # read once by each of up to 8 blocks that share it, and written
    partials = 2048 * 8 * 33  # of the norm, read by every block
    allowed = counters + (partials if "max_grad_norm" in options else 64)
    assert minimum * elements <= read + written <= minimum * elements + allowed


@pytest.mark.parametrize(
    ("dtype", "options", "minimum"),
    [
        (torch.bfloat16, {"stochastic_rounding": True}, 14),  # random bits cost no memory, and no launch
        (torch.bfloat16, {"master_weights": True}, 28),  # the parameter is written, not read
        (torch.float64, {}, 56),
    ],
)
def test_bytes_of_other_dtypes(counted, dtype, options, minimum):
    params = [torch.randn(20_000).to(dtype).requires_grad_()]
    give_gradients(params)
    optimizer = optim.AdamW(params, **options)
    counted(optimizer)
    launches, read, written = counted(optimizer)
    assert launches == 1
    assert minimum * 20_000 <= read + written <= minimum * 20_000 + 64


def test_groups_beyond_what_a_launch_carries(counted):
    params = parameters(sizes=((9,),) * 40)
    other = twins(params)
    ours = optim.AdamW([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(params)])
    theirs = torch.optim.AdamW([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(other)], foreach=False)
    for _ in range(3):
        give_gradients(params, other)
        assert counted(ours)[0] == 1
        theirs.step()
    assert_near(params, other)


@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_any_number_of_blocks_gives_the_same_update(counted, multiprocessors):
    params = parameters(sizes=((20_000,), (1,), (0,), (4096,), (4097,), (0, 3), (63, 5), (0,)))
    ours, theirs, other = pair("Adam", params)
    for clip in (None, 1.0):
        ours.param_groups[0]["max_grad_norm"] = clip
        give_gradients(params, other)
        counted(ours, multiprocessors)
        if clip:
            torch.nn.utils.clip_grad_norm_(other, clip, foreach=False)
        theirs.step()
    assert_near(params, other)


def test_all_parameters_empty(counted):
    params = parameters(sizes=((0,), (0, 4)))
    give_gradients(params)
    optimizer = optim.Adam(params, max_grad_norm=1.0)
    counted(optimizer)
    assert all(optimizer.state[p]["step"] == 1 for p in params)
    optim.Adam(parameters()).step()  # no gradients at all


def test_rules_that_differ_by_a_flag_share_a_launch(counted):
    params = parameters(sizes=((33,), (44,), (55,)))
    params[2].data = params[2].data.double()
    other = twins(params)

    def groups(p):
        return [{"params": p[:1], "amsgrad": True}, {"params": p[1:]}]

    ours, theirs = optim.Adam(groups(params)), torch.optim.Adam(groups(other), foreach=False)
    for _ in range(4):
        give_gradients(params, other)
        assert counted(ours)[0] == 1
        theirs.step()
    assert_near(params, other)
