"""Dropout's kernels on their own: traffic, launches, paths, sizes beyond 32 bits, random layouts, graphs."""

import math
import subprocess
from pathlib import Path

import pytest
import torch
from cases import DTYPES, LAYOUTS, make_normal
from emulator.counters import counters

import fastdl.functional as FF
import fastdl.nn as fnn
from fastdl.dropout import _dropout, _dropout_in_place
from fastdl.philox import keep_mask, new_seed

SEED = -1234567890123456789
FAR = 2**31 + 8
THREADS = 256  # of a block; each reads the 8 bytes of the seed


def ops():
    return (getattr(torch.ops.fastdl_emulated, name).default for name in ("dropout", "dropout_", "dropout_backward"))


# ---------------------------------------------------------------------------------------------------- traffic and paths


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_one_launch_moves_the_minimum(library, dtype, layout, p):
    """Each operand is read once, the output written once, and no mask: 4 bytes an element in bfloat16."""
    dropout, dropout_in_place, dropout_backward = ops()
    input = LAYOUTS[layout](make_normal(dtype))
    residual, seed = torch.randn_like(input), torch.tensor([SEED])
    calls = [
        (1, dropout, (input, None, seed, p, 0, 1)),
        (1, dropout, (input, None, seed, p, 4, 1)),
        (2, dropout, (input, residual, seed, p, 0, 1)),
        (2, dropout, (input, residual, seed, p, 1, 1)),
        (2, dropout_backward, (residual, input, seed, p, 3, 1)),
        (1, dropout_backward, (residual, input, seed, p, 0, 1)),
    ]
    if layout != "expanded":
        calls.append((1, dropout_in_place, (input.clone(), None, seed, p, 0, 1)))
    for operands, op, arguments in calls:
        op(*arguments)
        launches, read, written, _ = counters(library)
        assert launches == (1 if input.numel() else 0)
        assert written == input.numel() * dtype.itemsize
        of_seed = read - operands * input.numel() * dtype.itemsize
        assert of_seed % 8 == 0
        assert (0 < of_seed <= 8 * (THREADS + input.numel())) == (0 < p < 1 and input.numel() > 0), of_seed


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Linear", lambda: torch.randn(3, 1000)),
        ("Linear", lambda: torch.randn(5, 6, 7).permute(1, 2, 0)[:1, :, :1]),
        ("Linear", lambda: torch.randn(1)),
        ("Linear", lambda: torch.randn(2, 1, 1, 8).to(memory_format=torch.channels_last)),
        ("transposed", lambda: torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last)),
        ("transposed", lambda: torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)),
        ("transposed", lambda: torch.randn(37, 21).t()),
        ("transposed", lambda: torch.randn(4, 37, 21).mT),
        ("Strided", lambda: torch.randn(9, 40)[1::2, 3:-2]),
        ("Strided", lambda: torch.randn(3, 4, 5, 6).permute(2, 0, 3, 1)),
        ("Strided", lambda: torch.randn(5).expand(4, 5)),
    ],
)
def test_which_kernel_takes_a_layout(library, name, make):
    dropout, *_ = ops()
    dropout(make(), None, torch.tensor([SEED]), 0.5, 0, 1)
    assert name in counters(library)[3]


# ------------------------------------------------------------------------------------------------------ beyond 32 bits


