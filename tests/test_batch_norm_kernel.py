"""The batch norm kernels on their own: every regime on small devices, traffic, launches, repeatability."""

import random
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from emulator.counters import counters

from fastdl import _C
from fastdl.batch_norm import batch_norm_backward_reference, batch_norm_reference, read_mask

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# regime -> (multiprocessors, shared bytes of a block, capability) under which the shapes below take it
DEVICES = {
    "block": (132, 227 << 10, 90),
    "cluster": (4, 14 << 10, 90),
    "group": (4, 12 << 10, 80),
    "stream": (2, 3 << 10, 80),
}
SHAPES = [(8, 3, 24, 24), (7, 5, 19, 17), (33, 4, 41), (2, 6, 700)]
# As above, channels last; a slice's table of totals takes 12 KiB.
ROW_DEVICES = {
    "block": (8, 227 << 10, 80),
    "cluster": (4, 60 << 10, 90),
    "group": (4, 100 << 10, 80),
    "stream": (2, 20 << 10, 80),
}
ROW_SHAPES = [(8, 40, 20, 20), (5, 70, 7, 3, 3), (1100, 33), (9, 8, 11, 13)]
OPS = torch.ops.fastdl_emulated
H200, A100, TURING = (132, 232448, True), (108, 166912, False), (40, 0, False)


def plan(shape, dtype, operands, device, *, reduces=True, last=False):
    n, c, s = *shape[:2], torch.Size(shape[2:]).numel()
    multiprocessors, shared_bytes, capability = device
    packs = dtype != torch.float64
    return _C.batch_norm_plan(
        n, c, s, dtype.itemsize, operands, reduces, packs, multiprocessors, shared_bytes, capability >= 90, last
    )


def on_device(library, name, *, last=False):
    library.fastdl_emulator_device(*(ROW_DEVICES if last else DEVICES)[name])
    library.fastdl_emulator_reset_counters()


def arguments(shape, dtype, *, residual, activation, p, training=True, mask=False, last=False):
    C = shape[1]
    stats = dtype if dtype == torch.float64 else torch.float32
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    z = torch.randn(shape).to(dtype) if residual else None
    seed = torch.tensor([1234567]) if p > 0 else None
    channel = [torch.randn(C, dtype=stats) for _ in range(3)] + [torch.rand(C, dtype=stats) + 0.5, torch.tensor(3)]
    if last:
        x, z = in_rows(x), None if z is None else in_rows(z)
    return (x, z, *channel, seed, training, 0.1, 1e-5, activation, p, mask)


