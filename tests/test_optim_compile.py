"""Optimizers under torch.compile: the step alone, and whole training steps whose learning rate moves."""

import copy

import pytest
import torch
from test_optim import NAMES, assert_near, give_gradients, pair, parameters
from torch._dynamo.utils import counters

from fastdl import optim


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_step_is_one_op(name, lr):
    """Beside those that bring the learning rate to it."""
    params = parameters(sizes=((8, 8), (5,)))
    ours, theirs, other = pair(name, params, weight_decay=0.1, lr=0.01)
    ours.param_groups[0]["lr"] = lr
    graphs = []
    compiled = torch.compile(ours.step, backend=lambda module, inputs: graphs.append(module.graph) or module)
    for k in range(5):
        give_gradients(params, other)
        compiled() if k else ours.step()
        theirs.step()
    assert_near(params, other)
    (graph,) = graphs
    assert sum(node.target is torch.ops.fastdl.optim_step_.default for node in graph.nodes) == 1
    assert sum(node.op.startswith("call") for node in graph.nodes) <= 5


class Training:
    """A small network with its optimizer and scheduler; `step` is what a user compiles."""

    def __init__(self, model, name, lr, options):
        self.model = model
        lr = torch.tensor(lr) if options.pop("tensor", False) else lr
        self.optimizer = getattr(optim, name)(model.parameters(), lr=lr, **options)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.7)

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("SGD", torch.float32, {"momentum": 0.9}),
        ("SGD", torch.float32, {"momentum": 0.9, "dampening": 0.5}),
        ("AdamW", torch.float32, {"max_grad_norm": 0.1, "ema_decay": 0.9}),
        ("AdamW", torch.bfloat16, {"stochastic_rounding": True}),
        ("RMSprop", torch.float32, {}),
    ],
)
def test_a_compiled_training_step(name, dtype, options, tensor):
    """Every bit is the eager step's, and nothing is compiled again after the first two steps, which make states."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(dtype)
    runs = [Training(m, name, 0.05, {**options, "tensor": tensor}) for m in (model, copy.deepcopy(model))]
    steps = [torch.compile(runs[0].step, backend="aot_eager"), runs[1].step]
    graphs = []
    for k in range(6):
        x = torch.randn(4, 6).to(dtype)
        losses = []
        for run, step in zip(runs, steps):
            torch.manual_seed(k)  # of the seed that rounding draws once
            losses.append(step(x))
            run.scheduler.step()
        assert torch.equal(*losses)
        assert all(map(torch.equal, *(run.model.parameters() for run in runs)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1:] == graphs[1:2] * 5
