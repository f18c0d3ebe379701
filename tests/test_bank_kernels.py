"""Bank conflicts of every kernel that uses shared memory, counted as the kernels run in the emulator's race flavour.

`python tests/emulator/build.py run race -- -m pytest tests/test_bank_kernels.py` runs them; `./dev test all` does too.
"""

import itertools
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from emulator.counters import counted_banks, counters
from test_batch_norm_kernel import DEVICES, ROW_DEVICES, ROW_SHAPES, SHAPES, compare, on_device

from fastdl import _library, optim, tune
from fastdl.data import BatchTransform

OPS = torch.ops.fastdl_emulated
BF16, DTYPES = torch.bfloat16, [torch.bfloat16, torch.float32, torch.float64]
TURING, TURING_FEW = (8, 64 << 10, 75), (1, 64 << 10, 75)
A100, A100_FEW, HOPPER = (132, 163 << 10, 80), (1, 163 << 10, 80), (2, 227 << 10, 90)
HIGH, ALWAYS_EMULATED, WGMMA, TOKENS = 1, 3, 2, 2

# Passes over the least, where it is not 1, of what a case's kernels do in the sizes below; and why it may be so.
ALLOWED = {
    "simt": (1.06, "operands with k adjacent are transposed to tiles of 64 in 2 passes: 4 of some 130 of a step"),
    "simt with sums": (1.06, "as above; and sums of a's rows are put once a tile"),
    "gemv": (1.3, "sums lie 4 or 8 words apart, once a block; more registers would spill"),
    "wgmma of tokens": (1.4, "lines of 20 words read 8 words at a time, once a tile"),
    "wgmma with sums": (1.1, "pairs of column sums lie 8 apart, once a tile"),
    "emulated": (1.5, "sums are looked at 8 words apart, once a tile; terms are read from lines of 65 words in pairs"),
    "batch norm": (1.05, "runs begin in the middle of 16 bytes; masks of odd rows"),
    "batch norm, channels last": (1.05, "single threads write a channel's constants, once a slice"),
    "crop": (3.0, "pixels are read one by one, a vector of output apart: float32 to float32 in 4 passes"),
    "resized crop": (1.5, "tents' distances are the data's"),
}


@pytest.fixture
def device(library):
    """Return a function that shows host code another GPU."""
    if not hasattr(library, "fastdl_emulator_count_banks"):
        pytest.skip("FASTDL_FLAVOUR=race counts passes of shared memory")
    return library.fastdl_emulator_device


@pytest.fixture
def hold(device, library) -> Callable[..., None]:
    """Return a function that runs a case and holds each kernel to the passes that it is allowed."""

    def run(case: str, kernels: str, call: Callable[[], object]) -> None:
        allowed = ALLOWED.get(case, (1.0, ""))[0]
        with counted_banks(library) as banks:
            counters(library)
            call()
            names = {re.split(r"[<(]", name)[0].split("::")[-1] for name in counters(library)[3].splitlines()}
            assert banks.passes(kernels).accesses > 0, names
            for name in names:
                found = banks.passes(name)
                assert found.passes <= found.least * allowed, (case, name, found, banks.conflicts(name))

    return run


