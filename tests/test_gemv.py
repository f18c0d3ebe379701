"""Products with at most 4 rows or columns: layouts, alignments, parts of k, epilogues, traffic, repeatability."""

import itertools

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import DTYPES, SEED, assert_forward_as_good, integers, laid_out

import fastdl
from fastdl.activation import CODES
from fastdl.philox import keep_mask

H200, FEW = (132, 227 << 10, 90), (2, 64 << 10, 75)


def on_device(library, device):
    library.fastdl_emulator_device(*device)
    library.fastdl_emulator_reset_counters()


def gemm(a, b):
    return torch.ops.fastdl_emulated.gemm(a, b)


def misaligned(tensor, layout, pitch, offset):
    """The values as a view inside NaNs: rows (of the transpose, for "t") `pitch` apart, the first at `offset`."""
    shape = tensor.mT.shape if layout == "t" else tensor.shape
    view = torch.full((shape[0] * pitch + offset,), float("nan"), dtype=tensor.dtype).as_strided(
        shape, (pitch, 1), offset
    )
    view = view.mT if layout == "t" else view
    view.copy_(tensor)
    return view


@pytest.mark.parametrize("few", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["n", "t", "s"])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_exact_in_every_layout(library, few, layout, side):
    """Sums of small integers are exact until they are stored; what surrounds the operands is NaN and never read."""
    for dtype, (long, k) in itertools.product(DTYPES, [(1, 1), (5, 300), (133, 71), (70, 1030)]):
        vectors, matrix = integers(few, k, dtype=dtype), integers(long, k, dtype=dtype)
        expected = (vectors.double() @ matrix.double().mT).to(dtype)
        for other in "nts":
            on_device(library, FEW)
            if side == "rows":
                c = gemm(laid_out(vectors, other), laid_out(matrix, layout).mT)
            else:
                c = gemm(laid_out(matrix, layout), laid_out(vectors, other).mT).mT
            assert torch.equal(c, expected)
            assert "gemv_kernel" in counters(library)[3]


@pytest.mark.parametrize("layout", ["n", "t"])
@pytest.mark.parametrize(
    ("pitch", "offset"), [(1064, 0), (1064, 8), (1064, 1), (1064, 3), (1061, 0), (1061, 5), (1062, 2)]
)
def test_exact_at_every_alignment(library, layout, pitch, offset):
    """Rows at multiples of 16 bytes, all at one odd address, and each at its own."""
    for dtype, few in itertools.product(DTYPES, [1, 3]):
        for long, k in [(137, 1040), (1040, 137)] if layout == "n" else [(1040, 137), (137, 1040)]:
            matrix, vectors = integers(long, k, dtype=dtype), integers(few, k, dtype=dtype)
            on_device(library, FEW)
            c = gemm(vectors, misaligned(matrix, layout, pitch, offset).mT)
            assert torch.equal(c, (vectors.double() @ matrix.double().mT).to(dtype))


def test_batches(library):
    for dtype, layout in itertools.product(DTYPES, "nt"):
        a, b = integers(5, 3, 70, dtype=dtype), integers(5, 70, 41, dtype=dtype)
        on_device(library, H200)
        c = gemm(a, b if layout == "n" else b.mT.contiguous().mT)
        assert torch.equal(c, (a.double() @ b.double()).to(dtype))
        assert torch.equal(gemm(b.mT, a.mT), c.mT)
        shared = b[:1].expand(5, 70, 41)
        assert torch.equal(gemm(a, shared), (a.double() @ shared.double()).to(dtype))
        assert "gemv_kernel" in counters(library)[3]


