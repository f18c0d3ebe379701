"""fold: one layer that computes layer and batch norm in evaluation."""

import copy

import pytest
import torch
from torch import nn

import fastdl.nn as fnn
from fastdl import fold

LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6), "1d"),
    "fastdl linear": (lambda: fnn.Linear(6, 8, bias=False), (5, 6), "1d"),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), (2, 4, 9), "1d"),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, bias=False), (2, 4, 7, 7), "2d"),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7), "2d"),
    "conv3d": (lambda: nn.Conv3d(2, 8, 2), (2, 2, 4, 4, 4), "3d"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2), (2, 4, 5, 5), "2d"),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(4, 8, 3, groups=2, bias=False), (2, 4, 5), "1d"),
}


def trained(kind, source, **extras):
    """A norm whose every value matters, as after training."""
    norm = getattr(source, f"BatchNorm{kind}")(8, **extras).eval()
    for values in (norm.running_mean, norm.weight, norm.bias):
        if values is not None:
            nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.3, 2)
    return norm


@pytest.mark.parametrize("source", [nn, fnn], ids=["torch", "fastdl"])
@pytest.mark.parametrize("name", LAYERS)
def test_is_the_layer_and_the_norm(name, source):
    make, shape, kind = LAYERS[name]
    for extras in ({}, {"affine": False}, {"eps": 0.1}):
        layer, norm, x = make().eval().double(), trained(kind, source, **extras).double(), torch.randn(shape).double()
        before = copy.deepcopy((layer.state_dict(), norm.state_dict()))
        folded = fold(layer, norm)
        assert type(folded) is type(layer)
        torch.testing.assert_close(folded(x), norm(layer(x)))
        torch.testing.assert_close((layer.state_dict(), norm.state_dict()), before)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("name", ["linear", "fastdl linear", "conv2d"])
def test_the_norms_activation_follows(name, activation):
    make, shape, kind = LAYERS[name]
    layer, norm = make().eval(), trained(kind, fnn, activation=activation, dropout=0.5)
    folded, x = fold(layer, norm), torch.randn(shape)
    assert not folded.training
    torch.testing.assert_close(folded(x), norm(layer(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(folded)(x), folded(x))


def test_half_precision_rounds_once():
    layer, norm = nn.Linear(6, 8).eval(), trained("1d", nn)
    exact = fold(copy.deepcopy(layer).bfloat16().double(), copy.deepcopy(norm).double())
    folded = fold(layer.bfloat16(), norm)
    assert folded.weight.dtype == torch.bfloat16
    assert torch.equal(folded.weight, exact.weight.bfloat16())


def test_what_cannot_be_folded():
    layer, norm = nn.Linear(6, 8).eval(), trained("1d", nn)
    for bad in ((nn.ReLU(), norm), (layer, nn.LayerNorm(8)), (norm, layer)):
        with pytest.raises(TypeError, match="fold: takes a Linear or convolution and a BatchNorm, got"):
            fold(*bad)
    weights = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)).eval()
    cases = {
        "in evaluation": (nn.Linear(6, 8), norm),
        "call .eval": (layer, nn.BatchNorm1d(8)),
        "no running statistics": (layer, nn.BatchNorm1d(8, track_running_stats=False).eval()),
        "must be the layer's 8 outputs, got 6": (layer, nn.BatchNorm1d(6).eval()),
        "'relu' stands between": (fnn.Linear(6, 8, activation="relu").eval(), norm),
        "computed": (weights, norm),
    }
    for message, modules in cases.items():
        with pytest.raises(ValueError, match=f"fold: .*{message}"):
            fold(*modules)
