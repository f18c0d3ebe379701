"""The block Linear, BatchNorm1d, activation, dropout."""

import pytest
import torch

import fastdl.nn
from fastdl.activation import activate

pytest.importorskip("fastdl.batch_norm")


def test_block_is_its_parts():
    block = fastdl.nn.LinearBatchNormAct(6, 5, activation="silu", dtype=torch.float64)
    x, z = torch.randn(9, 6, dtype=torch.float64, requires_grad=True), torch.randn(9, 5, dtype=torch.float64)
    y = block.linear(x)
    variance, mean = torch.var_mean(y, 0, correction=0)
    expected = activate((y - mean) / (variance + 1e-5).sqrt() * block.norm.weight + block.norm.bias + z, "silu")
    out = block(x, residual=z)
    torch.testing.assert_close(out, expected)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad(out.square().sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), inputs))


def test_state_dict_and_eval():
    block = fastdl.nn.LinearBatchNormAct(6, 5, bias=True, activation="relu", dropout=0.5)
    twin = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5), "norm": torch.nn.BatchNorm1d(5)})
    twin.load_state_dict(block.state_dict())
    block(torch.randn(8, 6))
    twin.load_state_dict(block.state_dict())
    block.eval(), twin.eval()
    x = torch.randn(4, 6)
    torch.testing.assert_close(block(x), twin["norm"](twin["linear"](x)).relu())


def test_bad_arguments():
    with pytest.raises(ValueError, match="activation must be"):
        fastdl.nn.LinearBatchNormAct(6, 5, activation="tanh")
    with pytest.raises(ValueError, match="dropout probability"):
        fastdl.nn.LinearBatchNormAct(6, 5, dropout=2)