@pytest.mark.parametrize("layout", ["n", "t"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deep_products_are_split_and_repeat(library, dtype, layout):
    """Few lines and deep k: parts are added in order by a second launch, so the bits repeat."""
    k = 70_000
    matrix, vectors = integers(7, k, dtype=dtype), integers(2, k, dtype=dtype)
    matrix = matrix if layout == "n" else matrix.mT.contiguous().mT
    for a, b in ((vectors, matrix.mT), (matrix, vectors.mT)):
        on_device(library, H200)
        c = gemm(a, b)
        launches, _, _, names = counters(library)
        assert launches == 2
        assert "split_sum_kernel" in names
        if dtype == torch.float64:
            assert torch.equal(c, a @ b)
        x, y = torch.randn_like(a), torch.randn_like(b)
        exact = x.double() @ y.double()
        torch.testing.assert_close(gemm(x, y).double(), exact, rtol=1e-2, atol=2 * torch.finfo(dtype).eps * k**0.5 * 8)
        assert torch.equal(gemm(x, y), gemm(x, y))


@pytest.mark.parametrize(("activation", "split"), [*((a, False) for a in CODES), ("gelu", True)])
def test_epilogues(library, activation, split):
    """Bias, activation, dropout and residual; the preactivation is saved as it was rounded."""
    for dtype, m in itertools.product(DTYPES if not split else [torch.float32, torch.bfloat16], [1, 4]):
        n, k = (61, 40) if not split else (5, 70_000)
        scale = k**-0.5
        x, w = torch.randn(m, k, dtype=torch.float64).to(dtype), (torch.randn(n, k).double() * scale).to(dtype)
        bias, z = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
        for p, residual in [(0.0, None), (0.3, z)] if m == 1 else [(0.001, None), (1.0, z)]:
            on_device(library, H200)
            assert_forward_as_good(x, w, bias, residual, activation, p)
            launches, _, _, names = counters(library)
            assert "gemv_kernel" in names
            assert launches == 1 + split


def test_epilogue_of_a_matrix_and_few_columns(library):
    x, w, bias = torch.randn(70, 50), torch.randn(3, 50), torch.randn(3)
    on_device(library, H200)
    ours, saved = torch.ops.fastdl_emulated.linear_forward(
        x, w, bias, torch.ones(70, 3), torch.tensor([SEED]), CODES["relu"], 0.3, True
    )
    assert "gemv_kernel" in counters(library)[3]
    preactivation = torch.nn.functional.linear(x, w, bias)
    torch.testing.assert_close(saved, preactivation)
    kept = keep_mask((70, 3), torch.tensor([SEED]), 0.3)
    torch.testing.assert_close(ours, preactivation.relu() * kept / 0.7 + 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("layout", "pitch"), [("n", 1024), ("n", 1027), ("t", 1024), ("t", 1027)])
def test_the_matrix_is_read_once(library, dtype, layout, pitch):
    """Bytes: the matrix once, the vectors once a block, the output once."""
    long, k, few = 1024, 1024, 3
    matrix, vectors = integers(long, k, dtype=dtype), integers(few, k, dtype=dtype)
    on_device(library, H200)
    gemm(vectors, misaligned(matrix, layout, pitch, 0).mT)
    _, read, written, _ = counters(library, "gemv_kernel")
    each = dtype.itemsize
    once = long * k * each
    blocks, rest = divmod(read - once, few * k * each)
    if layout == "n":  # k in one part: every block reads the whole vectors
        assert rest == 0
        assert written == few * long * each
        assert 128 <= blocks <= 256  # each for 4 lines or more
    else:  # parts of k: the blocks of a part read its share
        tiles = long * each // 128
        assert (read - once) == tiles * few * k * each


def test_nan_and_infinity_stay_in_their_line(library):
    on_device(library, H200)
    for dtype, k in itertools.product(DTYPES, [9, 515]):
        x, w = torch.ones(2, k, dtype=dtype), torch.ones(40, k, dtype=dtype)
        x[1, k - 1], w[3, 0], w[39, k - 1] = float("inf"), float("nan"), 0
        for weight in (w, w.mT.contiguous().mT):
            assert torch.equal(gemm(x, weight.mT).isnan(), (x @ weight.mT).isnan())
            assert torch.equal(gemm(x, weight.mT).isinf(), (x @ weight.mT).isinf())


def test_public_functions_reach_it(library):
    from fastdl import _library

    with _library.use("emulated"):
        for a, b in (((7,), (7, 90)), ((90, 7), (7,)), ((3, 7), (7, 90)), ((5, 90, 7), (7,))):
            x, y = torch.randn(a), torch.randn(b)
            on_device(library, H200)
            torch.testing.assert_close(fastdl.matmul(x, y), torch.matmul(x, y))
            assert "gemv_kernel" in counters(library)[3]
