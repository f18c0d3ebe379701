"""float32 rounded to tf32 on Hopper: errors, special values, operands that are turned to lie along k, gradients."""

import itertools

import pytest
import torch
from emulator.counters import counters
from test_gemm_float32 import DATA, rms_error
from test_gemm_kernel import integers, laid_out
from test_gemm_repack import on_hopper

import fastdl
from fastdl import _library, functional
from fastdl.gemm import HIGH


def tf32(x):
    """The nearest number of 11 bits, ties to even; infinities and NaN stay."""
    bits = x.view(torch.int32)
    rounded = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def aligned(tensor, layout):
    """The values with columns ("n") or rows ("t") adjacent, in lines of whole vectors inside NaNs."""
    shape = tensor.mT.shape if layout == "t" else tensor.shape
    memory = torch.full((*shape[:-1], -(-shape[-1] // 4) * 4 + 8), float("nan"))
    view = memory[..., 4 : 4 + shape[-1]]
    view = view.mT if layout == "t" else view
    view.copy_(tensor)
    return view


def gemm(library, a, b, *names):
    """The product by wgmma; `names`: the kernels that ran, in any order."""
    on_hopper(library, a, b, HIGH)
    c = torch.ops.fastdl_emulated.gemm(a, b, HIGH)
    ran = counters(library)[3]
    assert all(name in ran for name in ("wgmma_kernel", *names)), ran
    assert all((name in ran) == (name in names) for name in ("transpose_kernel", "repack_kernel")), ran
    return c


@pytest.mark.parametrize("k", [96, 1024])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("layouts", ["nt", "tn"])
def test_errors_are_those_of_rounded_operands(library, data, k, layouts):
    """At most twice those of a product of operands rounded to tf32 that is otherwise exact, on cores that cut sums."""
    library.fastdl_emulator_truncation(1)
    a, b = DATA[data](136, k), DATA[data](k, 140)
    c = gemm(library, aligned(a, layouts[0]), aligned(b, layouts[1]), *["transpose_kernel"] * (layouts == "tn"))
    ours = rms_error(c, a, b)
    rounded = rms_error(tf32(a).double() @ tf32(b).double(), a, b)
    assert 0 < ours <= 2 * rounded, (ours, rounded)
    assert rms_error(c, tf32(a), tf32(b)) < rounded / 2  # rounded to nearest: cut operands would be far from these


@pytest.mark.parametrize(
    ("layouts", "odd", "names"),
    [
        ("nt", "", []),
        ("nn", "", ["transpose_kernel"]),
        ("tt", "", ["transpose_kernel"]),
        ("tn", "", ["transpose_kernel"]),
        ("nt", "ab", ["repack_kernel"]),
        ("tn", "ab", ["transpose_kernel"]),
        ("nn", "a", ["repack_kernel", "transpose_kernel"]),
        ("ss", "ab", ["repack_kernel"]),
    ],
)
def test_layouts_are_exact(library, layouts, odd, names):
    """Integers of 11 bits, exact as tf32; what surrounds the operands is NaN and never read."""
    for m, n, k in [(137, 200, 70), (64, 129, 64), (130, 61, 131)]:
        a, b = (torch.randint(-1024, 1025, s).float() for s in ((m, k), (k, n)))
        a, b = a / 32, b / 32
        x, y = (
            (laid_out if name in odd else aligned)(tensor, layout)
            for name, tensor, layout in zip("ab", (a, b), layouts)
        )
        c = gemm(library, x, y, *names)
        assert torch.equal(c.double(), a.double() @ b.double())


def test_odd_lines_at_an_aligned_address(library):
    a, b = integers(70, 66, dtype=torch.float32), integers(66, 130, dtype=torch.float32)
    x, y = torch.zeros(66, 73).T[:70], torch.zeros(66, 131)[:, :130]
    x.copy_(a), y.copy_(b)
    assert torch.equal(gemm(library, x, y, "transpose_kernel"), a @ b)


def test_batches(library):
    """Every matrix of a batch is turned, one that a batch shares once: each element is read and written once."""
    batch, m, n, k = 3, 130, 136, 72
    a, b = integers(batch, m, k, dtype=torch.float32), integers(batch, k, n, dtype=torch.float32)
    assert torch.equal(gemm(library, aligned(a, "t"), aligned(b, "n"), "transpose_kernel"), a @ b)
    x, shared = aligned(a, "t"), aligned(b[0], "n").expand(batch, k, n)
    on_hopper(library, x, shared, HIGH)
    c = torch.ops.fastdl_emulated.gemm(x, shared, HIGH)
    launches, read, written, _ = counters(library, "transpose_kernel")
    assert torch.equal(c, a @ b[0])
    assert (launches, read, written) == (2, *[4 * (batch * m * k + k * n)] * 2)


def test_special_values(library):
    """Infinities and NaN as in float32; the largest numbers round to infinity, as by every tf32 kernel."""
    inf, nan = float("inf"), float("nan")
    a, b = torch.randint(1, 4, (70, 72)).float(), torch.randint(1, 4, (72, 66)).float()
    a[0, 0], a[1, 69], a[2, 0], a[2, 1], b[3, 5], a[6, 3] = inf, nan, inf, -inf, -inf, 0
    for layouts in ("nt", "tn"):
        c = gemm(library, aligned(a, layouts[0]), aligned(b, layouts[1]), *["transpose_kernel"] * (layouts == "tn"))
        torch.testing.assert_close(c, a @ b, equal_nan=True, rtol=0, atol=0)
    assert c.isnan().any()
    assert c.isinf().any()
    a[7, 7], b[3, 5] = torch.finfo(torch.float32).max, 1
    assert gemm(library, a, aligned(b, "t"))[7].isinf().all()


@pytest.mark.parametrize("name", ["linear", "mlp", "norm"])
def test_layers_and_their_gradients(library, monkeypatch, name):
    """Every product of a layer's three is made by wgmma, with sums of columns and of gradients' rows beside."""
    monkeypatch.setattr(fastdl.gemm, "_scoped", HIGH)
    x, w, bias, w2 = torch.randn(136, 72), torch.randn(64, 72), torch.randn(64), torch.randn(128, 64)
    for weight in (w, w2):
        rows, g = torch.empty(136, weight.size(1)), torch.empty(136, weight.size(0))
        for a, b in ((rows, weight.T), (g, weight), (g.T, rows)):
            on_hopper(library, a, b, HIGH, turns=0, exits=range(8))

    def run(x, w, bias, w2):
        if name == "linear":
            return functional.linear(x, w, bias)
        if name == "mlp":
            return functional.mlp(x, w, bias, w2, None, activation="gelu")
        layer = fastdl.nn.LinearBatchNormAct(72, 64, bias=True, dtype=x.dtype)
        return torch.func.functional_call(layer, {"linear.weight": w, "linear.bias": bias}, (x,))

    def results(dtype):
        inputs = [t.to(dtype).detach().requires_grad_() for t in (x, w, bias, w2)]
        output = run(*inputs)
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(dtype))
        return [output.detach(), *(t.grad for t in inputs if t.grad is not None)]

    with _library.use("emulated"):
        library.fastdl_emulator_reset_counters()
        ours = results(torch.float32)
        ran = counters(library)[3]
        assert "wgmma_kernel" in ran
        assert "transpose_kernel" in ran
        assert "simt_kernel" not in ran
        assert "::mma_kernel" not in ran
    monkeypatch.setattr(fastdl.gemm, "_scoped", 0)
    with _library.use("reference"):
        exact = results(torch.float64)
    for mine, true in zip(ours, exact, strict=True):
        scale = true.abs().max().clamp(min=1)  # a bias in front of batch norm has no gradient
        assert (mine - true).abs().max() <= 2e-3 * scale, (mine - true).abs().max() / scale


@pytest.mark.parametrize("m", [5, 40])
def test_few_rows(library, m):
    """Tokens times a weight of float32: the transposed product."""
    for n, k in itertools.product([129, 256], [64, 260]):
        a, b = integers(m, k, dtype=torch.float32), integers(k, n, dtype=torch.float32)
        x, y = aligned(a, "n"), aligned(b, "t")
        library.fastdl_emulator_device(16, 227 << 10, 90)
        ways = torch.ops.fastdl_emulated.gemm_candidates(x, y, HIGH).tolist()
        for way in (way for way in ways if way[4] == 2):  # kTokens
            torch.ops.fastdl_emulated.gemm_choose(x, y, HIGH, way)
            assert torch.equal(torch.ops.fastdl_emulated.gemm(x, y, HIGH), a @ b)
        assert any(way[4] == 2 for way in ways)
