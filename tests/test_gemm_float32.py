"""float32 by bfloat16 terms: errors beside true float32's, special values, layouts, gradients, the setting's scope."""

import ctypes
import itertools

import pytest
import torch
from emulator.counters import counters
from test_gemm_kernel import SEED, laid_out

import fastdl
from fastdl import _library, functional
from fastdl.activation import CODES, activate
from fastdl.gemm import EMULATED, HIGH, HIGHEST, float32_precision
from fastdl.philox import keep_mask

ALWAYS = 3  # kAlwaysEmulated of csrc/gemm/problem.h
DEVICES = {"wgmma": (2, 227 << 10, 90), "mma": (2, 163 << 10, 80)}


@pytest.fixture(params=DEVICES)
def device(request, library):
    library.fastdl_emulator_device(*DEVICES[request.param])
    library.fastdl_emulator_truncation(1)
    library.fastdl_emulator_reset_counters()
    return request.param


def gemm(a, b, precision=ALWAYS):
    return torch.ops.fastdl_emulated.gemm(a, b, precision)


def rms_error(c, a, b):
    """Root mean square of the error, relative to |a| |b|."""
    error = (c.double() - a.double() @ b.double()) / (a.double().abs() @ b.double().abs())
    return error.square().mean().sqrt().item()


DATA = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "wide": lambda *shape: torch.randn(*shape) * torch.exp(3 * torch.randn(*shape)),
}


@pytest.mark.parametrize("k", [96, 512, 4096])
@pytest.mark.parametrize("data", DATA)
def test_errors_are_at_most_those_of_float32(library, device, data, k):
    """On tensor cores that cut their sums, as Hopper's do; against our kernel of fused multiply-adds in order."""
    a, b = DATA[data](40, k), DATA[data](k, 36)
    ours, true = rms_error(gemm(a, b), a, b), rms_error(gemm(a, b, HIGHEST), a, b)
    assert "emulated_" + device in counters(library)[3]
    assert ours <= true, (ours, true)


def test_promotion_is_what_keeps_the_error_down(library, device):
    """Terms multiplied by a kernel that leaves all of k to the tensor cores: many times the error."""
    k = 4096
    a, b = torch.rand(64, k), torch.rand(k, 64)

    def terms(x):
        high = x.bfloat16()
        middle = (x - high.float()).bfloat16()
        return high, middle, (x - high.float() - middle.float()).bfloat16()

    (a1, a2, a3), (b1, b2, b3) = terms(a), terms(b)
    assert torch.equal(a1.double() + a2.double() + a3.double(), a.double())  # the split is exact
    left, right = torch.cat([a3, a2, a1, a2, a1, a1], 1), torch.cat([b1, b2, b3, b1, b2, b1])
    library.fastdl_emulator_device(1, 163 << 10, 80)
    x, w = left.float(), right.float().T.contiguous()  # exact as tf32, whose kernel stores float32
    unpromoted = torch.ops.fastdl_emulated.linear_forward(x, w, None, None, None, CODES[None], 0.0, False, HIGH)[0]
    assert "mma_kernel" in counters(library)[3]
    library.fastdl_emulator_device(*DEVICES[device])
    promoted, true = rms_error(gemm(a, b), a, b), rms_error(gemm(a, b, HIGHEST), a, b)
    assert promoted <= true
    assert rms_error(unpromoted, a, b) > 4 * promoted


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt", "sn", "ts"])
def test_layouts_are_exact(library, device, layouts):
    """Integers of 10 bits: every product and sum is exact; what surrounds the operands is NaN and never read."""
    for m, n, k in [(137, 200, 70), (150, 60, 200), (5, 129, 1)]:
        a, b = (torch.randint(-512, 513, s).float() for s in ((m, k), (k, n)))
        c = gemm(laid_out(a, layouts[0]), laid_out(b, layouts[1]))
        assert torch.equal(c.double(), a.double() @ b.double())
        assert "emulated_" + device in counters(library)[3]


