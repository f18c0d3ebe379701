"""matmul and the fused Linear against torch: squares, known networks' layers, few rows, deep k, odd sizes, float32."""

import pytest
import torch
import torch.nn.functional as F
from machine import DEVICE
from protocol import call, cases, compiled, gradients, randn

import fastdl.functional
from fastdl.activation import activate

# M, N, K of output (M, N) = input (M, K) weight (N, K)^T
LAYERS = {
    "resnet-fc": (256, 1000, 2048),
    "bert-mlp": (4096, 3072, 768),
    "bert-out": (4096, 768, 3072),
    "vit-mlp": (12608, 3072, 768),
    "gpt2-attention": (8192, 2304, 768),
    "gpt2-mlp": (8192, 3072, 768),
    "gpt2-projection": (8192, 768, 768),
    "bert-attention": (4096, 768, 768),
    "vit-attention": (12608, 2304, 768),
    "tall": (65536, 384, 768),
    "prime": (2039, 2053, 1031),
    "odd-k": (4096, 4096, 4095),
    "odd-n": (4096, 4095, 4096),
}
SMALL = {"small": (128, 256, 256), "wide": (256, 1024, 256), "prime": (127, 131, 257)}
SIZES = cases(cpu=SMALL, cuda=LAYERS)
DTYPES = cases(cpu=[torch.float32], cuda=[torch.bfloat16, torch.float32])


def product_bytes(m, n, k, dtype):
    return (m * k + n * k + m * n) * dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", cases(cpu=[64, 256, 512], cuda=[2**k for k in range(8, 15)]))
