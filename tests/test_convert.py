"""convert and revert: same objects, same names, same numbers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastdl.nn
from fastdl.convert import Absorbed, convert, revert

STEMS = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Linear"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.0),
            nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 10), nn.GELU(approximate="tanh"), nn.Linear(10, 4))

    def forward(self, input):
        return self.head(self.features(input))


def names(model):
    return [(name, type(module).__name__) for name, module in model.named_modules()]


@pytest.mark.parametrize("stem", STEMS)
def test_becomes_and_returns(stem):
    arguments = {"B": (5,), "D": (0.3,), "L": (5, 4)}[stem[0]]
    module = getattr(nn, stem)(*arguments)
    before = set(module.__dict__)
    parameters = dict(module.named_parameters())
    assert convert(module) is module
    assert type(module) is getattr(fastdl.nn, stem)
    assert set(getattr(fastdl.nn, stem)(*arguments).__dict__) <= set(module.__dict__)
    assert all(parameters[name] is parameter for name, parameter in module.named_parameters())
    revert(module)
    assert type(module) is getattr(nn, stem)
    assert set(module.__dict__) == before


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_same_numbers(fuse, training):
    model = Net().train(training)
    ours = convert(copy.deepcopy(model), fuse=fuse)
    input = torch.randn(4, 3, 8, 8, requires_grad=True)
    expected, got = model(input), ours(input)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), input), torch.autograd.grad(expected.sum(), input))
    assert list(model.state_dict()) == list(ours.state_dict())
    for mine, theirs in zip(ours.buffers(), model.buffers()):
        torch.testing.assert_close(mine, theirs)


def test_identity_is_kept():
    """Parameters, references, hooks and the optimizer's state all still point at the model."""
    model = Net()
    linear, calls = model.head[1], []
    linear.register_forward_hook(lambda *_: calls.append(1))
    parameters = list(model.parameters())
    convert(model)
    assert model.head[1] is linear
    assert type(linear) is fastdl.nn.Linear
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    model(torch.randn(4, 3, 8, 8))
    assert calls == [1]


def test_fuse_takes_what_follows_and_gives_it_back():
    model = Net().train()
    kinds, state = names(model), list(model.state_dict())
    convert(model, fuse=True)
    assert model.features[1].activation == "relu"
    assert model.head[1].activation == "gelu_tanh"
    assert [type(m) is Absorbed for m in model.features] == [False, False, True, True, False, False]
    assert model.head[3].activation is None
    assert list(model.state_dict()) == state
    model.eval()
    revert(model)
    assert names(model) == kinds
    assert not any(module.training for module in model.modules())
    assert all(type(m).__module__.startswith("torch.") for m in model.features)


def test_fuse_is_idempotent():
    model = convert(convert(Net(), fuse=True), fuse=True)
    assert model.features[1].activation == "relu"
    revert(model)
    assert type(model.features[2]) is nn.ReLU


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("another slope", [nn.Linear(3, 3), nn.LeakyReLU(0.2)]),
        ("dropout before activation", [nn.Linear(3, 3), nn.Tanh(), nn.ReLU()]),
        ("no neighbour", [nn.ReLU(), nn.Linear(3, 3)]),
    ],
)
def test_fuse_leaves_alone(name, layers):
    model = convert(nn.Sequential(*layers), fuse=True)
    assert not any(isinstance(m, Absorbed) for m in model)


def test_fuse_order_is_kept():
    """Dropout then activation is not activation then dropout: only the dropout is taken."""
    model = convert(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.ReLU()), fuse=True)
    assert model[0].dropout == 0.5
    assert model[0].activation is None
    assert type(model[2]) is nn.ReLU


def test_fuse_respects_hooks_and_sharing():
    hooked = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    shared = nn.Linear(3, 3)
    twice = nn.ModuleList([nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Tanh())])

    class Branching(nn.Sequential):
        def forward(self, input):
            return self[1](self[0](input)) + self[0](input)

    for model in (hooked, twice, Branching(nn.Linear(3, 3), nn.ReLU())):
        convert(model, fuse=True)
        assert not any(isinstance(m, Absorbed) for m in model.modules())


def test_leaves_subclasses_and_patched_modules():
    class Mine(nn.Linear):
        pass

    patched = nn.Linear(2, 2)
    patched.forward = lambda input: input
    parametrized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    model = nn.ModuleList([Mine(2, 2), nn.LazyLinear(3), patched, parametrized, nn.SyncBatchNorm(2)])
    kinds = [type(m) for m in model]
    assert [type(m) for m in convert(model)] == kinds


def test_report_names_each_change():
    lines = []
    convert(Net(), fuse=True, report=lines.append)
    assert "features.1: BatchNorm2d -> fastdl.nn.BatchNorm2d" in lines
    assert "features.1: computes 2 (ReLU), 3 (Dropout) as well" in lines
    convert(model := nn.Linear(2, 2), report=lines.append)
    assert lines[-1] == "(the model itself): Linear -> fastdl.nn.Linear"
    revert(model, report=lines.append)
    assert lines[-1] == "(the model itself): fastdl.nn.Linear -> Linear"


def test_own_modules_are_not_reverted():
    model = nn.Sequential(fastdl.nn.Linear(3, 3, activation="relu"))
    revert(model)
    assert type(model[0]) is fastdl.nn.Linear
    assert model[0].activation == "relu"


def test_copies_and_pickles():
    model = convert(Net(), fuse=True).eval()
    input = torch.randn(2, 3, 8, 8)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(clone(input), model(input))
        assert type(revert(clone).features[2]) is nn.ReLU


def test_trains_as_before():
    """An optimizer made before the conversion keeps training the converted model."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.head[1].weight.detach().clone()
    convert(model, fuse=True)(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.head[1].weight, before)
