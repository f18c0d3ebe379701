"""A whole optimizer step against torch's fused, foreach and compiled ones and apex: few large tensors, ResNet-50, many
small ones; the step of mixed precision with clipping and averages; all in bfloat16.

On CUDA every case has a row of device time and one of the host's time a call, which for ours includes the launch.
"""

import importlib
import importlib.util

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


APEX = {"SGD": "FusedSGD", "Adam": "FusedAdam", "AdamW": "FusedAdam", "Adagrad": "FusedAdagrad"}


def tensors(shapes, dtype=torch.float32):
    """Parameters of these shapes, with gradients."""
    params = [torch.nn.Parameter(randn(*shape, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = randn(*p.shape, dtype=dtype)
    return params


def step_of(make, shapes, wrap=lambda step: step, dtype=torch.float32):
    """Arm that times the step of make(parameters) on parameters of its own."""

    def factory(seed):
        optimizer = make(tensors(shapes, dtype))
        optimizer.step()
        return wrap(optimizer.step)

    return factory


def optimizer_of(library, name, **options):
    return lambda params: getattr(library, name)(params, lr=1e-3, **OPTIONS.get(name, {}), **options)


def compiled_step(step):
    torch._dynamo.reset()
    return torch.compile(step, mode="max-autotune-no-cudagraphs")


def apex(name):
    """apex's optimizer of this name, or None where apex is not installed."""
    if not CUDA or name not in APEX or importlib.util.find_spec("apex") is None:
        return None
    options = {"adam_w_mode": name == "AdamW"} if "Adam" in name else {}
    return optimizer_of(importlib.import_module("apex.optimizers"), APEX[name], **options)


@pytest.mark.parametrize("model", cases(cpu=list(MODELS), cuda=list(MODELS)))
@pytest.mark.parametrize("name", BYTES)
def test_step(compare, name, model):
    shapes = MODELS[model]
    count = sum(torch.Size(s).numel() for s in shapes)
    fused = None if name == "RMSprop" else step_of(optimizer_of(torch.optim, name, fused=True), shapes)
    foreach = optimizer_of(torch.optim, name, foreach=True)
    rival, few = apex(name), len(shapes) < 1000  # compiling thousands of tensors takes longer than all the rest
    compare(
        op=f"{name} {model}", shape=(len(shapes), count), dtype=torch.float32,
        operands=lambda: [torch.empty(count * BYTES[name] // 4, device="meta")],
        arms={"fastdl": step_of(optimizer_of(fastdl.optim, name), shapes), "torch fused": fused,
              "torch foreach": step_of(foreach, shapes),
              "compile": step_of(foreach, shapes, compiled_step) if CUDA and few else None,
              "apex": rival and step_of(rival, shapes)},
        bytes=count * BYTES[name],
    )  # fmt: skip


def mixed_precision(shapes, ours):
    """Arm: unscale, skip on overflow, clip, AdamW, and the averages of the weights; torch's takes a call for each."""

    def factory(seed):
        params = tensors(shapes)
        device = params[0].device
        scale, found_inf = torch.full((), 2.0, device=device), torch.zeros((), device=device)
        extras = {"max_grad_norm": 1.0, "ema_decay": 0.999} if ours else {"fused": True}
        optimizer = (fastdl.optim if ours else torch.optim).AdamW(params, lr=1e-3, **extras)
        optimizer.found_inf = found_inf
        if ours:
            optimizer.grad_scale = scale
            optimizer.step()
            return optimizer.step
        averages = [p.detach().clone() for p in params]
        grads, inverse = [p.grad for p in params], 1 / scale

        def step():
            torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, inverse)
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            torch._foreach_lerp_(averages, [p.detach() for p in params], 0.001)

        step()
        return step

    return factory


@pytest.mark.parametrize("model", [m for m in MODELS if m != "10000 x 64"])
def test_mixed_precision_step(compare, model):
    shapes = MODELS[model]
    count = sum(torch.Size(s).numel() for s in shapes)
    compare(
        op=f"AMP + clip + AdamW + EMA {model}", shape=(len(shapes), count), dtype=torch.float32,
        operands=lambda: [torch.empty(count * 10, device="meta")],
        arms={"fastdl": mixed_precision(shapes, True), "torch": mixed_precision(shapes, False)},
        bytes=40 * count,
    )  # fmt: skip


@pytest.mark.parametrize("model", [m for m in MODELS if m != "10000 x 64"])
def test_bfloat16_step(compare, model):
    """All in bfloat16; ours rounds without bias, torch's to nearest."""
    shapes, dtype = MODELS[model], torch.bfloat16
    count = sum(torch.Size(s).numel() for s in shapes)
    ours = optimizer_of(fastdl.optim, "AdamW", stochastic_rounding=True)
    compare(
        op=f"AdamW bf16 {model}", shape=(len(shapes), count), dtype=dtype,
        operands=lambda: [torch.empty(count * 7, dtype=dtype, device="meta")],
        arms={"fastdl": step_of(ours, shapes, dtype=dtype),
              "torch fused": step_of(optimizer_of(torch.optim, "AdamW", fused=True), shapes, dtype=dtype)},
        bytes=14 * count,
    )  # fmt: skip
