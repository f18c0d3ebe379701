"""fastdl.matmul against torch.matmul: shapes, strides, dtypes, gradients, errors."""

import copy

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import fastdl
from fastdl.gemm import GEMM, gemm

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.bfloat16]

# name -> (shape of input, shape of other)
SHAPES = {
    "dot": ((7,), (7,)),
    "vector-matrix": ((7,), (7, 5)),
    "matrix-vector": ((5, 7), (7,)),
    "square": ((64, 64), (64, 64)),
    "odd": ((13, 17), (17, 31)),
    "one": ((1, 1), (1, 1)),
    "row": ((1, 300), (300, 33)),
    "deep": ((3, 1031), (1031, 5)),
    "wide": ((70, 9), (9, 260)),
    "no-rows": ((0, 4), (4, 5)),
    "no-depth": ((3, 0), (0, 5)),
    "no-columns": ((3, 4), (4, 0)),
    "batch": ((3, 5, 7), (3, 7, 4)),
    "batch-matrix": ((2, 3, 5, 7), (7, 4)),
    "matrix-batch": ((5, 7), (3, 7, 4)),
    "batch-vector": ((3, 5, 7), (7,)),
    "vector-batch": ((7,), (3, 7, 4)),
    "broadcast": ((2, 1, 5, 7), (3, 7, 4)),
    "empty-batch": ((0, 5, 7), (7, 4)),
}


def integers(shape, dtype, device, low=-4, high=5):
    """Small integers: every sum is exact in every dtype, whatever its order."""
    return torch.randint(low, high, shape, device=device).to(dtype)


def layout(tensor, kind):
    """Return the same values under another layout."""
    if kind == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if kind == "unaligned":
        return torch.cat([tensor.new_full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)
    if kind == "strided":
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), float("nan"))
        wide[..., 1 : 2 * tensor.shape[-1] + 1 : 2] = tensor
        return wide[..., 1 : 2 * tensor.shape[-1] + 1 : 2]
    return tensor


@pytest.fixture(params=["contiguous", "transposed", "unaligned", "strided"])
def kind(request):
    return request.param


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_exact(backend, name):
    backend.requires("gemm")
    for dtype in DTYPES:
        a, b = (integers(s, dtype, backend.device) for s in SHAPES[name])
        torch.testing.assert_close(
            fastdl.matmul(a, b), torch.matmul(a.cpu(), b.cpu()).to(backend.device), rtol=0, atol=0
        )


def test_layouts_exact(backend, kind):
    backend.requires("gemm")
    for dtype in FLOATS:
        a, b = integers((2, 37, 41), dtype, backend.device), integers((2, 41, 29), dtype, backend.device)
        expected = torch.matmul(a.cpu(), b.cpu()).to(backend.device)
        for left, right in ((layout(a, kind), b), (a, layout(b, kind)), (layout(a, kind), layout(b, kind))):
            torch.testing.assert_close(fastdl.matmul(left, right), expected, rtol=0, atol=0)
            torch.testing.assert_close(fastdl.matmul(left[0], right[0]), expected[0], rtol=0, atol=0)


def test_expanded_and_overlapping(backend):
    backend.requires("gemm")
    row = integers((1, 19), torch.float32, backend.device)
    windows = integers((63,), torch.float32, backend.device).as_strided((23, 19), (2, 1))
    for a, b in ((row.expand(23, 19), windows.mT), (windows, windows.mT), (row[0, :1].expand(4, 19), windows.mT)):
        torch.testing.assert_close(fastdl.matmul(a, b), a.contiguous() @ b.contiguous(), rtol=0, atol=0)


def test_accuracy(backend):
    backend.requires("gemm")
    for dtype in DTYPES:
        for m, k, n in ((33, 200, 65), (5, 2000, 7)):
            a = torch.randn(m, k, dtype=dtype, device=backend.device)
            b = torch.randn(k, n, dtype=dtype, device=backend.device)
            exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()

            def error(c, exact=exact, scale=scale):
                return ((c.double() - exact).abs() / scale).max().item()

            assert error(fastdl.matmul(a, b)) <= 2 * error(torch.matmul(a, b)) + 1e-15  # float64 is its own reference


