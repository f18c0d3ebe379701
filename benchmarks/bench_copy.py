"""The ceilings themselves, as rows: copy bandwidth against size, and the matrix rate per dtype.

Also the example to copy for a new bench_<op>.py.
"""

import pytest
import torch
from protocol import call, cases, compiled, randn


@pytest.mark.parametrize("n", cases(cpu=[2**14, 2**18, 2**22], cuda=[2**k for k in range(16, 31, 2)]))
def test_copy(compare, n):
    """x (n,) -> a copy: 4 bytes read and 4 written per element."""
    compare(
        op="copy",
        shape=(n,),
        dtype=torch.float32,
        operands=lambda: [randn(n), torch.empty_like(randn(n))],
        arms={
            "torch": call(lambda x, out: out.copy_(x)),
            "torch clone": call(lambda x, out: x.clone()),
            "compile": call(compiled(lambda x, out: x.clone())),
        },
        bytes=8 * n,
    )


@pytest.mark.parametrize("dtype", cases(cpu=[torch.float32], cuda=[torch.bfloat16, torch.float16, torch.float32]))
@pytest.mark.parametrize("n", cases(cpu=[256], cuda=[1024, 4096, 8192]))
def test_matmul(compare, n, dtype):
    """a (n, n) times b (n, n): 2 n^3 operations."""
    compare(
        op="matmul",
        shape=(n, n, n),
        dtype=dtype,
        operands=lambda: [randn(n, n, dtype=dtype), randn(n, n, dtype=dtype)],
        arms={"torch": call(torch.mm)},
        bytes=3 * n * n * dtype.itemsize,
        flops=2 * n**3,
    )
