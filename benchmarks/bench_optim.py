"""A whole optimizer step against torch's fused and foreach ones: few large tensors, ResNet-50, many small ones."""

import pytest
import torch
from machine import CUDA
from protocol import cases, randn

import fastdl.optim

RESNET50 = [(64, 147), *[(256, 256)] * 60, *[(512, 1024)] * 20, *[(64,)] * 80]  # 161 tensors of its mix of sizes
MODELS = {
    "10 x 1M": [(1024, 1024)] * 10,
    "resnet-like 161": RESNET50,
    "10000 x 64": [(64,)] * 10_000,
    **({"10 x 16.7M": [(4096, 4096)] * 10} if CUDA else {}),
}
BYTES = {"SGD": 20, "Adam": 28, "AdamW": 28, "RMSprop": 20, "Adagrad": 20}  # read and written per float32 parameter
OPTIONS = {"SGD": {"momentum": 0.9}}


def step_of(library, name, shapes, **options):
    """Arm that times step() on parameters of its own."""

    def factory(seed):
        params = [torch.nn.Parameter(randn(*shape)) for shape in shapes]
        for p in params:
            p.grad = randn(*p.shape)
        optimizer = getattr(library, name)(params, lr=1e-3, **OPTIONS.get(name, {}), **options)
        optimizer.step()
        return optimizer.step

    return factory


@pytest.mark.parametrize("model", cases(cpu=list(MODELS), cuda=list(MODELS)))
@pytest.mark.parametrize("name", BYTES)
def test_step(compare, name, model):
    shapes = MODELS[model]
    count = sum(torch.Size(s).numel() for s in shapes)
    fused = None if name == "RMSprop" else step_of(torch.optim, name, shapes, fused=True)
    compare(
        op=f"{name} {model}", shape=(len(shapes), count), dtype=torch.float32,
        operands=lambda: [torch.empty(count * BYTES[name] // 4, device="meta")],
        arms={"fastdl": step_of(fastdl.optim, name, shapes), "torch fused": fused,
              "torch foreach": step_of(torch.optim, name, shapes, foreach=True)},
        bytes=count * BYTES[name],
    )  # fmt: skip
