"""Blocks of linear layers against torch: nn.MLP and nn.LinearBatchNormAct, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from machine import DEVICE
from protocol import call, cases, compiled, gradients, randn

import fastdl.functional
import fastdl.nn
from fastdl.activation import activate

# rows, features, hidden features
FEED_FORWARD = cases(
    cpu={"small": (128, 64, 256), "wide": (256, 256, 512)},
    cuda={"bert": (4096, 768, 3072), "vit-b": (12608, 768, 3072), "gpt2": (8192, 768, 3072),
          "llama-1b": (8192, 2048, 8192)},
)  # fmt: skip
# rows, in_features, out_features
NORMALIZED = cases(
    cpu={"small": (128, 64, 128), "wide": (512, 256, 256)},
    cuda={"tabular": (8192, 512, 512), "head": (1024, 2048, 1024), "simclr": (4096, 2048, 8192),
          "deep": (65536, 256, 256)},
)  # fmt: skip
DTYPES = cases(cpu=[torch.float32], cuda=[torch.bfloat16, torch.float32])
DIRECTIONS = {"forward": call, "backward": gradients}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", list(FEED_FORWARD))
def test_mlp(compare, size, dtype, direction):
    """linear(gelu(linear(input))); backward gives all five gradients."""
    m, k, h = FEED_FORWARD[size]

    def theirs(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

    arm, products = DIRECTIONS[direction], 1 if direction == "forward" else 2
    compare(
        op="mlp gelu",
        shape=(m, k, h),
        dtype=dtype,
        operands=lambda: [randn(*s, dtype=dtype) for s in ((m, k), (h, k), (h,), (k, h), (k,))],
        arms={
            "fastdl": arm(lambda *tensors: fastdl.functional.mlp(*tensors, activation="gelu_tanh")),
            "torch": arm(theirs),
            "compile": arm(compiled(theirs)),
        },
        bytes=products * (2 * m * k + 2 * h * k + 2 * m * h) * dtype.itemsize,
        flops=products * 4 * m * k * h,
        direction=direction,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", list(NORMALIZED))
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_linear_batch_norm(compare, size, dtype, p, direction):
    """dropout(relu(batch_norm(linear(input)))) in training; backward gives all gradients."""
    m, k, n = NORMALIZED[size]
    block = fastdl.nn.LinearBatchNormAct(k, n, device=DEVICE, dtype=dtype, dropout=p)
    norm, parameters = block.norm, list(block.parameters())

    def theirs(x):
        y = F.linear(x, block.linear.weight)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, True)
        return F.dropout(activate(y, "relu"), p)

    def backward(function):
        def factory(x):
            leaves = [x.detach().requires_grad_(), *parameters]
            output = function(leaves[0])
            grad_output = torch.randn_like(output)
            return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)

        return function and factory

    arm, products = (call, 1) if direction == "forward" else (backward, 2)
    compare(
        op="linear + batch_norm + relu" + (f" + dropout {p}" if p else ""),
        shape=(m, k, n),
        dtype=dtype,
        operands=lambda: [randn(m, k, dtype=dtype)],
        arms={"fastdl": arm(block), "torch": arm(theirs), "compile": arm(compiled(theirs))},
        bytes=products * (m * k + n * k + 3 * m * n) * dtype.itemsize,
        flops=products * 2 * m * k * n,
        direction=direction,
    )
