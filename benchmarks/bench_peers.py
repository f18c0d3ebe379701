"""The rivals alone, most telling first: baselines of a machine, with nothing of fastdl needed.

`./dev gpu peers` runs this file under a time limit; an interrupted run keeps what was measured.
"""

import pytest
import torch
import torch.nn.functional as F
from protocol import call, cases, compiled, gradients, randn

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CHANNELS_LAST = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# the distinct (C, H = W) of ResNet-50's 53 sites, the heaviest first
SITES = [(64, 112), (256, 56), (64, 56), (128, 56), (512, 28), (128, 28), (256, 28), (1024, 14), (256, 14), (512, 14),
         (2048, 7), (512, 7)]  # fmt: skip


def without_cudnn(function):
    def run(*operands):
        with torch.backends.cudnn.flags(enabled=False):
            return function(*operands)

    return run


def batch_norm(x, weight, bias):
    return F.batch_norm(x, torch.zeros_like(weight), torch.ones_like(weight), weight, bias, training=True)


def batch_norm_add_relu(x, weight, bias, residual):
    return F.relu(batch_norm(x, weight, bias) + residual)


def compare_batch_norm(compare, shape, dtype, layout, direction, with_compile):
    wrap, passes = (call, 2) if direction == "forward" else (gradients, 3)
    c, count = shape[1], torch.Size(shape).numel()
    compare(
        op="batch_norm",
        shape=shape,
        dtype=dtype,
        layout=layout,
        direction=direction,
        operands=lambda: [randn(*shape, dtype=dtype, memory_format=CHANNELS_LAST[layout]), randn(c), randn(c)],
        arms={
            "torch": wrap(batch_norm),  # torch's choice: cuDNN where it takes the dtype, its own kernels elsewhere
            "torch native": wrap(without_cudnn(batch_norm)),
            "compile": wrap(compiled(batch_norm)) if with_compile else None,
        },
        bytes=passes * count * dtype.itemsize,
    )


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("layout", CHANNELS_LAST)
@pytest.mark.parametrize("site", cases(cpu=[(16, 14)], cuda=[SITES[0], SITES[1], SITES[7]]))
def test_batch_norm_bf16(compare, site, layout, direction):
    """ResNet-50's sites at batch 128."""
    n = cases(cpu=[4], cuda=[128])[0]
    compare_batch_norm(compare, (n, site[0], site[1], site[1]), BF16, layout, direction, True)


