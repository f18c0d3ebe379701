"""batch_norm against torch at the sites of ResNet-50, in MLPs, and where channels are few, many or long.

Peers: torch as it chooses (cuDNN for float32 and float16 images), torch's own kernels, torch.compile; timm's
BatchNormAct2d and apex's groupbn where they are installed.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from machine import CUDA, DEVICE
from protocol import call, cases, compiled, randn

import fastdl.functional as fF

# (channels, height = width, form): times it occurs; 53 in all.
RESNET50 = {
    (64, 112, "relu"): 1, (64, 56, "relu"): 6, (256, 56, "add relu"): 3, (256, 56, "plain"): 1, (128, 56, "relu"): 1,
    (128, 28, "relu"): 7, (512, 28, "add relu"): 4, (512, 28, "plain"): 1, (256, 28, "relu"): 1, (256, 14, "relu"): 11,
    (1024, 14, "add relu"): 6, (1024, 14, "plain"): 1, (512, 14, "relu"): 1, (512, 7, "relu"): 5,
    (2048, 7, "add relu"): 3, (2048, 7, "plain"): 1,
}  # fmt: skip
DIRECTIONS = ("forward", "backward")
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def ours(form, training):
    def run(x, weight, bias, mean, var, residual=None):
        activation = "relu" if "relu" in form else None
        return fF.batch_norm(x, mean, var, weight, bias, training, activation=activation, residual=residual)

    return run


def theirs(form, training):
    def run(x, weight, bias, mean, var, residual=None):
        y = F.batch_norm(x, mean, var, weight, bias, training)
        y = y if residual is None else y + residual
        return F.relu(y) if "relu" in form else y

    return run


def without_cudnn(function):
    def run(*operands):
        with torch.backends.cudnn.flags(enabled=False):
            return function(*operands)

    return run if CUDA else None


def of_module(name, make):
    """Return a function of a peer's module, its parameters and buffers being the operands; None if not installed."""
    try:
        peer = importlib.import_module(name)
    except ImportError:
        return None
    modules = {}

    def run(x, weight, bias, mean, var, *residual):
        key = (x.size(1), x.dtype)
        module = modules[key] if key in modules else modules.setdefault(key, make(peer, x.size(1)).to(DEVICE))
        state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
        return torch.func.functional_call(module, state, (x, *residual))

    return run


def timm(form, training):
    """Eager batch norm, then the activation; no residual."""
    if form != "relu":
        return None
    return of_module("timm.layers", lambda peer, channels: peer.BatchNormAct2d(channels).train(training))


def apex(form, training, dtype, layout):
    """The persistent kernels of groupbn: float16, channels_last."""
    if dtype != torch.float16 or layout != "channels_last":
        return None
    make = lambda peer, channels: peer.BatchNorm2d_NHWC(channels, fuse_relu="relu" in form).train(training)  # noqa: E731
    return of_module("apex.contrib.groupbn.batch_norm", make)


def backward(function):
    """Arm that times the gradients at input, weight, bias and residual, as gradients() does without the statistics."""

    def factory(x, weight, bias, mean, var, *residual):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, *residual)]
        output = function(*leaves[:3], mean, var, *leaves[3:])
        grad = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)

    return factory if function is not None else None


def wrapped(wrap, function):
    return None if function is None else wrap(function)


def measure(compare, shape, dtype, direction, form="plain", training=True, layout="nchw"):
    """Bytes: each operand and result once; forward 2 passes, backward 3, one more with a residual."""
    wrap = call if direction == "forward" else backward
    passes = (2 if direction == "forward" else 3) + ("add" in form)

    def operands():
        x, *residual = (randn(*shape, dtype=dtype, memory_format=FORMATS[layout]) for _ in range(1 + ("add" in form)))
        return [x, *(randn(shape[1]) for _ in range(3)), randn(shape[1]).square() + 0.5, *residual]

    compare(
        op=f"batch_norm {form}" if training else f"batch_norm eval {form}",
        shape=shape,
        dtype=dtype,
        layout=layout,
        direction=direction,
        operands=operands,
        arms={
            "fastdl": wrap(ours(form, training)),
            "torch": wrap(theirs(form, training)),
            "torch native": wrapped(wrap, without_cudnn(theirs(form, training))),
            "compile": wrap(compiled(theirs(form, training))),
            "timm": wrapped(wrap, timm(form, training)),
            "apex": wrapped(wrap, apex(form, training, dtype, layout)),
        },
        bytes=passes * torch.Size(shape).numel() * dtype.itemsize,
    )


@pytest.mark.parametrize("dtype", cases(cpu=[torch.float32], cuda=[torch.bfloat16, torch.float32]), ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("batch", cases(cpu=[4], cuda=[32, 256]))
@pytest.mark.parametrize("site", cases(cpu=list(RESNET50)[4:8:3], cuda=list(RESNET50)), ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resnet50(compare, site, batch, layout, dtype, direction):
    channels, size, form = site
    measure(compare, (batch, channels, size, size), dtype, direction, form, layout=layout)


@pytest.mark.parametrize("site", cases(cpu=list(RESNET50)[7:8], cuda=[k for k in RESNET50 if k[1] < 112]), ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_channels_last(compare, site, direction):
    """What cuDNN and apex fuse."""
    channels, size, form = site
    batch, dtype = cases(cpu=(4, torch.float32), cuda=(128, torch.float16))
    measure(compare, (batch, channels, size, size), dtype, direction, form, layout="channels_last")


@pytest.mark.parametrize("dtype", cases(cpu=[torch.float32], cuda=[torch.bfloat16, torch.float16]), ids=str)
@pytest.mark.parametrize(
    "shape",
    cases(
        cpu=[(512, 256)],
        cuda=[
            (128, 1024),
            (8192, 4096),
            (3136, 256),
            (20, 6, 65536),
            (4, 128, 1024, 1024),
            (64, 8192, 4, 4),
            (16, 32, 16, 16),
            (2, 3, 2048, 2048),
        ],
    ),
    ids=str,
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_other_shapes(compare, shape, dtype, direction):
    measure(compare, shape, dtype, direction)


@pytest.mark.parametrize("dtype", cases(cpu=[torch.float32], cuda=[torch.bfloat16]), ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_evaluation(compare, layout, dtype, direction):
    batch, size = cases(cpu=(4, 14), cuda=(128, 56))
    measure(compare, (batch, 256, size, size), dtype, direction, "relu", training=False, layout=layout)