def test_far_indices():
    """Masks, windows, divisions and strides at logical indices up to 2**50."""
    build = pytest.importorskip("emulator.build")
    program = build.build_program("plain", "dropout_far", [Path(__file__).parent / "dropout_far.cu"])
    result = subprocess.run([program], capture_output=True, text=True, errors="replace", timeout=300)
    assert result.stdout == "far indices: ok\n", result.stdout + result.stderr


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((3, 37), (FAR, 1)),
        ((3, 40), (FAR, 1)),
        ((2, 24, 5), (FAR, 1, 24)),
        ((2, 2, 24), (24, FAR, 1)),
        ((5, 2), (1, FAR)),
    ],
)
def test_far_offsets(backend, size, stride):
    """Elements more than 2**31 elements and 2**32 bytes apart; the memory in between is never touched."""
    backend.requires("dropout", "dropout_")
    try:
        memory = torch.empty(3 * FAR, dtype=torch.float16, device=backend.device)
    except RuntimeError:
        pytest.skip("no room for the addresses")
    view = memory.as_strided(size, stride, 5)
    values = torch.randn(size, device=backend.device).half()
    view.copy_(values)
    seed = torch.tensor([SEED], device=backend.device)
    expected = values * keep_mask(size, seed, 0.5) * 2
    assert torch.equal(_dropout(view, None, seed, 0.5, 0, 1), expected)
    _dropout_in_place(view, None, seed, 0.5, 0, 1)
    assert torch.equal(view, expected)


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 60 << 30, reason="needs 60 GB on a GPU"
)
def test_more_than_32_bits_of_elements():
    x = torch.ones(2**32 + 4099, dtype=torch.bfloat16, device="cuda")
    seed = torch.tensor([SEED], device="cuda")
    y = _dropout(x, None, seed, 0.5, 0, 1)
    tail = keep_at(range(2**32 - 8, 2**32 + 4099), 0.5)
    assert torch.equal(y[2**32 - 8 :].cpu(), tail.bfloat16() * 2)
    assert torch.equal(y[:4096].cpu(), keep_mask((4096,), seed.cpu(), 0.5).bfloat16() * 2)
    assert abs(y[::4097].float().mean().item() - 1) < 0.01


def keep_at(indices, p):
    """The mask at these indices; their counters alone are computed."""
    from fastdl.philox import philox

    i = torch.tensor(list(indices))
    words = torch.stack(philox(torch.tensor([SEED]), i // 8), 1)
    word = words.gather(1, (i % 8 // 2)[:, None])[:, 0]
    return (word >> 16 * (i % 2) & 0xFFFF) >= int(p * 2**16 + 0.5)


# --------------------------------------------------------------------------------------------------------- seed, graphs


def test_seed_is_read_when_the_kernel_runs(backend):
    """One seed tensor, overwritten between calls: what a replayed graph does."""
    backend.requires("dropout")
    seed = torch.tensor([1], device=backend.device)
    x = torch.ones(1000, device=backend.device)
    first = _dropout(x, None, seed, 0.5, 0, 1)
    seed.fill_(2)
    assert torch.equal(_dropout(x, None, seed, 0.5, 0, 1) != 0, keep_mask((1000,), seed, 0.5))
    assert not torch.equal(first != 0, keep_mask((1000,), seed, 0.5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graph_replays_draw_new_masks():
    x = torch.ones(4096, device="cuda", requires_grad=True)
    module = fnn.Dropout(0.5)
    with torch.cuda.stream(torch.cuda.Stream()):
        module(x).sum().backward()  # warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x)
        (g,) = torch.autograd.grad(y.sum(), x)
    seen = []
    torch.cuda.manual_seed(5)
    for _ in range(3):
        graph.replay()
        assert torch.equal(y, g)  # backward has the mask of this replay
        seen.append(y.clone())
    assert len({tuple(s.tolist()) for s in seen}) == 3
    torch.cuda.manual_seed(5)
    graph.replay()
    assert torch.equal(y, seen[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_synchronisation():
    x = torch.ones(4096, device="cuda", requires_grad=True)
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        FF.dropout(x, activation="gelu", residual=x).sum().backward()
        FF.dropout2d(x.view(4, 4, 16, 16)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(previous)


def test_generator_offset_advances(backend):
    device = backend.device
    torch.manual_seed(7)
    seeds = torch.cat([new_seed(device) for _ in range(64)])
    assert len(seeds.unique()) == 64
    assert math.log2(seeds.abs().double().max()) > 60
