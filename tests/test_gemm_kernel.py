"""The kernels of matrix products on their own: every family and tile, layouts, parts of k, traffic, repeatability."""

import itertools
import os
import subprocess

import pytest
import torch
from emulator.counters import counters
from test_linear import assert_as_good

from fastdl import _C
from fastdl.activation import CODES, activate
from fastdl.philox import keep_mask

# name -> device (multiprocessors, capability, shared bytes): few multiprocessors take large tiles, many split k
DEVICES = {
    "large tiles": (1, 80, 163 << 10),
    "small tiles": (132, 80, 163 << 10),
    "old": (8, 75, 64 << 10),
    "hopper": (2, 90, 227 << 10),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEED = 987654321


def on_device(library, name):
    multiprocessors, capability, shared_bytes = DEVICES[name]
    library.fastdl_emulator_device(multiprocessors, shared_bytes, capability)
    library.fastdl_emulator_reset_counters()


def integers(*shape, dtype):
    return torch.randint(-4, 5, shape).to(dtype)


def laid_out(tensor, layout):
    """The values as a row-major ("n"), column-major ("t") or strided ("s") view inside NaNs, at an odd offset."""
    shape = tensor.mT.shape if layout == "t" else tensor.shape
    step = 2 if layout == "s" else 1
    memory = torch.full((*shape[:-1], shape[-1] * step + 5), float("nan"), dtype=tensor.dtype)
    view = memory[..., 3 : 3 + shape[-1] * step : step]
    view = view.mT if layout == "t" else view
    view.copy_(tensor)
    return view


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt", "sn", "ts"])
def test_products_are_exact(library, device, layouts):
    """Sums of small integers are exact until they are stored; what surrounds the operands is NaN and never read."""
    sizes = {2: [(150, 133, 71), (65, 5, 130), (129, 129, 1)], 4: [(137, 66, 19)], 8: [(5, 70, 17)]}
    for dtype in DTYPES:
        for m, n, k in sizes[dtype.itemsize]:
            a, b = integers(m, k, dtype=dtype), integers(k, n, dtype=dtype)
            on_device(library, device)
            c = torch.ops.fastdl_emulated.gemm(laid_out(a, layouts[0]), laid_out(b, layouts[1]))
            assert torch.equal(c, (a.double() @ b.double()).to(dtype))
            tensor_cores = dtype in (torch.float16, torch.bfloat16) and device != "old" and "s" not in layouts
            family = "gemv" if min(m, n) <= 4 else "mma" if tensor_cores else "simt"
            names = counters(library)[3]
            assert f"{family}_kernel" in names or ("repack_kernel" in names and "wgmma_kernel" in names)


@pytest.mark.parametrize("alignment", [1, 2, 4, 8])
@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
def test_alignments_are_exact(library, alignment, layouts):
    """Rows that begin at multiples of 2, 4, 8 and 16 bytes take different copies."""
    on_device(library, "large tiles")
    for dtype, (m, n, k) in itertools.product([torch.float16, torch.bfloat16], [(96, 72, 80), (70, 90, 38)]):
        a, b = integers(m, k, dtype=dtype), integers(k, n, dtype=dtype)
        views = []
        for tensor, layout in zip((a, b), layouts):
            shape = tensor.mT.shape if layout == "t" else tensor.shape
            pitch = -(-(shape[1] + alignment) // alignment) * alignment
            memory = torch.full((shape[0] * pitch + alignment,), float("nan"), dtype=dtype)
            view = memory[alignment:].as_strided(shape, (pitch, 1), alignment)
            view = view.mT if layout == "t" else view
            view.copy_(tensor)
            views.append(view)
        assert torch.equal(torch.ops.fastdl_emulated.gemm(*views), (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize("kind", ["16 bits", "tf32"])
@pytest.mark.parametrize("tile", range(15))
def test_hopper_tiles(tile, kind):
    """Every tile and turn of wgmma by explicit plans: layouts, edges, epilogues, partials, sums of a's rows."""
    build = pytest.importorskip("emulator.build")
    flavour = os.environ.get("FASTDL_FLAVOUR", "plain")
    sources = [build.ROOT / "tests" / "gemm_wgmma.cu", *sorted(build.ROOT.glob("csrc/gemm/api*.cu"))]
    program = build.build_program(flavour, "gemm_wgmma", sources)
    env = {"FASTDL_COMPLETION": "lazy", **os.environ}  # a box that is filled too early shows
    command = [program, str(tile), kind]
    result = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=900)
    assert result.stdout == "wgmma: ok\n", result.stdout + result.stderr


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
def test_hopper(library, layouts):
    """TMA and wgmma by the plan's choice: batches, parts of k; what surrounds the operands is NaN."""
    sizes = [(136, 120, 200, 1), (128, 128, 64, 3), (128, 128, 4096, 1), (264, 520, 136, 1), (136, 512, 72, 2)]
    for dtype, (m, n, k, batch) in itertools.product([torch.float16, torch.bfloat16], sizes):
        a, b = integers(batch, m, k, dtype=dtype) / 4, integers(batch, k, n, dtype=dtype) / 4
        views = []
        for tensor, layout in zip((a, b), layouts):
            shape = tensor.mT.shape if layout == "t" else tensor.shape
            memory = torch.full((batch, shape[1] + 1, shape[2] + 24), float("nan"), dtype=dtype)
            view = memory[:, : shape[1], 8 : 8 + shape[2]]
            view = view.mT if layout == "t" else view
            view.copy_(tensor)
            views.append(view)
        on_device(library, "hopper")
        c = torch.ops.fastdl_emulated.gemm(*(v if batch > 1 else v[0] for v in views))
        assert torch.equal(c.view(batch, m, n), (a.double() @ b.double()).to(dtype))
        assert "wgmma_kernel" in counters(library)[3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_k(library, dtype):
    """A weight gradient: few tiles, deep k. Parts are added in order, so the bits repeat."""
    on_device(library, "small tiles")
    a, b = integers(2500, 40, dtype=dtype).mT, integers(2500, 70, dtype=dtype)
    a, b = a / 4, b / 4  # sums stay exact in 16 bits' accumulators
    first = torch.ops.fastdl_emulated.gemm(a, b)
    launches, _, _, names = counters(library)
    assert launches == 2
    assert "split_sum_kernel" in names
    assert torch.equal(first, (a.double() @ b.double()).to(dtype))
    a, b = torch.randn_like(a), torch.randn_like(b)
    first = torch.ops.fastdl_emulated.gemm(a, b)
    assert all(torch.equal(first, torch.ops.fastdl_emulated.gemm(a, b)) for _ in range(2))


@pytest.mark.parametrize(("m", "n", "splits"), [(13, 520, 8), (136, 136, 8), (136, 1000, 4)])
def test_split_k_in_a_cluster(library, m, n, splits):
    """Few tiles on Hopper: one launch and no workspace; parts are added in the order of k."""
    device, k = (132, 90, 227 << 10), 2104
    library.fastdl_emulator_device(device[0], device[2], device[1])
    plan = _C.gemm_plan(1, m, n, k, "bfloat16", "nt", 0, False, *device)
    assert (plan["family"], plan["splits"], plan["near"], plan["workspace_bytes"]) == ("wgmma", splits, True, 0)
    a, b = (torch.randn(s, dtype=torch.float64).bfloat16() for s in [(m, k), (n, k)])
    library.fastdl_emulator_reset_counters()
    first = torch.ops.fastdl_emulated.gemm(a, b.mT)
    launches, _, written, _ = counters(library)
    assert (launches, written) == (1, m * n * 2)
    assert_as_good(first, a @ b.mT, a.double() @ b.double().mT)
    assert torch.equal(first, torch.ops.fastdl_emulated.gemm(a, b.mT))
    a, b = torch.zeros_like(a), torch.ones_like(b)
    steps = -(-k // 64)
    for part, value in enumerate((2.0**24, 1.0, -(2.0**24))):  # (2^24 + 1) - 2^24 is 0 in float32, 2^24 - 2^24 + 1 is 1
        a[:, steps * part // splits * 64] = value
    assert not torch.ops.fastdl_emulated.gemm(a, b.mT).any()


def assert_forward_as_good(x, w, bias, residual, activation, p):
    """Hold output and saved preactivation of the forward kernels to the formula, as good as torch's own."""
    seed = torch.tensor([SEED]) if p else None
    ours, saved = torch.ops.fastdl_emulated.linear_forward(x, w, bias, residual, seed, CODES[activation], p, True)
    kept = keep_mask(ours.shape, torch.tensor([SEED]), p).double() / (1 - p if p < 1 else 1) if p else 1

    def formula(x, w, bias, residual):
        preactivation = torch.nn.functional.linear(x, w, bias)
        output = activate(preactivation, activation) * kept
        return preactivation, output if residual is None else output + residual

    exact = formula(*(None if t is None else t.double() for t in (x, w, bias, residual)))
    theirs = formula(x, w, bias, residual)
    assert_as_good(saved, theirs[0], exact[0])
    assert_as_good(ours, theirs[1].to(ours.dtype), exact[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", list(CODES))
def test_epilogues(library, device, activation):
    """Bias, activation, dropout and residual; the preactivation is saved as it was rounded."""
    for dtype in (torch.float32, torch.bfloat16):
        m, n, k = (300, 125, 200) if device == "hopper" and dtype == torch.bfloat16 else (70, 61, 24)
        x, w = (torch.randn(s, dtype=torch.float64).to(dtype) for s in [(m, k), (n, k)])
        bias, z = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
        for p, residual in [(0.0, None), (0.3, z)] if dtype == torch.float32 else [(0.001, None), (1.0, z)]:
            on_device(library, device)
            assert_forward_as_good(x, w, bias, residual, activation, p)
            assert ("wgmma_kernel" in counters(library)[3]) == (m == 300)


def test_nothing_is_read_twice_from_memory_that_a_tile_holds(library):
    """Each block reads its own rows and columns once: bytes are tiles x (tile_m + tile_n) x k, and the output."""
    on_device(library, "large tiles")
    m, n, k = 256, 384, 64
    a, b = integers(m, k, dtype=torch.bfloat16), integers(k, n, dtype=torch.bfloat16)
    torch.ops.fastdl_emulated.gemm(a, b)
    launches, read, written, _ = counters(library)
    multiprocessors, capability, shared_bytes = DEVICES["large tiles"]
    tile = _C.gemm_plan(1, m, n, k, "bfloat16", "nn", 0, False, multiprocessors, capability, shared_bytes)["tile"][0]
    assert (launches, tile) == (1, 128)
    assert read == (m // tile) * (n // tile) * 2 * tile * k * 2
    assert written == m * n * 2


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("device", ["large tiles", "small tiles"])
def test_tf32_on_request(library, device, layouts):
    """Small integers are exact in tf32's 11 bits; other numbers are rounded once, to nearest."""
    m, n, k = 137, 66, 35
    a, b = integers(m, k, dtype=torch.float32), integers(k, n, dtype=torch.float32)
    on_device(library, device)
    views = laid_out(a, layouts[0]), laid_out(b, layouts[1])
    assert torch.equal(torch.ops.fastdl_emulated.gemm(*views, 1), a @ b)
    assert "mma_kernel" in counters(library)[3]
    x = torch.randn(m, k)
    rounded = ((x.view(torch.int32) + 0xFFF + (x.view(torch.int32) >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    c = torch.ops.fastdl_emulated.gemm(laid_out(x, layouts[0]), laid_out(b, layouts[1]), 1)
    exact = x.double() @ b.double()
    assert (c - rounded.double() @ b.double()).abs().max() <= 2 * k * 4 * 2**-11  # ties may go either way
    assert (c - exact).abs().max() <= (x.abs().double() @ b.abs().double()).max() * 2**-11


@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_a_sum_take_tensor_cores(library, batch):
    """A gradient that is one number expanded lies neither by rows nor by columns."""
    from fastdl import _library, matmul

    a, b = (integers(*batch, *s, dtype=torch.bfloat16).requires_grad_() for s in [(70, 66), (66, 80)])
    on_device(library, "large tiles")
    with _library.use("emulated"):
        matmul(a, b).sum().backward()
    assert "simt_kernel" not in counters(library)[3]
    assert torch.equal(a.grad, b.detach().float().sum(-1).unsqueeze(-2).expand(a.shape).bfloat16())
    assert torch.equal(b.grad, a.detach().float().sum(-2).unsqueeze(-1).expand(b.shape).bfloat16())


def test_torchs_setting_chooses(library):
    from fastdl import _library, matmul

    a = torch.randn(70, 70)
    previous = torch.get_float32_matmul_precision()
    on_device(library, "large tiles")
    try:
        for setting, kernel in (("highest", "simt_kernel"), ("high", "mma_kernel"), ("medium", "mma_kernel")):
            torch.set_float32_matmul_precision(setting)
            with _library.use("emulated"):
                matmul(a, a)
            assert kernel in counters(library)[3]
    finally:
        torch.set_float32_matmul_precision(previous)