def operand(rows: int, columns: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """A matrix that lies row by row ("n") or column by column ("t")."""
    return torch.randn(rows, columns).to(dtype) if layout == "n" else torch.randn(columns, rows).to(dtype).mT


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
def test_simt(device, hold, layouts):
    for size, dtype in itertools.product([TURING, TURING_FEW], DTYPES):
        device(*size)
        m, n, k = (256, 256, 32) if size == TURING_FEW and dtype == torch.float32 else (64, 64, 32)
        a, b = operand(m, k, dtype, layouts[0]), operand(k, n, dtype, layouts[1])
        hold("simt", "simt_kernel", lambda a=a, b=b: OPS.gemm(a, b))


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
def test_mma(device, hold, layouts):
    for size, (dtype, precision) in itertools.product([A100, A100_FEW], [(BF16, 0), (torch.float32, HIGH)]):
        device(*size)
        a, b = operand(128, 64, dtype, layouts[0]), operand(64, 128, dtype, layouts[1])
        hold("mma", "mma_kernel", lambda a=a, b=b, p=precision: OPS.gemm(a, b, p))


@pytest.mark.parametrize("pitch", [65, 66, 68])
def test_mma_of_odd_lines(device, hold, pitch):
    """Copies of 2, 4 and 8 bytes instead of 16."""
    device(*A100_FEW)
    a = torch.randn(128 * pitch).bfloat16().as_strided((128, 64), (pitch, 1))
    hold("mma", "mma_kernel", lambda: OPS.gemm(a, torch.randn(64, 128).bfloat16()))


@pytest.mark.parametrize("size", [A100, A100_FEW, TURING, TURING_FEW])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_beside_products(device, hold, size, dtype):
    """Sums of columns and of a's rows, and moments of columns."""
    device(*size)
    case, kernel = ("mma with sums", "mma") if dtype == BF16 and size[2] == 80 else ("simt with sums", "simt")
    x, w, g = (torch.randn(s).to(dtype) for s in [(140, 48), (136, 48), (140, 136)])
    hold(case, kernel, lambda: OPS.linear_grad_input(g, w, None, None, 0, 0.0, True, 0))
    hold(case, kernel, lambda: OPS.linear_grad_weight(g, x, 0))


def wgmma_ways(a: torch.Tensor, b: torch.Tensor, exit: int = 0) -> Iterator[list[int]]:
    """Every tile, turn, cluster, and whether k is split; chosen while the caller runs."""
    seen = set()
    for way in OPS.gemm_candidates(a, b, 0, exit).tolist():
        family, tile_m, tile_n, splits, turns, cluster, near = way
        key = tile_m, tile_n, splits > 1, turns, cluster, near
        if family == WGMMA and key not in seen:
            seen.add(key)
            OPS.gemm_choose(a, b, 0, way, exit)
            yield way


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("m", [150, 40])
def test_wgmma(device, hold, layouts, m):
    """Plain exits."""
    device(*HOPPER)
    a, b = operand(m, 136, BF16, layouts[0]), operand(136, 264, BF16, layouts[1])
    for way in wgmma_ways(a, b):
        hold("wgmma of tokens" if way[4] == TOKENS else "wgmma", "wgmma_kernel", lambda: OPS.gemm(a, b))


@pytest.mark.parametrize(("m", "k"), [(150, 136), (40, 136), (150, 520), (40, 520)])
def test_wgmma_epilogues(device, hold, m, k):
    """Exits with everything that an epilogue has, also of parts of k."""
    device(*HOPPER)
    x, w, bias, z = (torch.randn(s).to(BF16) for s in [(m, k), (264, k), (264,), (m, 264)])
    for way in wgmma_ways(x, w.mT, tune.FULL):
        case = "wgmma of tokens" if way[4] == TOKENS else "wgmma"
        hold(case, "wgmma_kernel", lambda: OPS.linear_forward(x, w, bias, z, torch.tensor([3]), 1, 0.3, True, 0))


def test_wgmma_sums(device, hold):
    device(*HOPPER)
    g, w, x = (torch.randn(s).to(BF16) for s in [(136, 152), (152, 264), (136, 264)])
    for way in wgmma_ways(g, w, tune.COLUMN_SUMS):
        if way[3] == 1 and way[4] != TOKENS:
            hold("wgmma with sums", "wgmma_kernel", lambda: OPS.linear_grad_input(g, w, None, None, 0, 0.0, True, 0))
    for way in wgmma_ways(g.mT, x, tune.ROW_SUMS):
        if way[4] != TOKENS:
            hold("wgmma", "wgmma_kernel", lambda: OPS.linear_grad_weight(g, x, 0))


@pytest.mark.parametrize("layouts", ["nn", "tt"])
@pytest.mark.parametrize("size", [A100_FEW, HOPPER])
def test_emulated_float32(device, hold, size, layouts):
    device(*size)
    a, b = operand(150, 200, torch.float32, layouts[0]), operand(200, 200, torch.float32, layouts[1])
    hold("emulated", "terms_kernel", lambda: OPS.gemm(a, b, ALWAYS_EMULATED))
    x, w, bias, z = (torch.randn(s) for s in [(150, 200), (200, 200), (200,), (150, 200)])  # plain sums need no memory
    arguments = (x, w, bias, z, torch.tensor([3]), 1, 0.3, True, ALWAYS_EMULATED)
    hold("emulated", "emulated", lambda: OPS.linear_forward(*arguments))


@pytest.mark.parametrize("layout", ["n", "t"])
@pytest.mark.parametrize("few", [1, 3])
def test_gemv(device, hold, layout, few):
    for size, dtype, (lines, k) in itertools.product([A100, TURING], DTYPES, [(1000, 1024), (70, 999), (8, 1024)]):
        device(*size)
        x, w = torch.randn(few, k).to(dtype), operand(lines, k, dtype, layout)
        hold("gemv", "gemv_kernel", lambda x=x, w=w: OPS.gemm(x, w.mT))
        hold("gemv", "gemv_kernel", lambda x=x, w=w: OPS.gemm(w, x.mT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_activations(device, hold, dtype):
    device(*HOPPER)
    for columns in (136, 10):
        g = torch.randn(300, columns).to(dtype)
        hold("gradient of activations", "kernel", lambda g=g: OPS.linear_backward(g, None, None, 0, 0.0, True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", DEVICES)
def test_batch_norm(device, hold, library, regime, dtype):
    for last, shape in [*((False, s) for s in SHAPES), *((True, s) for s in ROW_SHAPES)]:
        assert regime in ROW_DEVICES
        on_device(library, regime, last=last)
        case = "batch norm, channels last" if last else "batch norm"
        hold(case, "kernel", lambda shape=shape, last=last: compare(shape, dtype, last=last))


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_augment(device, hold, crop):
    device(*HOPPER)
    formats = [torch.contiguous_format, torch.channels_last]
    for source, from_format, to_format in itertools.product([torch.uint8, torch.float32], formats, formats):
        images = torch.randint(0, 256, (2, 3, 60, 64)).to(source).to(memory_format=from_format)
        transform = BatchTransform((32, 48), crop=crop, hflip=True, memory_format=to_format, seed=0)
        with _library.use("emulated"):
            case = "crop" if crop == "random" else "resized crop"
            hold(case, "kernel", lambda images=images, transform=transform: transform(images))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_optim(device, hold, name):
    device(1, 227 << 10, 90)
    params = [torch.nn.Parameter(torch.randn(3000)) for _ in range(3)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = getattr(optim, name)(params, lr=0.1, max_grad_norm=1.0)
    with _library.use("emulated"):
        hold("optim", "step_kernel", optimizer.step)
