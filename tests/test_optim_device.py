"""Steps with records resident on the device: what is launched, what is sent, and what a captured graph may rely on."""

import ctypes

import pytest
import torch
from emulator.counters import counters
from test_optim import assert_near, give_gradients, parameters, twins

from fastdl import _library, optim

MANY = ((3,),) * 600  # more gradients than 4 KB of arguments hold
OLD, HOPPER = 60, 90  # compute capabilities: the one takes 4 KB, the other 32


class Device:
    """The emulated device: one multiprocessor, since every thread of a cooperative launch lives at once."""

    def __init__(self, library):
        self.library = library
        library.fastdl_emulator_copies.restype = ctypes.c_uint64
        self.become(HOPPER)

    def become(self, capability):
        self.library.fastdl_emulator_device(1, 227 * 1024, capability)

    def step(self, optimizer):
        """Return launches, copies and the kernels' names of one step."""
        counters(self.library)
        before = self.library.fastdl_emulator_copies()
        with _library.use("emulated"):
            optimizer.step()
        launches, _, _, names = counters(self.library)
        return launches, self.library.fastdl_emulator_copies() - before, names


@pytest.fixture
def device(library):
    yield Device(library)
    library.fastdl_emulator_hold(0)
    library.fastdl_emulator_capture(0)


def start(device, sizes, cls=optim.Adam, capability=HOPPER, **options):
    """Return an optimizer in its steady state, its parameters, and torch's with its own."""
    device.become(capability)
    params = parameters(sizes=sizes)
    other = twins(params)
    ours, theirs = cls(params, **options), getattr(torch.optim, cls.__name__)(other, foreach=False)
    for _ in range(2):
        give_gradients(params, other)
        device.step(ours)
        theirs.step()
    return ours, params, theirs, other


@pytest.mark.parametrize(
    ("sizes", "capability", "copies", "arguments"),
    [(((64,), (5, 5), (4097,)), HOPPER, 0, 4096), (MANY, HOPPER, 0, 32764), (MANY, OLD, 1, 4096),
     (((1,),) * 4200, HOPPER, 1, 4096)],
)  # fmt: skip
def test_one_launch_and_nothing_else(device, sizes, capability, copies, arguments):
    ours, params, theirs, other = start(device, sizes, capability=capability)
    for _ in range(3):
        give_gradients(params, other)  # new tensors, at new addresses
        launches, sent, names = device.step(ours)
        assert (launches, sent) == (1, copies)
        assert f", {arguments}>" in names
        theirs.step()
    assert_near(params, other)


ROUNDING = [(optim.SGD, {}), (optim.SGD, {"momentum": 0.9}), (optim.AdamW, {}), (optim.RMSprop, {})]


def start_rounding(device, cls, **options):
    """Return two equal optimizers of bfloat16 parameters in their steady state."""
    params = parameters(torch.bfloat16, sizes=((5000,), (5, 5), (0,)))
    pair = [cls(ps, stochastic_rounding=True, rounding_seed=9, **options) for ps in (params, twins(params))]
    for _ in range(2):
        give_gradients(*(o.param_groups[0]["params"] for o in pair))
        for optimizer in pair:
            device.step(optimizer)
    return pair


@pytest.mark.parametrize(("cls", "options"), ROUNDING)
def test_rounding_is_in_the_launch(device, cls, options):
    """No seed is drawn for it: nothing else is launched, sent, or asked of a generator."""
    ours, _ = start_rounding(device, cls, **options)
    generator = torch.get_rng_state()
    for _ in range(3):
        assert device.step(ours)[:2] == (1, 0)
    assert torch.equal(generator, torch.get_rng_state())


def test_records_are_sent_again_when_one_moves(device):
    ours, params, theirs, other = start(device, ((64,), (5, 5)))
    for change, copies in [(lambda: None, 0), (lambda: setattr(params[0], "data", params[0].data.clone()), 1)]:
        change()
        for expected in (copies, 0):
            give_gradients(params, other)
            assert device.step(ours)[1] == expected
            theirs.step()
    state = ours.state[params[1]]
    state["exp_avg"] = state["exp_avg"].clone()
    give_gradients(params, other)
    assert device.step(ours)[1] == 1
    theirs.step()
    assert_near(params, other)


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
def test_options_go_with_the_launch(device, lr):
    """A learning rate that changes costs no copy; one on the device is read there."""
    ours, params, theirs, other = start(device, ((64,),) * 20, lr=1e-3)
    for k in range(1, 4):
        give_gradients(params, other)
        ours.param_groups[0]["lr"] = lr if isinstance(lr, torch.Tensor) else lr / k
        theirs.param_groups[0]["lr"] = 0.01 if isinstance(lr, torch.Tensor) else lr / k
        assert device.step(ours)[:2] == (1, 0)
        theirs.step()
    assert_near(params, other)


def test_pinned_memory_in_flight_is_not_written(device):
    ours = start(device, MANY, capability=OLD)[0]
    device.step(ours)
    slots = ours._kept.library.pinned_slots
    device.library.fastdl_emulator_hold(1)
    for _ in range(3):
        device.step(ours)
    assert ours._kept.library.pinned_slots == slots + 2  # one was free
    device.library.fastdl_emulator_hold(0)
    for _ in range(5):
        device.step(ours)
    assert ours._kept.library.pinned_slots == slots + 2


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_zeroes_and_counts_nothing(device, clip):
    ours, params, _, _ = start(device, ((5000,), (7,), (0,)), cls=optim.AdamW, zero_grad=True, max_grad_norm=clip)
    before = [p.detach().clone() for p in params]
    ours.grad_scale, ours.found_inf = torch.tensor(1.0), torch.tensor(0.0 if clip else 2.0)
    give_gradients(params)
    params[1].grad[3] = torch.inf
    assert device.step(ours)[:2] == (1, 0)
    assert all(torch.equal(p, b) for p, b in zip(params, before))
    assert all((p.grad == 0).all() for p in params)
    assert all(ours.state[p]["step"] == 2 for p in params)