def test_square(compare, n, dtype):
    """The course's example: on CPU tensors fastdl.matmul is torch's kernel, so the rows show its overhead."""
    compare(
        op="matmul",
        shape=(n, n, n),
        dtype=dtype,
        operands=lambda: [randn(n, n, dtype=dtype), randn(n, n, dtype=dtype)],
        arms={"fastdl": call(fastdl.matmul), "torch": call(torch.matmul), "compile": call(compiled(torch.matmul))},
        bytes=product_bytes(n, n, n, dtype),
        flops=2 * n**3,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    cases(
        cpu=[(64, 64, 8192)],
        cuda=[(512, 512, 4096), (768, 768, 8192), (1024, 1024, 8192), (768, 3072, 65536), (1024, 1024, 131072)],
    ),
)
def test_weight_gradient(compare, shape, dtype):
    """Deep K, both operands transposed: grad_output (K, M), input (K, N)."""
    m, n, k = shape
    compare(
        op="matmul",
        shape=shape,
        dtype=dtype,
        operands=lambda: [randn(k, m, dtype=dtype), randn(k, n, dtype=dtype)],
        arms={
            "fastdl": call(lambda a, b: fastdl.matmul(a.mT, b)),
            "torch": call(lambda a, b: a.mT @ b),
            "compile": call(compiled(lambda a, b: a.mT @ b)),
        },
        bytes=product_bytes(m, n, k, dtype),
        flops=2 * m * n * k,
        layout="transposed",
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", ["lines", "columns", "misaligned"])
@pytest.mark.parametrize("m", cases(cpu=[1, 4], cuda=[1, 2, 4, 8, 16, 32, 64]))
@pytest.mark.parametrize(("n", "k"), cases(cpu=[(512, 512)], cuda=[(1024, 4096), (4096, 4096)]))
def test_few_rows(compare, m, n, k, weight, dtype):
    """A weight (N, K) whose k is adjacent, or (K, N) as in grad_input, or with K + 1 of odd rows: memory bounds all."""
    k += weight == "misaligned"

    def product(function):
        return function and (lambda x, w: function(x, w if weight == "columns" else w.mT))

    compare(
        op="few rows",
        shape=(m, n, k),
        dtype=dtype,
        operands=lambda: [randn(m, k, dtype=dtype), randn(*((k, n) if weight == "columns" else (n, k)), dtype=dtype)],
        arms={
            "fastdl": call(product(fastdl.matmul)),
            "torch": call(product(torch.matmul)),
            "compile": call(product(compiled(torch.matmul))),
        },
        bytes=product_bytes(m, n, k, dtype),
        flops=2 * m * n * k,
        layout=weight,
    )


# Of a layer (M, N, K): its three products as they lie, and what the operands are.
FLOAT32_PRODUCTS = {
    "forward": (lambda x, w: (x, w.mT), lambda m, n, k: ((m, k), (n, k))),
    "input gradient": (lambda g, w: (g, w), lambda m, n, k: ((m, n), (n, k))),
    "weight gradient": (lambda g, x: (g.mT, x), lambda m, n, k: ((m, n), (m, k))),
}


@pytest.mark.parametrize(
    "shape",
    cases(
        cpu=[(256, 256, 256)],
        cuda=[*((n, n, n) for n in (1024, 2048, 4096, 8192)), LAYERS["prime"], LAYERS["gpt2-mlp"]],
    ),
)
@pytest.mark.parametrize("product", FLOAT32_PRODUCTS)
@pytest.mark.parametrize("mode", ["highest", "high"])
def test_float32_modes(compare, mode, product, shape):
    """Every way to multiply float32, with its error beside its time: rms of (c - exact) / (|a| |b|) on a part."""
    m, n, k = shape
    lie, sizes = FLOAT32_PRODUCTS[product]

    def in_mode(chosen):
        def run(a, b):
            with fastdl.float32_matmul(chosen):
                return fastdl.matmul(*lie(a, b))

        return run

    def torchs(a, b):
        previous = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(mode)
        try:
            return torch.matmul(*lie(a, b))
        finally:
            torch.set_float32_matmul_precision(previous)

    def error(operands, result):
        a, b = lie(*operands)
        a, b = a[:256].double(), b[:, :256].double()
        return float((((result[:256, :256].double() - a @ b) / (a.abs() @ b.abs())) ** 2).mean().sqrt())

    ours = {"fastdl": "emulated", "as it is": "highest"} if mode == "highest" else {"fastdl": "high"}
    compare(
        op=f"matmul float32 {mode}",
        shape=shape,
        dtype=torch.float32,
        operands=lambda: [randn(*size) for size in sizes(m, n, k)],
        arms={**{name: call(in_mode(chosen)) for name, chosen in ours.items()}, "torch": call(torchs)},
        bytes=product_bytes(m, n, k, torch.float32),
        flops=2 * m * n * k,
        layout=product,
        error=error,
    )


@pytest.mark.parametrize("n", cases(cpu=[256, 512], cuda=[256, 512, 1024, 2048, 4096]))
def test_cpu_against_gpu(compare, n):
    """As in the course: one product on the CPU by NumPy and by torch, on the GPU, and there and back again."""

    def there_and_back(a, b):
        return fastdl.matmul(a.to(DEVICE), b.to(DEVICE)).cpu()

    compare(
        op="matmul from the host's memory",
        shape=(n, n, n),
        dtype=torch.float32,
        operands=lambda: [torch.randn(n, n), torch.randn(n, n)],
        arms={
            "fastdl": call(there_and_back),
            "torch": call(lambda a, b: (a.to(DEVICE) @ b.to(DEVICE)).cpu()),
            "torch on the CPU": call(torch.matmul),
            "numpy": call(lambda a, b: a.numpy() @ b.numpy()),
        },
        bytes=product_bytes(n, n, n, torch.float32),
        flops=2 * n**3,
        layout="host",
    )


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", list(SIZES))
@pytest.mark.parametrize(("activation", "p"), [(None, 0.0), ("gelu", 0.0), ("relu", 0.1)])
def test_linear(compare, layer, activation, p, dtype, direction):
    """dropout(activation(linear(input))); backward gives all three gradients."""
    m, n, k = SIZES[layer]

    def ours(x, w, b):
        return fastdl.functional.linear(x, w, b, activation=activation, dropout=p)

    def theirs(x, w, b):
        return F.dropout(activate(F.linear(x, w, b), activation), p)

    arm, products = (call, 1) if direction == "forward" else (gradients, 2)
    compare(
        op=f"linear {activation or 'plain'}" + (f" dropout {p}" if p else ""),
        shape=(m, n, k),
        dtype=dtype,
        operands=lambda: [randn(m, k, dtype=dtype), randn(n, k, dtype=dtype), randn(n, dtype=dtype)],
        arms={"fastdl": arm(ours), "torch": arm(theirs), "compile": arm(compiled(theirs))},
        bytes=products * product_bytes(m, n, k, dtype),
        flops=products * 2 * m * n * k,
        direction=direction,
    )