def test_nan_and_inf_propagate(backend):
    backend.requires("gemm")
    a, b = torch.randn(9, 20, device=backend.device), torch.randn(20, 11, device=backend.device)
    a[2, 3], a[4, 19], b[0, 5] = float("nan"), float("inf"), float("-inf")
    torch.testing.assert_close(fastdl.matmul(a, b), a @ b, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dot", "vector-matrix", "matrix-vector", "odd", "batch", "batch-matrix", "broadcast"])
def test_gradients(backend, name):
    backend.requires("gemm")
    a, b = (torch.randn(s, dtype=torch.float64, device=backend.device, requires_grad=True) for s in SHAPES[name])
    fast = backend.name == "emulated"  # a random projection of the Jacobian
    assert torch.autograd.gradcheck(fastdl.matmul, (a, b), fast_mode=fast)
    assert torch.autograd.gradgradcheck(fastdl.matmul, (a, b), fast_mode=fast)


def test_expanded_gradient(backend):
    backend.requires("gemm")
    a = torch.randn(6, 7, device=backend.device, requires_grad=True)
    b = torch.randn(7, 5, device=backend.device, requires_grad=True)
    fastdl.matmul(a, b).sum().backward()
    ones = torch.ones(6, 5, device=backend.device)
    torch.testing.assert_close(a.grad, ones @ b.detach().T)
    torch.testing.assert_close(b.grad, a.detach().T @ ones)


def test_op_db(backend):
    backend.requires("gemm")
    info = next(op for op in op_db if op.name == "matmul")
    for sample in info.sample_inputs(backend.device, torch.float32, requires_grad=False):
        expected = torch.matmul(sample.input, *sample.args)
        torch.testing.assert_close(fastdl.matmul(sample.input, *sample.args), expected, rtol=1e-5, atol=1e-4)


def test_opcheck():
    for a, b in (((4, 5), (5, 3)), ((2, 4, 5), (2, 5, 3)), ((0, 5), (5, 3))):
        torch.library.opcheck(GEMM.overload, (torch.randn(a), torch.randn(b)))


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (4, 5)), ((2, 3, 4), (3, 4, 5)), ((), (3,)), ((3,), (4,)), ((2, 3), (4,))]
)
def test_shape_errors_are_torchs(backend, a, b):
    left, right = torch.randn(a, device=backend.device), torch.randn(b, device=backend.device)
    with pytest.raises(RuntimeError) as theirs:
        torch.matmul(left, right)
    with pytest.raises(RuntimeError) as ours:
        fastdl.matmul(left, right)
    assert str(ours.value) == str(theirs.value)


def test_dtype_error_is_torchs(backend):
    with pytest.raises(RuntimeError, match=r"same dtype|but got"):
        fastdl.matmul(torch.randn(2, 3, device=backend.device).half(), torch.randn(3, 4, device=backend.device))


def test_other_dtypes_and_out(backend):
    a, b = integers((4, 5), torch.int64, backend.device), integers((5, 6), torch.int64, backend.device)
    if backend.name != "cuda":  # torch has no integer product on CUDA
        assert torch.equal(fastdl.matmul(a, b), torch.matmul(a, b))
    a, b = a.float(), b.float()
    out = torch.empty(4, 6, device=backend.device)
    assert fastdl.matmul(a, b, out=out) is out
    assert torch.equal(out, a @ b)


def test_autocast(backend):
    backend.requires("gemm")
    a, b = torch.randn(8, 16, device=backend.device), torch.randn(16, 8, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert fastdl.matmul(a, b).dtype == torch.bfloat16
        assert fastdl.matmul(a.double(), b.double()).dtype == torch.float64


def test_compile_and_vmap():
    a, b = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)
    compiled = torch.compile(fastdl.matmul, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), a @ b)
    torch.testing.assert_close(torch.vmap(fastdl.matmul)(a, b), a @ b)
    torch.testing.assert_close(
        torch.func.grad(lambda x: fastdl.matmul(x, b[0]).sum())(a[0]), torch.ones(4, 6) @ b[0].T.detach()
    )


def test_compile_kernel_path():
    """The op itself, as on a GPU, forward and backward in one graph."""
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    loss = torch.compile(lambda x, y: gemm(x, y).square().sum(), fullgraph=True, backend="aot_eager")(a, b)
    loss.backward()
    expected = torch.autograd.grad((a @ b).square().sum(), (a, b))
    torch.testing.assert_close((a.grad, b.grad), expected)


def test_results_are_repeatable(backend):
    backend.requires("gemm")
    a, b = torch.randn(40, 300, device=backend.device), torch.randn(300, 20, device=backend.device)
    first = fastdl.matmul(a, b)
    assert all(torch.equal(first, fastdl.matmul(a, b)) for _ in range(300 if backend.name == "cuda" else 5))


def test_inputs_are_left_alone(backend):
    backend.requires("gemm")
    a, b = torch.randn(5, 6, device=backend.device), torch.randn(6, 7, device=backend.device)
    before = copy.deepcopy((a, b))
    fastdl.matmul(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shapes", [((70, 40), (40, 33)), ((2, 9, 40), (2, 40, 7)), ((1, 40), (40, 33)), ((40,), (40,))]
)
def test_scale(backend, dtype, shapes):
    """scale * (a b), and gradients through it, on every family."""
    a, b = (torch.randn(s, device=backend.device).to(dtype).requires_grad_() for s in shapes)
    exact = [t.detach().double().requires_grad_() for t in (a, b)]
    ours, true = fastdl.matmul(a, b, scale=0.125), 0.125 * torch.matmul(*exact)
    tolerance = 4 * torch.finfo(dtype).eps * 40**0.5
    torch.testing.assert_close(ours.double(), true, rtol=tolerance, atol=tolerance)
    for x, y in zip(torch.autograd.grad(ours.sum(), (a, b)), torch.autograd.grad(true.sum(), exact)):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)
    out = torch.empty_like(ours)
    assert fastdl.matmul(a.detach(), b.detach(), scale=2, out=out) is out
    torch.testing.assert_close(out.double(), 16 * true.detach(), rtol=tolerance, atol=16 * tolerance)
