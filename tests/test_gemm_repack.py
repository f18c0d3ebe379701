"""Operands that TMA cannot read: a pass pads their lines, and Hopper's tensor cores take the product after all."""

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import integers, laid_out

from fastdl import _library, matmul


def on_hopper(library):
    """A device of which products of this file's sizes keep the tensor cores busy longer than a pass takes."""
    library.fastdl_emulator_device(16, 227 << 10, 90)
    library.fastdl_emulator_reset_counters()


@pytest.mark.parametrize(
    ("layouts", "dtype"),
    [*((layouts, torch.bfloat16) for layouts in ("nn", "nt", "tn", "tt", "sn", "ns")), ("nn", torch.float16)],
)
def test_odd_strides_and_addresses(library, layouts, dtype):
    """Lines at odd addresses and an odd number of elements apart, inside NaNs: exact, and by wgmma."""
    m, n, k = 1537, 1541, 263
    a, b = integers(m, k, dtype=dtype), integers(k, n, dtype=dtype)
    on_hopper(library)
    c = torch.ops.fastdl_emulated.gemm(laid_out(a, layouts[0]), laid_out(b, layouts[1]))
    launches, _, _, names = counters(library)
    assert torch.equal(c, (a.float() @ b.float()).to(dtype))
    assert "wgmma_kernel" in names
    assert ("repack_kernel" in names, launches) == (True, 3)


def test_batches(library):
    """Every matrix of a batch, and one matrix that a whole batch shares: that is read and padded once."""
    batch, m, n, k = 3, 900, 901, 263
    a, b = integers(batch, m, k, dtype=torch.bfloat16), integers(batch, k, n, dtype=torch.bfloat16)
    on_hopper(library)
    c = torch.ops.fastdl_emulated.gemm(laid_out(a, "n"), laid_out(b, "t"))
    assert torch.equal(c, (a.float() @ b.float()).to(c.dtype))
    assert counters(library)[0] == 3
    shared = laid_out(b[0], "n").expand(batch, k, n)
    c = torch.ops.fastdl_emulated.gemm(laid_out(a, "n"), shared)
    launches, read, written, _ = counters(library, "repack_kernel")
    assert torch.equal(c, (a.float() @ b[0].float()).to(c.dtype))
    assert (launches, read, written) == (2, *[2 * (batch * m * k + k * n)] * 2)


def test_one_matrix_for_a_batch_needs_no_pass(library):
    a, b = integers(4, 200, 64, dtype=torch.bfloat16), integers(64, 136, dtype=torch.bfloat16)
    on_hopper(library)
    c = torch.ops.fastdl_emulated.gemm(a, b.expand(4, 64, 136))
    assert torch.equal(c, (a.float() @ b.float()).to(c.dtype))
    launches, _, _, names = counters(library)
    assert (launches, "wgmma_kernel" in names) == (1, True)


def test_matmul_and_gradients(library):
    a = laid_out(integers(1537, 263, dtype=torch.bfloat16), "n").requires_grad_()
    b = laid_out(integers(263, 1541, dtype=torch.bfloat16), "n").requires_grad_()
    on_hopper(library)
    with _library.use("emulated"):
        c = matmul(a, b)
        grads = torch.autograd.grad(c, (a, b), torch.ones_like(c))
    exact = [t.detach().float().requires_grad_() for t in (a, b)]
    wanted = torch.autograd.grad((exact[0] @ exact[1]).sum(), exact)
    assert all(torch.equal(g, w.to(torch.bfloat16)) for g, w in zip(grads, wanted))
    assert "repack_kernel" in counters(library)[3]
