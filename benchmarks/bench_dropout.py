"""dropout against torch: alone, after an activation, before a residual, of whole channels, in channels_last."""

import math

import pytest
import torch
import torch.nn.functional as F
from protocol import call, cases, compiled, gradients, randn

import fastdl.functional as fF

SIZES = cases(cpu=[2**16, 2**22], cuda=[2**16, 2**20, 2**24, 2**28])
DTYPES = cases(cpu=[torch.float32, torch.bfloat16], cuda=[torch.float32, torch.bfloat16, torch.float16, torch.float64])
IMAGES = cases(cpu=[(8, 64, 28, 28)], cuda=[(256, 64, 56, 56), (256, 512, 14, 14)])
WRAPS = {"forward": call, "backward": gradients}


def arms(direction, ours, theirs):
    wrap = WRAPS[direction]
    return {"fastdl": wrap(ours), "torch": wrap(theirs), "compile": wrap(compiled(theirs))}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", WRAPS)
def test_dropout(compare, n, dtype, direction):
    compare(
        op="dropout", shape=(n,), dtype=dtype, direction=direction,
        operands=lambda: [randn(n, dtype=dtype)],
        arms=arms(direction, lambda x: fF.dropout(x, 0.1), lambda x: F.dropout(x, 0.1)),
        bytes=2 * n * dtype.itemsize,
    )  # fmt: skip


@pytest.mark.parametrize("n", SIZES[-1:])
@pytest.mark.parametrize("p", [0.001, 0.5])
def test_probability(compare, n, p):
    """A small p takes 32 random bits an element instead of 16."""
    compare(
        op=f"dropout p={p}", shape=(n,), dtype=torch.bfloat16,
        operands=lambda: [randn(n, dtype=torch.bfloat16)],
        arms=arms("forward", lambda x: fF.dropout(x, p), lambda x: F.dropout(x, p)),
        bytes=4 * n,
    )  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_and_residual(compare, n, dtype):
    compare(
        op="dropout + residual", shape=(n,), dtype=dtype,
        operands=lambda: [randn(n, dtype=dtype), randn(n, dtype=dtype)],
        arms=arms("forward", lambda x, z: fF.dropout(x, 0.1, residual=z), lambda x, z: F.dropout(x, 0.1) + z),
        bytes=3 * n * dtype.itemsize,
    )  # fmt: skip


@pytest.mark.parametrize("n", SIZES[-1:])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("direction", WRAPS)
def test_activation_and_dropout(compare, n, activation, direction):
    compare(
        op=f"{activation} + dropout", shape=(n,), dtype=torch.bfloat16, direction=direction,
        operands=lambda: [randn(n, dtype=torch.bfloat16)],
        arms=arms(direction, lambda x: fF.dropout(x, 0.1, activation=activation),
                  lambda x: F.dropout(getattr(F, activation)(x), 0.1)),
        bytes=(2 if direction == "forward" else 3) * 2 * n,
    )  # fmt: skip


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("function", ["dropout", "dropout2d"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_images(compare, shape, function, memory_format):
    make = lambda: randn(*shape, dtype=torch.bfloat16, memory_format=memory_format)  # noqa: E731
    layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
    compare(
        op=f"{function} {layout}", shape=shape, dtype=torch.bfloat16,
        operands=lambda: [make()],
        arms=arms("forward", lambda x: getattr(fF, function)(x, 0.1), lambda x: getattr(F, function)(x, 0.1)),
        bytes=4 * math.prod(shape),
    )  # fmt: skip
