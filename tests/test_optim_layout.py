"""Any layout and mix of dtypes, and no byte outside; guard values stand around every view."""

import subprocess
from pathlib import Path

import pytest
import torch
from test_optim import NAMES, assert_near, give_gradients, pair, twins

from fastdl import _library, optim

LAYOUTS = {
    "every second column": lambda: torch.randn(6, 10)[:, ::2],
    "transposed": lambda: torch.randn(6, 10).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "narrowed": lambda: torch.randn(8, 9)[1:5, 2:7],
    "zero-dim view": lambda: torch.randn(5)[2],
    "three-dim steps": lambda: torch.randn(4, 6, 8)[::2, 1::3, ::3],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_views(backend, name, layout):
    view = layout()
    base = view if view._base is None else view._base
    inside = torch.zeros_like(base)
    inside.as_strided(view.size(), view.stride(), view.storage_offset()).fill_(1)
    kept = base.detach().clone()
    p = view.detach().requires_grad_()
    q = view.detach().contiguous().clone().requires_grad_()
    ours, theirs = getattr(optim, name)([p], ema_decay=0.9), getattr(torch.optim, name)([q], foreach=False)
    for k in range(4):
        q.grad = torch.randn(q.shape)
        p.grad = q.grad if k % 2 else torch.empty_like(p).copy_(q.grad)  # contiguous and strided gradients
        ours.step()
        theirs.step()
    assert_near([p], [q])
    assert torch.equal(base[inside == 0], kept[inside == 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_offsets_of_buckets(backend, dtype):
    """Parameters and gradients one after the other in buckets, at every offset, as DDP's gradient views."""
    sizes = [1, 3, 64, 17, 0, 255, 31, 513, 5]
    for offset in range(16):
        buckets = [torch.full((sum(sizes) + 2 * offset,), 7.0, dtype=dtype) for _ in range(2)]
        views, place = [], offset
        for n in sizes:
            views.append([b[place : place + n] for b in buckets])
            place += n
        params = [v[0].normal_().requires_grad_() for v in views]
        other = twins(params)
        ours, theirs = optim.AdamW(params), torch.optim.AdamW(other, foreach=False)
        for _ in range(3):
            for p, (_, view), q in zip(params, views, other):
                p.grad = view.normal_()
                q.grad = p.grad.clone()
            ours.step()
            theirs.step()
        assert_near(params, other)
        for b in buckets:
            assert (torch.cat((b[:offset], b[place:])) == 7).all()


def test_dtypes_mix_in_a_group(backend):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    params = [torch.randn(65).to(d).requires_grad_() for d in dtypes]
    alone = [p.detach().clone().requires_grad_() for p in params]
    together = optim.Adam(params, weight_decay=0.1)
    apart = [optim.Adam([p], weight_decay=0.1) for p in alone]
    for _ in range(3):
        give_gradients(params, alone)
        together.step()
        for optimizer in apart:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, alone))


def test_gradient_of_another_dtype(backend):
    p, q = (torch.ones(33).requires_grad_() for _ in range(2))
    p.grad_dtype = None
    p.grad = torch.randn(33).bfloat16()
    q.grad = p.grad.float()
    optim.AdamW([p]).step()
    optim.AdamW([q]).step()
    assert torch.equal(p, q)


def test_overlapping_parameters_are_refused():
    p = torch.ones(1).expand(4).detach().requires_grad_()
    p.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        optim.SGD([p]).step()
    q = torch.ones(4, requires_grad=True)
    q.grad = torch.ones(1).expand(4)  # what sum().backward() gives: read only, so fine
    optim.SGD([q], lr=1.0).step()
    assert (q == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_bits_repeat(backend, name):
    """The same step twice: one result, whatever ran before."""
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        params = [torch.randn(10_000).requires_grad_(), torch.randn(3, 5).requires_grad_()]
        ours, _, _ = pair(name, params)
        ours.param_groups[0]["max_grad_norm"] = 1.0
        for _ in range(3):
            give_gradients(params)
            ours.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bits_repeat_in_any_order_of_threads(library):
    """300 times the same step, each in another order of blocks and threads."""
    torch.manual_seed(0)
    grads = [torch.randn(n) for n in (5000, 17, 4096)]
    results = set()
    library.fastdl_emulator_device(2, 227 * 1024, 90)
    with _library.use("emulated"):
        for seed in range(300):
            library.fastdl_emulator_settings(2, 0, seed)
            params = [torch.ones_like(g).requires_grad_() for g in grads]
            for p, g in zip(params, grads):
                p.grad = g
            ours = optim.Adam(params, max_grad_norm=1.0)
            ours.step()
            results.add(b"".join(p.detach().numpy().tobytes() for p in params))
    assert len(results) == 1


def test_elements_beyond_32_bits():
    """The kernel on the last tiles of parameters of up to 2^42 elements, of which these tiles alone are there."""
    from emulator import build

    here = Path(__file__).parent
    sources = [here / "optim_far.cu", here.parent / "csrc" / "optim" / "api.cu"]
    program = build.build_program("plain", "optim_far", sources)
    result = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
