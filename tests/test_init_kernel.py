"""The initialization kernel on its own: one launch for a model, any layout and part, bytes, the formula's bits."""

import pytest
import torch
from emulator.counters import counters

from fastdl import _library, init


def model():
    with torch.random.fork_rng():
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Flatten(), torch.nn.Linear(45, 61),
            torch.nn.Linear(61, 7).to(torch.bfloat16), torch.nn.Linear(7, 3).double(),
        )  # fmt: skip


@pytest.mark.parametrize("scheme", ["xavier_uniform", "kaiming_normal", "trunc_normal", "zeros"])
def test_a_model_is_one_launch(library, scheme):
    ours, theirs = model(), model()
    with _library.use("emulated"):
        init.initialize(ours, scheme, seed=4)
    launches, read, written, _ = counters(library)
    filled = [p for p in ours.parameters()]
    assert (launches, read) == (1, 0)
    assert written == sum(p.nbytes for p in filled)
    with _library.use("reference"):
        init.initialize(theirs, scheme, seed=4)
    for p, q in zip(filled, theirs.parameters()):
        assert torch.equal(p, q)


def views():
    memory = torch.full((9, 40), float("nan"))
    yield "rows", memory[1::2, 3:-2]
    yield "transposed", torch.empty(13, 9).t()
    yield "channels_last", torch.empty(2, 5, 3, 4).to(memory_format=torch.channels_last)
    yield "unaligned", torch.empty(4099)[1:]
    yield "scalar", torch.empty(())
    yield "long", torch.empty(3, 4096 + 5)


@pytest.mark.parametrize(("name", "view"), list(views()), ids=lambda x: x if isinstance(x, str) else "")
def test_layouts_have_the_formulas_bits(library, name, view):
    expected = torch.empty(view.shape)
    with _library.use("reference"):
        init.normal_(expected, seed=3)
    with _library.use("emulated"):
        init.normal_(view, seed=3)
    assert torch.equal(view, expected)


def test_parts_of_a_tensor(library):
    whole = init.normal_(torch.empty(12, 10), seed=1, name="w")
    with _library.use("emulated"):
        part = init.normal_(torch.empty(5, 4), seed=1, name="w", offset=(3, 2), global_shape=(12, 10))
        flat = init.normal_(torch.empty(7), seed=1, name="w", offset=13)
        far = init.uniform_(torch.empty(9), seed=1, name="w", offset=2**50 + 3)
    assert torch.equal(part, whole[3:8, 2:6])
    assert torch.equal(flat, whole.flatten()[13:20])
    assert torch.equal(far, init.uniform_(torch.empty(9), seed=1, name="w", offset=2**50 + 3))
