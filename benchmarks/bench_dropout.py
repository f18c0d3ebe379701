"""dropout against torch: alone, after an activation, before a residual."""

import pytest
import torch
import torch.nn.functional as F
from protocol import call, cases, compiled, gradients, randn

import fastdl.functional as fF

SIZES = cases(cpu=[2**16, 2**22], cuda=[2**16, 2**20, 2**24, 2**28])
DTYPES = (torch.float32, torch.bfloat16)


def theirs(x, residual=None):
    y = F.dropout(x, 0.1)
    return y if residual is None else y + residual


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_dropout(compare, n, dtype, direction):
    wrap = call if direction == "forward" else gradients
    compare(
        op="dropout", shape=(n,), dtype=dtype, direction=direction,
        operands=lambda: [randn(n, dtype=dtype)],
        arms={"fastdl": wrap(lambda x: fF.dropout(x, 0.1)), "torch": wrap(theirs), "compile": wrap(compiled(theirs))},
        bytes=2 * n * dtype.itemsize,
    )  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_and_residual(compare, n, dtype):
    compare(
        op="dropout + residual", shape=(n,), dtype=dtype,
        operands=lambda: [randn(n, dtype=dtype), randn(n, dtype=dtype)],
        arms={"fastdl": call(lambda x, z: fF.dropout(x, 0.1, residual=z)), "torch": call(theirs),
              "compile": call(compiled(theirs))},
        bytes=3 * n * dtype.itemsize,
    )  # fmt: skip
