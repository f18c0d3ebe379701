"""The batch norm kernels on their own: every regime on small devices, traffic, launches, repeatability."""

import ctypes

import pytest
import torch

from fastdl import _C
from fastdl.batch_norm import batch_norm_backward_reference, batch_norm_reference, read_mask

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# regime -> (multiprocessors, shared bytes of a block, capability) under which the shapes below take it
DEVICES = {
    "block": (132, 227 << 10, 90),
    "cluster": (4, 14 << 10, 90),
    "group": (4, 12 << 10, 80),
    "stream": (2, 3 << 10, 80),
}
SHAPES = [(8, 3, 24, 24), (7, 5, 19, 17), (33, 4, 41), (2, 6, 700)]


@pytest.fixture
def library(emulated_library):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("fastdl_emulated::batch_norm_forward", "CPU"):
        pytest.skip("no kernel")
    library = ctypes.CDLL(next(p for p in torch.ops.loaded_libraries if "emulated" in p))
    library.fastdl_emulator_kernels.restype = ctypes.c_char_p
    yield library
    library.fastdl_emulator_device(*DEVICES["block"])


def plan(shape, dtype, operands, device, *, reduces=True):
    n, c, s = *shape[:2], torch.Size(shape[2:]).numel()
    multiprocessors, shared_bytes, capability = device
    packs = dtype != torch.float64
    return _C.batch_norm_plan(
        n, c, s, dtype.itemsize, operands, reduces, packs, multiprocessors, shared_bytes, capability >= 90
    )


def on_device(library, name):
    library.fastdl_emulator_device(*DEVICES[name])
    library.fastdl_emulator_reset_counters()


def counters(library):
    counts = [ctypes.c_uint64() for _ in range(3)]
    library.fastdl_emulator_counters(b"", *map(ctypes.byref, counts))
    names = library.fastdl_emulator_kernels().decode()
    library.fastdl_emulator_reset_counters()
    return *(c.value for c in counts), names


def arguments(shape, dtype, *, residual, activation, p, training=True, mask=False):
    C = shape[1]
    stats = dtype if dtype == torch.float64 else torch.float32
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    z = torch.randn(shape).to(dtype) if residual else None
    seed = torch.tensor([1234567]) if p > 0 else None
    channel = [torch.randn(C, dtype=stats) for _ in range(3)] + [torch.rand(C, dtype=stats) + 0.5, torch.tensor(3)]
    return (x, z, *channel, seed, training, 0.1, 1e-5, activation, p, mask)


def cloned(args):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]


def compare(shape, dtype, *, residual=False, activation=0, p=0.0, training=True, mask=False):
    """Forward and backward of the kernels against the formulas."""
    args = arguments(shape, dtype, residual=residual, activation=activation, p=p, training=training, mask=mask)
    ours, theirs = cloned(args), cloned(args)
    y, mean, invstd, bits = torch.ops.fastdl_emulated.batch_norm_forward(*ours)
    expected = batch_norm_reference(*theirs)
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(y, expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mean, expected[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(invstd, expected[2], rtol=1e-6, atol=1e-7)
    for k in (4, 5, 6):  # running statistics and counter
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-6, atol=1e-6)
    if mask:
        passes = (expected[0] != 0) if activation == 1 else (expected[0] > 0)
        assert torch.equal(read_mask(bits, y)[passes], torch.ones_like(passes)[passes])
    x, z, weight, bias, seed = (args[i] for i in (0, 1, 2, 3, 7))
    grad = torch.randn(shape).to(dtype)
    rest = (seed, training, 1e-5, activation, p, True, residual, True)
    back = torch.ops.fastdl_emulated.batch_norm_backward(
        grad, x, None if mask else z, weight, bias, mean, invstd, bits, *rest
    )
    formula = batch_norm_backward_reference(grad, x, z, weight, bias, *expected[1:3], None, *rest)
    for a, b in zip(back, formula):
        scale = 1 if b.numel() == 0 else b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("regime", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regimes_agree_with_the_formula(library, regime, shape):
    for dtype in DTYPES:
        on_device(library, regime)
        compare(shape, dtype)
        compare(shape, dtype, training=False)
    seen = {plan(shape, dtype, operands, DEVICES[regime])["regime"] for dtype in DTYPES for operands in (1, 2)}
    assert regime in seen


@pytest.mark.parametrize("regime", DEVICES)
@pytest.mark.parametrize("activation", [1, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_residual_activation_and_dropout_in_every_regime(library, regime, activation, mask):
    on_device(library, regime)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in SHAPES[:3]:
            compare(shape, dtype, residual=True, activation=activation, p=0.3, mask=mask)
    compare(SHAPES[0], torch.float16, residual=True, activation=3 + activation, p=0.01)


@pytest.mark.parametrize("shape", [(6, 40, 7, 7), (9, 37, 14, 14), (5, 24, 3, 3), (4, 33, 1, 9)], ids=str)
def test_packs_of_short_rows(library, shape):
    for multiprocessors in (4, 6, 10):  # packs of 8, 4, 2
        library.fastdl_emulator_device(multiprocessors, 227 << 10, 90)
        for dtype in (torch.float32, torch.bfloat16):
            compare(shape, dtype)
            compare(shape, dtype, residual=True, activation=1, p=0.5, mask=True)
            compare(shape, dtype, residual=True, activation=2, training=False, mask=True)