def in_rows(x):
    """The same values, channels last; of (N, C) itself."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x


def cloned(args):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]


def compare(shape, dtype, *, residual=False, activation=0, p=0.0, training=True, mask=False, last=False):
    """Forward and backward of the kernels against the formulas."""
    options = {"residual": residual, "activation": activation, "p": p, "training": training, "mask": mask}
    args = arguments(shape, dtype, **options, last=last)
    ours, theirs = cloned(args), cloned(args)
    y, mean, invstd, bits = OPS.batch_norm_forward(*ours)
    expected = batch_norm_reference(*theirs)
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(y, expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mean, expected[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(invstd, expected[2], rtol=1e-6, atol=1e-7)
    for k in (4, 5, 6):  # running statistics and counter
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-6, atol=1e-6)
    if mask:
        passes = (expected[0] != 0) if activation == 1 else (expected[0] > 0)
        assert torch.equal(read_mask(bits, y)[passes], torch.ones_like(passes)[passes])
    x, z, weight, bias, seed = (args[i] for i in (0, 1, 2, 3, 7))
    grad = torch.randn(shape).to(dtype)
    if last:
        assert y.stride() == x.stride()
        grad = in_rows(grad)
    rest = (seed, training, 1e-5, activation, p, True, residual, True)
    back = OPS.batch_norm_backward(grad, x, None if mask else z, weight, bias, mean, invstd, bits, *rest)
    formula = batch_norm_backward_reference(grad, x, z, weight, bias, *expected[1:3], None, *rest)
    for a, b in zip(back, formula):
        scale = 1 if b.numel() == 0 else b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("regime", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regimes_agree_with_the_formula(library, regime, shape):
    for dtype in DTYPES:
        on_device(library, regime)
        compare(shape, dtype)
        compare(shape, dtype, training=False)
    seen = {plan(shape, dtype, operands, DEVICES[regime])["regime"] for dtype in DTYPES for operands in (1, 2)}
    assert regime in seen


@pytest.mark.parametrize("regime", ROW_DEVICES)
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_regimes_of_channels_last_agree_with_the_formula(library, regime, shape):
    device, seen = ROW_DEVICES[regime], set()
    for dtype in DTYPES:
        on_device(library, regime, last=True)
        compare(shape, dtype, last=True)
        compare(shape, dtype, training=False, last=True)
        compare(shape, dtype, residual=True, activation=1, p=0.3, mask=True, last=True)
        compare(shape, dtype, residual=True, activation=4, p=0.01, last=True)
        seen |= {plan(shape, dtype, operands, device, last=True)["regime"] for operands in (1, 2)}
    assert regime in seen or shape != ROW_SHAPES[0]


@pytest.mark.parametrize("regime", DEVICES)
@pytest.mark.parametrize("activation", [1, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_residual_activation_and_dropout_in_every_regime(library, regime, activation, mask):
    on_device(library, regime)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in SHAPES[:3]:
            compare(shape, dtype, residual=True, activation=activation, p=0.3, mask=mask)
    compare(SHAPES[0], torch.float16, residual=True, activation=3 + activation, p=0.01)


@pytest.mark.parametrize("shape", [(6, 40, 7, 7), (9, 37, 14, 14), (5, 24, 3, 3), (4, 33, 1, 9)], ids=str)
def test_packs_of_short_rows(library, shape):
    for multiprocessors in (4, 6, 10):  # packs of 8, 4, 2
        library.fastdl_emulator_device(multiprocessors, 227 << 10, 90)
        for dtype in (torch.float32, torch.bfloat16):
            compare(shape, dtype)
            compare(shape, dtype, residual=True, activation=1, p=0.5, mask=True)
            compare(shape, dtype, residual=True, activation=2, training=False, mask=True)


# ------------------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("size", "element_bytes", "operands", "device", "expected"),
    [
        ((32, 512, 28 * 28), 2, 1, H200, {"regime": "block", "blocks": 512, "pack": 1}),
        ((32, 1024, 14 * 14), 2, 1, H200, {"regime": "block", "pack": 4, "blocks": 256}),
        ((32, 2048, 7 * 7), 2, 2, H200, {"regime": "block", "pack": 8}),
        ((64, 8192, 4 * 4), 2, 1, H200, {"regime": "block", "pack": 8, "blocks": 1024}),
        ((8, 16, 64), 4, 1, H200, {"regime": "block", "blocks": 16, "threads": 64}),
        ((32, 256, 56 * 56), 2, 1, H200, {"regime": "cluster", "team": 2}),
        ((256, 64, 56 * 56), 2, 1, H200, {"regime": "cluster", "team": 8, "teams": 64}),
        ((256, 64, 112 * 112), 2, 1, H200, {"regime": "group", "teams": 4, "blocks": 264}),
        ((4, 128, 1024 * 1024), 2, 1, H200, {"regime": "group", "teams": 3, "team": 88}),
        ((20, 6, 65536), 2, 2, H200, {"regime": "group", "teams": 3}),
        ((4, 128, 1024 * 1024), 4, 2, H200, {"regime": "stream"}),
        ((32, 256, 56 * 56), 2, 1, A100, {"regime": "group"}),
        ((32, 512, 28 * 28), 2, 1, TURING, {"regime": "stream", "shared_bytes": 0}),
    ],
    ids=str,
)
def test_plan_of(size, element_bytes, operands, device, expected):
    found = _C.batch_norm_plan(*size, element_bytes, operands, True, True, *device, False)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("size", "element_bytes", "operands", "device", "expected"),
    [
        ((32, 256, 56 * 56), 2, 1, H200, {"regime": "group", "pack": 32, "teams": 4, "team": 66}),
        ((32, 64, 112 * 112), 2, 1, H200, {"regime": "group", "pack": 32, "teams": 1}),
        ((32, 512, 28 * 28), 2, 1, H200, {"regime": "group", "pack": 64, "teams": 8}),
        ((32, 2048, 7 * 7), 2, 1, H200, {"regime": "cluster", "pack": 64, "team": 8}),
        ((256, 64, 112 * 112), 2, 1, H200, {"regime": "stream", "pack": 64}),
        ((512, 1024, 1), 4, 1, H200, {"regime": "cluster", "pack": 32, "team": 8}),
        ((512, 1024, 1), 4, 1, A100, {"regime": "block", "pack": 8, "packs": 128}),
        ((64, 16384, 1), 2, 1, H200, {"regime": "block", "pack": 64, "blocks": 256}),
        ((32, 96, 56 * 56), 2, 1, H200, {"pack": 32, "packs": 3}),
        ((8, 3, 224 * 224), 4, 1, H200, {"pack": 8, "vectors": 2}),
        ((32, 512, 28 * 28), 2, 1, TURING, {"regime": "stream", "shared_bytes": 0}),
    ],
    ids=str,
)
def test_plan_of_channels_last(size, element_bytes, operands, device, expected):
    found = _C.batch_norm_plan(*size, element_bytes, operands, True, True, *device, True)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("last", [False, True])
def test_every_plan_is_sound(last):
    """What a kernel relies on, for 20000 random sizes and devices."""
    draw = random.Random(0)
    for _ in range(20000):
        n, c, s = (max(1, int(2 ** draw.uniform(-0.5, high))) for high in (12, 13, 20))
        element_bytes, operands, reduces = draw.choice((2, 4, 8)), draw.choice((1, 2)), draw.random() < 0.8
        device = draw.choice(
            (H200, A100, TURING, (draw.randint(1, 200), draw.randint(0, 240 << 10), draw.random() < 0.5))
        )
        multiprocessors, shared_bytes, clusters = device
        p = _C.batch_norm_plan(n, c, s, element_bytes, operands, reduces, draw.random() < 0.5, *device, last)
        message = f"{(n, c, s, element_bytes, operands, reduces, device)}: {p}"
        assert p["packs"] == -(-c // p["pack"]), message
        assert 1 <= p["teams"] <= p["packs"], message
        assert p["threads"] in (64, 128, 256), message
        assert p["share"] * p["team"] >= p["slots"], message
        if last:
            assert p["vectors"] in (1, 2, 4, 8), message
            assert (p["slots"], p["pack"]) == (n * s * p["vectors"], p["vectors"] * 16 // element_bytes), message
            assert p["pack"] % 8 == 0, message  # a byte of the mask is one block's
            assert p["share"] % (8 * p["vectors"]) == 0, message  # as is a Philox call of eight rows
            assert p["share"] <= 136 * p["threads"], message  # rows of a thread's sum
        else:
            assert p["slots"] >= n * -(-s * element_bytes // 16), message
            assert p["share"] % (8 * element_bytes // 16) == 0, message
            assert p["threads"] // 32 % p["pack"] == 0, message
        assert (p["regime"] == "apply") == (not reduces), message
        if p["regime"] in ("apply", "stream"):
            assert p["shared_bytes"] == 0, message
            assert p["teams"] == p["packs"], message
            continue
        assert p["shared_bytes"] == 16 * operands * p["share"], message
        declared = 14 << 10 if last else 1024  # by the kernels
        assert p["shared_bytes"] + declared <= shared_bytes, message
        if p["regime"] == "block":
            assert (p["team"], p["teams"]) == (1, p["packs"]), message
        elif p["regime"] == "cluster":
            assert clusters, message
            assert (p["team"] in (2, 4, 8), p["teams"]) == (True, p["packs"]), message
        else:  # two blocks at a time on every multiprocessor, of which CUDA keeps 1 KiB a block
            assert p["blocks"] <= 2 * multiprocessors, message
            assert p["pack"] == 1 or last, message
            assert 2 * (p["shared_bytes"] + declared + 1024) <= shared_bytes + 1024, message


# ------------------------------------------------------------------------------------------------ passes over memory


def moved(
    library,
    regime,
    shape,
    dtype,
    *,
    residual=False,
    activation=0,
    p=0.0,
    training=True,
    mask=False,
    last=False,
    **needs,
):
    """Passes of the forward and of the backward: (launches, bytes read and written over those of the input), names."""
    options = {"residual": residual, "activation": activation, "p": p, "training": training, "mask": mask}
    args = arguments(shape, dtype, **options, last=last)
    on_device(library, regime, last=last)
    output, mean, invstd, bits = OPS.batch_norm_forward(*args)
    forward = counters(library)
    x, z, weight, bias, seed = (args[i] for i in (0, 1, 2, 3, 7))
    rest = (seed, training, 1e-5, activation, p)
    need = (needs.get("need_input", True), residual, needs.get("need_params", True))
    OPS.batch_norm_backward(x, x, None if mask else z, weight, bias, mean, invstd, bits, *rest, *need)
    size = output.numel() * dtype.itemsize
    return [(n, read / size, written / size, names) for n, read, written, names in (forward, counters(library))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("regime", DEVICES)
@pytest.mark.parametrize(("shape", "last"), [(SHAPES[0], False), (SHAPES[1], False), ((10, 40, 28, 28), True)], ids=str)
def test_each_element_moves_as_often_as_it_must(library, regime, dtype, shape, last):
    """Resident: read once, written once. Streaming: statistics, then apply. A few percent more are per channel."""
    more = 0.12 if last else 0.02  # last: 24 bytes a channel of every block
    for extras in ({}, {"residual": True, "activation": 1, "mask": True, "p": 0.3}):
        extra, bit = (1, 1 / 8 / dtype.itemsize) if extras else (0, 0)
        for direction, found in enumerate(moved(library, regime, shape, dtype, last=last, **extras)):
            device = (ROW_DEVICES if last else DEVICES)[regime]
            streams = plan(shape, dtype, 1 + direction, device, last=last)["regime"] == "stream"
            assert streams == (regime == "stream") or last
            launches, read, written, kernels = found
            assert launches == 1 + streams * (2 if last else 1)
            assert kernels.count("kernel") == launches
            again = (8 * dtype.itemsize // 16) * 2  # an octet's byte is read with each of its vectors, by both passes
            expected = [(1 + streams + extra, 1 + bit), (2 + 2 * streams + bit * again, 1 + extra)][direction]
            assert expected[0] <= read * 1.0001
            assert read < expected[0] + more, (read, expected)
            assert expected[1] <= written + 1e-9
            assert written < expected[1] + more, (written, expected)


@pytest.mark.parametrize("activation", [0, 1, 3])
def test_evaluation_is_one_pass(library, activation):
    shape = (8, 6, 31, 33)
    forward, backward = moved(library, "block", shape, torch.bfloat16, activation=activation, training=False)
    assert forward[0] == 1
    assert "channel_apply_kernel" in forward[3]
    assert forward[1:3] == pytest.approx((1, 1), abs=0.01)
    assert backward[1:3] == pytest.approx((2, 1), abs=0.01)  # sums for the parameters, resident
    options = {"activation": activation, "training": False, "need_params": False}
    launches, read, written, names = moved(library, "block", shape, torch.bfloat16, **options)[1]
    assert launches == 1
    assert "channel_apply_backward_kernel" in names
    assert (read, written) == pytest.approx((2 if activation else 1, 1), abs=0.01)  # a frozen layer reads no input


# ------------------------------------------------------------------------------------------------------------ behaviour


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("regime", DEVICES)
def test_bits_do_not_depend_on_schedule_strides_or_alignment(library, regime, last):
    shape = (9, 24, 19, 21) if last else (6, 5, 19, 23)
    for dtype in (torch.float32, torch.float16):
        args = arguments(shape, dtype, residual=True, activation=1, p=0.2, mask=True, last=last)
        x = args[0]
        if last:
            spread = torch.empty(9, 19, 21, 48, dtype=dtype).movedim(-1, 1)[:, ::2].copy_(x)
            shifted = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(9, 19, 21, 24).movedim(-1, 1).copy_(x)
        else:
            spread = torch.empty(6, 5, 19, 46, dtype=dtype)[..., ::2].copy_(x)
            shifted = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(shape).copy_(x)
        results = []
        for input, order in ((x, (0, 0)), (x, (1, 1)), (x, (2, 2)), (spread, (0, 0)), (shifted, (0, 1))):
            on_device(library, regime, last=last)
            library.fastdl_emulator_settings(*order, 11)
            given = cloned(args)
            y, mean, invstd, bits = OPS.batch_norm_forward(input, *given[1:])
            rest = (args[7], True, 1e-5, 1, 0.2, True, True, True)
            grads = OPS.batch_norm_backward(x, input, None, args[2], args[3], mean, invstd, bits, *rest)
            results.append([y, mean, invstd, read_mask(bits, x), *given[4:7], *grads])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("regime", DEVICES)
def test_numerical_edges_in_every_regime(library, regime, last):
    on_device(library, regime, last=last)
    shape, beta, stats = (5, 6, 27, 27), torch.linspace(-2, 2, 6), [torch.zeros(6), torch.ones(6)]
    weight = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5, 1.0])

    def forward(x):
        x = in_rows(x) if last else x
        return OPS.batch_norm_forward(x, None, weight, beta, *stats, None, None, True, 0.1, 1e-5, 0, 0.0, False)

    for constant in (1e4, -3.3, 0.1, 1e30, 0.0):
        for dtype in (torch.float32, torch.bfloat16):
            y = forward(torch.full(shape, constant).to(dtype))[0]
            assert torch.equal(y, beta.to(dtype).view(1, -1, 1, 1).expand(shape))
    for mean, std in ((1e6, 1.0), (1e30, 1e30), (-1e5, 0.1), (0.0, 1e-20), (0.0, 1e35)):
        x = torch.randn(shape) * std + mean
        x[0, 1, 0, 0] = mean + 1e3 * std  # an outlier, at first
        exact = F.batch_norm(x.double(), None, None, weight.double(), beta.double(), True, 0.1, 1e-5)
        y, *saved, _ = forward(x)
        torch.testing.assert_close(y.double(), exact, rtol=3e-5, atol=3e-5)
        grad = torch.randn(shape)
        rest = (None, None, True, 1e-5, 0, 0.0, True, False, True)
        leaf = x.double().requires_grad_()
        (expected,) = torch.autograd.grad(
            F.batch_norm(leaf, None, None, weight.double(), None, True), leaf, grad.double()
        )
        given = in_rows(x) if last else x
        found = OPS.batch_norm_backward(grad, given, None, weight, beta, *saved, *rest)[0]
        scale = expected.abs().amax((0, 2, 3), keepdim=True).clamp(min=1e-44)
        assert ((found - expected).abs() / scale).max() < 1e-4
    for bad in (float("nan"), float("inf")):
        x = torch.randn(shape)
        x[2, 3, 13, 26] = bad
        y = forward(x)[0]
        assert torch.isfinite(y).all((0, 2, 3)).tolist() == [True, True, True, False, True, True]


def test_momentum_none_counts_on_the_device(library):
    args = arguments((4, 3, 5, 5), torch.float32, residual=False, activation=0, p=0.0)
    mean, batches = args[4].clone(), args[6]
    OPS.batch_norm_forward(*args[:9], None, *args[10:])
    assert batches.item() == 4
    torch.testing.assert_close(args[4], mean * 0.75 + args[0].mean((0, 2, 3)) * 0.25)
    assert "advance_counter_kernel" in counters(library)[3]


def test_refused_calls_change_nothing(library):
    args = arguments((4, 3, 5, 5), torch.float32, residual=True, activation=1, p=0.5)
    changes = {
        1: args[1][:2], 2: torch.ones(4), 3: torch.ones(2), 4: torch.ones(4), 5: torch.ones(2),
        6: torch.zeros(2).long(), 7: torch.zeros(2).long(),
    }  # fmt: skip
    for k, bad in changes.items():
        before = cloned(args)
        with pytest.raises(RuntimeError, match="batch_norm: "):
            OPS.batch_norm_forward(*args[:k], bad, *args[k + 1 :])
        assert all(a is b or torch.equal(a, b) for a, b in zip(args, before) if isinstance(a, torch.Tensor))
    with pytest.raises(RuntimeError, match="save_mask needs"):
        OPS.batch_norm_forward(*args[:11], 3, 0.0, True)


@pytest.mark.parametrize("shape", [(70000, 2, 3), (1, 2, 70001), (3, 300, 2, 2)], ids=str)
def test_many_images_long_rows_many_channels(library, shape):
    library.fastdl_emulator_device(4, 227 << 10, 90)
    compare(shape, torch.float32)
    compare(shape, torch.bfloat16, training=False)


@pytest.mark.parametrize("program", ["batch_norm_far", "batch_norm_far_rows"])
def test_far_indices(program):
    """Plans, rows, masks and strides at element indices up to 2**42; channels last up to 2**34."""
    build = pytest.importorskip("emulator.build")
    program = build.build_program("plain", program, [Path(__file__).parent / f"{program}.cu"])
    result = subprocess.run([program], capture_output=True, text=True, errors="replace", timeout=300)
    assert result.stdout == "far indices: ok\n", result.stdout + result.stderr