def test_batches_and_parts_of_k(library, device):
    a, b = (torch.randint(-64, 65, s).float() for s in ((3, 70, 130), (3, 130, 50)))
    assert torch.equal(gemm(a, b).double(), a.double() @ b.double())
    shared = b[:1].expand(3, 130, 50)
    assert torch.equal(gemm(a, shared).double(), a.double() @ shared.double())
    library.fastdl_emulator_device(132, *DEVICES[device][1:])
    library.fastdl_emulator_reset_counters()
    a, b = torch.randint(-64, 65, (20, 6000)).float(), torch.randint(-64, 65, (6000, 30)).float()
    assert torch.equal(gemm(a, b).double(), a.double() @ b.double())
    assert "split_sum_kernel" in counters(library)[3]
    a, b = torch.randn_like(a), torch.randn_like(b)
    assert torch.equal(gemm(a, b), gemm(a, b))


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_epilogue(library, device, activation):
    m, n, k, p = 140, 61, 100, 0.3
    x, w, bias, z = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.randn(m, n)
    ours, saved = torch.ops.fastdl_emulated.linear_forward(
        x, w, bias, z, torch.tensor([SEED]), CODES[activation], p, True, ALWAYS
    )
    assert "emulated_" + device in counters(library)[3]
    preactivation = torch.nn.functional.linear(x.double(), w.double(), bias.double())
    expected = activate(preactivation, activation) * keep_mask((m, n), torch.tensor([SEED]), p) / (1 - p) + z
    torch.testing.assert_close(saved.double(), preactivation, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_special_values_are_those_of_float32(device):
    """Infinity times a number whose lower terms are zero, cancelling infinities, the largest numbers, overflow."""
    inf, largest = float("inf"), torch.finfo(torch.float32).max
    a, b = torch.randint(1, 4, (20, 70)).float(), torch.randint(1, 4, (70, 30)).float()
    a[0, 0], a[1, 69], a[2, :2], b[3, 5] = inf, float("nan"), torch.tensor([inf, -inf]), -inf
    a[4], a[4, 0], b[1, 7], b[0, 9] = 0, largest, largest, 0
    a[5, 0], a[5, 1] = largest, largest
    a[6, 3] = 0  # times minus infinity
    for x, y in ((a, b), (b.T, a.T)):
        c, true = gemm(x, y), gemm(x, y, HIGHEST)
        assert torch.equal(c.isnan(), true.isnan())
        assert torch.equal(c.nan_to_num(1, 3e38, -3e38), true.nan_to_num(1, 3e38, -3e38))
        assert true.isnan().any()
        assert true.isinf().any()


def test_the_largest_and_the_smallest(device):
    """No term of the largest numbers overflows; below 2^-110 lower terms vanish, an absolute error under 2^-134."""
    largest = torch.finfo(torch.float32).max
    a, b = torch.zeros(8, 64), torch.zeros(64, 8)
    a.fill_diagonal_(largest)
    b.fill_diagonal_(1.0)
    assert torch.equal(gemm(a, b), a[:, :8].contiguous())
    tiny = torch.randn(8, 64) * 2.0**-120
    c = gemm(tiny, torch.eye(64, 8))
    assert (c.double() - tiny[:, :8].double()).abs().max() <= 2.0**-134


def test_neighbours_are_not_disturbed(device):
    """A tile with one NaN keeps all its other sums as they are."""
    a, b = torch.randn(130, 80), torch.randn(80, 130)
    clean = gemm(a, b)
    a[3, 4] = float("nan")
    c = gemm(a, b)
    assert c[3].isnan().all()
    rest = [i for i in range(130) if i != 3]
    assert torch.equal(c[rest], clean[rest])


def test_bytes_of_the_pass(library, device):
    """Operands are read once and written as 6 bytes an element, k in whole steps of 64."""
    m, n, k = 128, 192, 128
    gemm(torch.randn(m, k), torch.randn(k, n))
    _, read, written, _ = counters(library, "terms_kernel")
    assert read == (m + n) * k * 4
    assert written == (m + n) * k * 6


def test_scope():
    assert float32_precision() == HIGHEST
    with fastdl.float32_matmul("emulated"):
        assert float32_precision() == EMULATED
        with fastdl.float32_matmul("high"):
            assert float32_precision() == HIGH
        assert float32_precision() == EMULATED
    with pytest.raises(KeyError), fastdl.float32_matmul("emulated"):
        raise KeyError
    assert float32_precision() == HIGHEST
    previous = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert float32_precision() == HIGH
        with fastdl.float32_matmul("highest"):
            assert float32_precision() == HIGHEST
    finally:
        torch.set_float32_matmul_precision(previous)
    with pytest.raises(ValueError, match="mode must be one of highest, high, emulated, got 'fast'"):
        fastdl.float32_matmul("fast").__enter__()


def test_a_call_chooses_for_itself_and_its_gradients(library):
    """Whatever the scope says, before and behind it; errors come first, on CPU tensors too."""
    library.fastdl_emulator_device(1, 163 << 10, 80)
    a, b = (torch.randn(s, requires_grad=True) for s in [(130, 70), (70, 90)])
    calls = [
        lambda float32: fastdl.matmul(a, b, float32=float32),
        lambda float32: fastdl.functional.linear(a, b.mT, activation="relu", float32=float32),
    ]
    families = {"highest": "simt_kernel", "high": ":mma_kernel", None: ":mma_kernel"}
    for call in calls:
        for float32, kernel in families.items():
            with _library.use("emulated"), fastdl.float32_matmul("high"):
                counters(library)
                output = call(float32)
                forward = counters(library)[3]
            with _library.use("emulated"):
                output.square().sum().backward()
            assert kernel in forward
            assert kernel in counters(library)[3]
            torch.testing.assert_close(output, call(None), rtol=1e-2, atol=5e-2)
        for use in ("auto", "emulated"):
            with _library.use(use), pytest.raises(ValueError, match=r": float32 must be None or one of .*, got 'fast'"):
                call("fast")


def test_compiled_graphs_follow_the_scope():
    seen = []

    def record(graph, inputs):
        seen.append(graph)
        return graph.forward

    @torch.compile(backend=record, fullgraph=True)
    def scaled(x):
        return x * (1 + float32_precision())

    x = torch.ones(3)
    assert scaled(x).sum() == 3
    with fastdl.float32_matmul("emulated"):
        assert scaled(x).sum() == 9
    assert scaled(x).sum() == 3
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["matmul", "linear", "mlp"])
def test_gradients_follow_the_forward_pass(library, monkeypatch, name):
    """Also when the scope has ended by then."""
    monkeypatch.setitem(fastdl.gemm._MODES, "emulated", ALWAYS)
    library.fastdl_emulator_device(*DEVICES["wgmma"])
    x, w, bias = torch.randn(40, 24), torch.randn(30, 24), torch.randn(30)
    w2 = torch.randn(20, 30)

    def run(x, w, bias, w2):
        if name == "matmul":
            return fastdl.matmul(x, w.T)
        if name == "linear":
            return functional.linear(x, w, bias, activation="gelu")
        return functional.mlp(x, w, bias, w2, None, activation="gelu")

    inputs = [t.requires_grad_() for t in (x, w, bias, w2)]
    with _library.use("emulated"):
        library.fastdl_emulator_reset_counters()
        with fastdl.float32_matmul("emulated"):
            output = run(*inputs)
        output.square().sum().backward()
        names = counters(library)[3]
        assert "simt_kernel" not in names
        assert "emulated_wgmma_kernel" in names
        ours = [t.grad for t in inputs]
        for t in inputs:
            t.grad = None
        run(*inputs).square().sum().backward()
        assert "emulated" not in counters(library)[3]
    for mine, t in zip(ours, inputs):
        if t.grad is not None:
            torch.testing.assert_close(mine, t.grad, rtol=1e-4, atol=1e-3)


