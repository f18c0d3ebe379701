"""Equal inputs give equal bits, whatever order threads and blocks run in and whenever copies arrive."""

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import SEED, on_device

from fastdl import tune
from fastdl.activation import CODES

RANDOM, TIMES = 2, 30  # order and completion of the emulator; a GPU repeats 300 times (test_results_are_repeatable)
HIGH, ALWAYS_EMULATED, WGMMA = 1, 3, 2
# kernel -> device, dtype, precision, (m, n, k)
FAMILIES = {
    "simt_kernel": ("old", torch.float32, 0, (150, 136, 96)),
    "mma_kernel": ("large tiles", torch.bfloat16, 0, (150, 136, 96)),
    "mma_kernel, tf32": ("large tiles", torch.float32, HIGH, (150, 136, 96)),
    "wgmma_kernel": ("hopper", torch.bfloat16, 0, (136, 264, 136)),
    "gemv_kernel": ("old", torch.bfloat16, 0, (3, 264, 520)),
    "split_sum_kernel": ("small tiles", torch.bfloat16, 0, (40, 72, 2504)),
    "repack_kernel": ("hopper", torch.float16, 0, (136, 265, 131)),
    "emulated_mma_kernel": ("large tiles", torch.float32, ALWAYS_EMULATED, (150, 136, 96)),
    "emulated_wgmma_kernel": ("hopper", torch.float32, ALWAYS_EMULATED, (150, 136, 96)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_repeat_in_every_order(library, family):
    """A layer with everything that its epilogue has, and both gradients with their sums."""
    device, dtype, precision, (m, n, k) = FAMILIES[family]
    x, w, bias, z, g = (torch.randn(s).to(dtype) for s in [(m, k), (n, k), (n,), (m, n), (m, n)])
    seed, gelu, ops = torch.tensor([SEED]), CODES["gelu"], torch.ops.fastdl_emulated
    on_device(library, device)
    if family == "repack_kernel":  # small products are estimated to be faster as they lie
        ways = ops.gemm_candidates(x, w.mT, precision, tune.FULL).tolist()
        ops.gemm_choose(x, w.mT, precision, next(way for way in ways if way[0] == WGMMA), tune.FULL)

    def results():
        forward = ops.linear_forward(x, w, bias, z, seed, gelu, 0.3, True, precision)
        weight = ops.linear_grad_weight(g, x, precision)
        return *forward, *weight, *ops.linear_grad_input(g, w, x, seed, gelu, 0.3, True, precision)

    library.fastdl_emulator_settings(0, 0, 0)
    first = results()
    assert family.split(",")[0] in counters(library)[3]
    assert all(t.isfinite().all() for t in first)
    for number in range(1, TIMES + 1):
        library.fastdl_emulator_settings(RANDOM, RANDOM, number)
        assert all(torch.equal(a, b) for a, b in zip(results(), first)), (family, number)
