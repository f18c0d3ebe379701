"""What users get wrong most: torch's exception type and first words, raised before anything is written."""

import pytest
import torch
from torch import nn

import fastdl.functional as FF
import fastdl.nn as fnn
from fastdl import data, matmul, optim

X = torch.randn(4, 3, 5, 5)
MEAN, VAR = torch.zeros(3), torch.ones(3)


def parameter():
    return [nn.Parameter(torch.ones(3))]


# name: (ours, torch's or None where torch has no such thing, type, first words)
CASES = {
    "BatchNorm2d of 3-D": (
        lambda: fnn.BatchNorm2d(3)(X[0]), lambda: nn.BatchNorm2d(3)(X[0]),
        ValueError, "expected 4D input (got 3D input)"),
    "channels": (
        lambda: fnn.BatchNorm2d(4)(X), lambda: nn.BatchNorm2d(4)(X),
        RuntimeError, "running_mean should contain 3 elements not 4"),
    "one value per channel": (
        lambda: fnn.BatchNorm1d(3)(X[:1, :, 0, 0]), lambda: nn.BatchNorm1d(3)(X[:1, :, 0, 0]),
        ValueError, "Expected more than 1 value per channel when training"),
    "eps": (
        lambda: fnn.BatchNorm2d(3, eps=0.0)(X), lambda: nn.BatchNorm2d(3, eps=0.0)(X),
        ValueError, "batch_norm eps must be positive during training, but got 0.0"),
    "integers": (
        lambda: fnn.BatchNorm2d(3)(X.long()), lambda: nn.BatchNorm2d(3)(X.long()),
        NotImplementedError, "\"batch_norm\" not implemented for 'Long'"),
    "mixed dtype": (
        lambda: fnn.BatchNorm2d(3)(X.double()), lambda: nn.BatchNorm2d(3)(X.double()),
        RuntimeError, "mixed dtype (CPU): all inputs must share same datatype."),
    "other device": (
        lambda: FF.batch_norm(X.to("meta"), MEAN, VAR, training=True),
        lambda: nn.functional.batch_norm(X.to("meta"), MEAN, VAR, training=True),
        RuntimeError, "Tensor on device cpu is not on the expected device meta!"),
    "no statistics": (
        lambda: FF.batch_norm(X, None, None), lambda: nn.functional.batch_norm(X, None, None),
        RuntimeError, "running_mean must be defined in evaluation mode"),
    "residual of batch norm": (
        lambda: fnn.BatchNorm2d(3)(X, residual=X[:1]), None,
        RuntimeError, "batch_norm: residual must have the input's shape (4, 3, 5, 5), got (1, 3, 5, 5); expand"),
    "activation": (
        lambda: fnn.BatchNorm2d(3, activation="selu"), None,
        ValueError, "BatchNorm2d: activation must be None or one of relu"),
    "Dropout": (
        lambda: fnn.Dropout(1.1), lambda: nn.Dropout(1.1),
        ValueError, "dropout probability has to be between 0 and 1, but got 1.1"),
    "residual of dropout": (
        lambda: fnn.Dropout()(X, residual=X[:1]), None,
        RuntimeError, "dropout: residual must have the input's shape (4, 3, 5, 5), got (1, 3, 5, 5); expand"),
    "Linear's shape": (
        lambda: FF.linear(torch.ones(2, 3), torch.ones(5, 4)),
        lambda: nn.functional.linear(torch.ones(2, 3), torch.ones(5, 4)),
        RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    "Linear's dtype": (
        lambda: FF.linear(torch.ones(2, 3).half(), torch.ones(5, 3), torch.ones(5)),
        lambda: nn.functional.linear(torch.ones(2, 3).half(), torch.ones(5, 3), torch.ones(5)),
        RuntimeError, "mat1 and mat2 must have the same dtype, but got Half and Float"),
    "MLP's shape": (
        lambda: fnn.MLP(4, 8)(torch.ones(2, 3)), lambda: nn.Linear(4, 8)(torch.ones(2, 3)),
        RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x8)"),
    "one row to a block with batch norm": (
        lambda: fnn.LinearBatchNormAct(3, 4)(torch.ones(1, 3)), lambda: nn.BatchNorm1d(4)(torch.ones(1, 4)),
        ValueError, "Expected more than 1 value per channel when training, got input size"),
    "matmul's shape": (
        lambda: matmul(torch.ones(2, 3), torch.ones(4, 5)), lambda: torch.matmul(torch.ones(2, 3), torch.ones(4, 5)),
        RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    "lr": (
        lambda: optim.Adam(parameter(), lr=-1.0), lambda: torch.optim.Adam(parameter(), lr=-1.0),
        ValueError, "Invalid learning rate: -1.0"),
    "weight_decay": (
        lambda: optim.SGD(parameter(), weight_decay=-1.0), lambda: torch.optim.SGD(parameter(), weight_decay=-1.0),
        ValueError, "Invalid weight_decay value: -1.0"),
    "betas": (
        lambda: optim.AdamW(parameter(), betas=(1.0, 0.9)), lambda: torch.optim.AdamW(parameter(), betas=(1.0, 0.9)),
        ValueError, "Invalid beta parameter at index 0: 1.0"),
    "epsilon": (
        lambda: optim.Adam(parameter(), eps=-1e-8), lambda: torch.optim.Adam(parameter(), eps=-1e-8),
        ValueError, "Invalid epsilon value: -1e-08"),
    "momentum": (
        lambda: optim.SGD(parameter(), momentum=-0.5), lambda: torch.optim.SGD(parameter(), momentum=-0.5),
        ValueError, "Invalid momentum value: -0.5"),
    "nesterov": (
        lambda: optim.SGD(parameter(), nesterov=True), lambda: torch.optim.SGD(parameter(), nesterov=True),
        ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    "no parameters": (
        lambda: optim.RMSprop([]), lambda: torch.optim.RMSprop([]),
        ValueError, "optimizer got an empty parameter list"),
    "l1": (lambda: optim.SGD(parameter(), l1=-1.0), None, ValueError, "Invalid l1 value: -1.0"),
    "max_grad_norm": (
        lambda: optim.Adagrad(parameter(), max_grad_norm=0.0), None, ValueError, "Invalid max_grad_norm value: 0.0"),
    "ema_decay": (lambda: optim.AdamW(parameter(), ema_decay=1.5), None, ValueError, "Invalid ema_decay value: 1.5"),
    "crop larger than the image": (
        lambda: data.BatchTransform(9)(X), None, ValueError, "BatchTransform: "),
    "std of zero": (
        lambda: data.BatchTransform(4, mean=0.5, std=0.0), None, ValueError, "BatchTransform: std"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_gets_torchs_words(name):
    ours, theirs, kind, words = CASES[name]
    for call in (ours, theirs):
        if call is not None:
            with pytest.raises(kind) as caught:
                call()
            assert caught.type is kind
            assert str(caught.value).startswith(words)
    assert torch.equal(MEAN, torch.zeros(3))
    assert torch.equal(VAR, torch.ones(3))


def test_a_call_that_failed_left_the_module_as_it_was():
    module = fnn.BatchNorm2d(3, dropout=0.5)
    before, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    for bad in (X.long(), X.double(), X[:, :2], X[0]):
        with pytest.raises((RuntimeError, ValueError)):
            module(bad)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