def test_batch_norm_few_large_channels(compare):
    """The published shape (4, 128, 1024, 1024): 912 us in TileOPs, 1018 us in torch.compile."""
    size = cases(cpu=[64], cuda=[1024])[0]
    compare_batch_norm(compare, (4, 128 * size // 1024, size, size), FP16, "contiguous", "forward", True)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("site", cases(cpu=[(16, 14)], cuda=[SITES[1], SITES[7]]))
def test_batch_norm_add_relu(compare, site, direction):
    """Eager takes ten passes where three are needed."""
    n = cases(cpu=[4], cuda=[128])[0]
    shape = (n, site[0], site[1], site[1])
    image = {"dtype": BF16, "memory_format": torch.channels_last}
    wrap, passes = (call, 3) if direction == "forward" else (gradients, 4)
    compare(
        op="batch_norm add relu",
        shape=shape,
        dtype=BF16,
        layout="channels_last",
        direction=direction,
        operands=lambda: [randn(*shape, **image), randn(site[0]), randn(site[0]), randn(*shape, **image)],
        arms={"torch": wrap(batch_norm_add_relu), "compile": wrap(compiled(batch_norm_add_relu))},
        bytes=passes * torch.Size(shape).numel() * BF16.itemsize,
    )


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", cases(cpu=[FP32], cuda=[BF16, FP32]))
@pytest.mark.parametrize("n", cases(cpu=[2**18], cuda=[2**28, 2**24, 2**20]))
def test_dropout(compare, n, dtype, direction):
    wrap = call if direction == "forward" else gradients
    compare(
        op="dropout",
        shape=(n,),
        dtype=dtype,
        direction=direction,
        operands=lambda: [randn(n, dtype=dtype)],
        arms={"torch": wrap(_dropout), "compile": wrap(compiled(_dropout))},
        bytes=2 * n * dtype.itemsize,
    )


def _dropout(x):
    return F.dropout(x, 0.1)


GEMMS = cases(
    cpu=[(128, 256, 256), (127, 131, 257)],
    cuda=[(4096, 4096, 4096), (4095, 4097, 4099), (16, 4096, 4096), (8192, 8192, 8192), (1024, 1024, 1024),
          (768, 3072, 65536), (256, 1000, 2048), (1, 4096, 4096)],
)  # fmt: skip


@pytest.mark.parametrize("dtype", cases(cpu=[FP32], cuda=[BF16, FP32]))
@pytest.mark.parametrize("shape", GEMMS)
def test_matmul(compare, shape, dtype):
    """(M, N, K): squares, misaligned, skinny, and a deep-K weight gradient."""
    m, n, k = shape
    compare(
        op="matmul",
        shape=shape,
        dtype=dtype,
        layout="nt",
        operands=lambda: [randn(m, k, dtype=dtype), randn(n, k, dtype=dtype)],
        arms={"torch": call(lambda a, b: a @ b.mT)},
        bytes=(m * k + n * k + m * n) * dtype.itemsize,
        flops=2 * m * n * k,
    )


@pytest.mark.parametrize("shape", cases(cpu=[(64, 256, 128)], cuda=[(8192, 3072, 768), (8192, 4096, 1024)]))
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_linear_activation(compare, shape, activation):
    """activation(x W^T + b): pointwise after the product, the vendor's epilogue, and the compiler's."""
    m, n, k = shape
    dtype = cases(cpu=[FP32], cuda=[BF16])[0]
    function = {"gelu": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[activation]

    def eager(x, weight, bias):
        return function(F.linear(x, weight, bias))

    def epilogue(x, weight, bias):
        return torch._addmm_activation(bias, x, weight.mT, use_gelu=activation == "gelu")

    compare(
        op=f"linear {activation}",
        shape=shape,
        dtype=dtype,
        operands=lambda: [randn(m, k, dtype=dtype), randn(n, k, dtype=dtype), randn(n, dtype=dtype)],
        arms={"torch": call(eager), "cublasLt epilogue": call(epilogue), "compile": call(compiled(eager))},
        bytes=(m * k + n * k + m * n) * dtype.itemsize,
        flops=2 * m * n * k,
    )


def parameter_sizes(name):
    """Numbers of elements per tensor: ResNet-50's 161 by their real sizes, a few large, very many small."""
    if name == "resnet50":
        sizes, width = [64 * 3 * 49, 64, 64], 64
        for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for block in range(blocks):
                sizes += [width * planes, planes, planes, planes * planes * 9, planes, planes, planes * planes * 4,
                          planes * 4, planes * 4]  # fmt: skip
                if block == 0:
                    sizes += [width * planes * 4, planes * 4, planes * 4]
                width = planes * 4
        return [*sizes, 2048 * 1000, 1000]
    return {"10 x 16.7M": [2**24] * 10, "10000 x 64": [64] * 10000, "10 x 4096": [4096] * 10, "500 x 64": [64] * 500}[
        name
    ]


def optimizer_arm(kind, **options):
    """A step on parameters of its own; the operands are the gradients' and the parameters' start."""

    def factory(*starts):
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        for parameter, start in zip(parameters, starts):
            parameter.grad = start.clone()
        return kind(parameters, lr=1e-4, **options).step

    return factory


@pytest.mark.parametrize("model", cases(cpu=["10 x 4096", "500 x 64"], cuda=["resnet50", "10000 x 64", "10 x 16.7M"]))
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_optimizer(compare, model, kind):
    sizes = parameter_sizes(model)
    optimizer, options = getattr(torch.optim, kind), {} if kind == "AdamW" else {"momentum": 0.9}
    compare(
        op=kind,
        shape=(len(sizes), sum(sizes)),
        dtype=FP32,
        layout=model,
        direction="step",
        operands=lambda: [randn(n) for n in sizes],
        arms={
            "torch foreach": optimizer_arm(optimizer, foreach=True, **options),
            "torch fused": optimizer_arm(optimizer, fused=True, **options),
        },
        bytes=(28 if kind == "AdamW" else 20) * sum(sizes),
    )


@pytest.mark.parametrize("n", cases(cpu=[8], cuda=[256]))
def test_augment(compare, n):
    """uint8 (N, 3, 256, 256) -> crop 224, flip, normalize, bfloat16 channels_last, as torchvision composes it."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def transform(x, mean, std):
        x = x[:, :, 16:240, 16:240].flip(-1)
        x = (x.float() / 255 - mean) / std
        return x.to(BF16).contiguous(memory_format=torch.channels_last)

    def operands():
        image = randn(n, 3, 256, 256).mul(50).add(128).clamp(0, 255).to(torch.uint8)
        return [image, mean.to(image.device), std.to(image.device)]

    compare(
        op="augment",
        shape=(n, 3, 224, 224),
        dtype=BF16,
        layout="channels_last",
        operands=operands,
        arms={"torch": call(transform), "compile": call(compiled(transform))},
        bytes=3 * n * 3 * 224 * 224,
    )
