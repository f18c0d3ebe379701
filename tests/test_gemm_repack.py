"""Operands that TMA cannot read: a pass pads their lines, and Hopper's tensor cores take the product after all."""

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import integers, laid_out

WGMMA = 2  # Family in csrc/gemm/plan_types.h


def on_hopper(library, a, b, precision=0, turns=None, exits=(0,)):
    """A device with wgmma, which is chosen even where the sizes of a test do not pay for a pass."""
    library.fastdl_emulator_device(16, 227 << 10, 90)
    for exit in exits:  # what goes with the product: fastdl/tune.py
        ways = torch.ops.fastdl_emulated.gemm_candidates(a, b, precision, exit).tolist()
        way = next(way for way in ways if way[0] == WGMMA and turns in (None, way[4]))
        torch.ops.fastdl_emulated.gemm_choose(a, b, precision, way, exit)
    library.fastdl_emulator_reset_counters()


@pytest.mark.parametrize(
    ("layouts", "dtype"),
    [*((layouts, torch.bfloat16) for layouts in ("nn", "nt", "tn", "tt", "sn", "ns")), ("nn", torch.float16)],
)
def test_odd_strides_and_addresses(library, layouts, dtype):
    """Lines at odd addresses and an odd number of elements apart, inside NaNs: exact, and by wgmma."""
    m, n, k = 137, 141, 75
    a, b = integers(m, k, dtype=dtype), integers(k, n, dtype=dtype)
    x, y = laid_out(a, layouts[0]), laid_out(b, layouts[1])
    on_hopper(library, x, y)
    c = torch.ops.fastdl_emulated.gemm(x, y)
    launches, _, _, names = counters(library)
    assert torch.equal(c, (a.float() @ b.float()).to(dtype))
    assert "wgmma_kernel" in names
    assert ("repack_kernel" in names, launches) == (True, 3)


def test_batches(library):
    """Every matrix of a batch, and one matrix that a whole batch shares: that is read and padded once."""
    batch, m, n, k = 3, 130, 135, 73
    a, b = integers(batch, m, k, dtype=torch.bfloat16), integers(batch, k, n, dtype=torch.bfloat16)
    x, y = laid_out(a, "n"), laid_out(b, "t")
    on_hopper(library, x, y)
    c = torch.ops.fastdl_emulated.gemm(x, y)
    assert torch.equal(c, (a.float() @ b.float()).to(c.dtype))
    assert counters(library)[0] == 3
    shared = laid_out(b[0], "n").expand(batch, k, n)
    on_hopper(library, x, shared)
    c = torch.ops.fastdl_emulated.gemm(x, shared)
    launches, read, written, _ = counters(library, "repack_kernel")
    assert torch.equal(c, (a.float() @ b[0].float()).to(c.dtype))
    assert (launches, read, written) == (2, *[2 * (batch * m * k + k * n)] * 2)


def test_one_matrix_for_a_batch_needs_no_pass(library):
    a, b = integers(4, 200, 64, dtype=torch.bfloat16), integers(64, 136, dtype=torch.bfloat16)
    on_hopper(library, a, b.expand(4, 64, 136))
    c = torch.ops.fastdl_emulated.gemm(a, b.expand(4, 64, 136))
    assert torch.equal(c, (a.float() @ b.float()).to(c.dtype))
    launches, _, _, names = counters(library)
    assert (launches, "wgmma_kernel" in names) == (1, True)