def test_cpu_tensors_are_unaffected():
    a, b = torch.randn(5, 6), torch.randn(6, 7)
    with fastdl.float32_matmul("emulated"):
        assert torch.equal(fastdl.matmul(a, b), a @ b)


def test_bad_precision(library):
    with pytest.raises(RuntimeError, match="gemm: precision must be 0 to 3, got 4"):
        gemm(torch.ones(2, 2), torch.ones(2, 2), 4)


def test_truncation_ends_with_the_settings(library: ctypes.CDLL):
    """The emulator's switch: bfloat16 1 + 1.5 * 2^-24, cut or rounded."""
    x = torch.tensor([[1.0] + [0.0] * 15 + [1.5 * 2.0**-12] + [0.0] * 15] * 8).bfloat16()
    w = torch.tensor([[1.0] + [0.0] * 15 + [2.0**-12] + [0.0] * 15] * 8).bfloat16()
    for truncates, (multiprocessors, _, capability) in itertools.product([0, 1], DEVICES.values()):
        library.fastdl_emulator_device(multiprocessors, 163 << 10, capability)
        library.fastdl_emulator_truncation(truncates)
        # Minus one in the bias, and 2^30 of what is left: bfloat16 shows it.
        c = torch.ops.fastdl_emulated.linear_forward(x, w, -torch.ones(8).bfloat16(), None, None, 0, 0.0, False)[0]
        assert c.unique().tolist() == [0.0 if truncates else 2.0**-23]
    library.fastdl_emulator_settings(0, 0, 0)
