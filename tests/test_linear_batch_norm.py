"""The block Linear, BatchNorm1d, activation, dropout: on kernels the product leaves the statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_linear import assert_compiles, mask_of

import fastdl.nn
from fastdl import _library
from fastdl.activation import CODES, activate
from fastdl.linear_batch_norm import FORWARD

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# name -> (rows, in_features, out_features)
SIZES = {
    "small": (9, 6, 5),
    "one-feature": (40, 7, 1),
    "blocks": (300, 24, 72),
    "long": (1500, 16, 130),  # more moments than a block has rows: they are merged first
    "no-depth": (5, 0, 8),
}


def double(block):
    return copy.deepcopy(block).double()


def formula(block, x, z, mask):
    """The published formula by torch's ops, in x's dtype; statistics in float32 or more."""
    y = F.linear(x, block.linear.weight, block.linear.bias)
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, 0, correction=0)
    norm = (wide - mean) / (variance + block.norm.eps).sqrt() * block.norm.weight.to(wide) + block.norm.bias.to(wide)
    norm = norm.to(y.dtype) if z is None else norm.to(y.dtype) + z
    out = activate(norm, block.norm.activation)
    p = block.norm.dropout
    return out if mask is None else torch.where(mask, out * (1 / (1 - p)), 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_forward_and_backward(backend, dtype, size):
    """Every gradient and running statistic, against float64 and with torch's own error as the measure."""
    m, k, n = SIZES[size]
    for activation, p, with_residual, bias in (
        ("relu", 0.0, False, False), ("leaky_relu", 0.3, True, True), (None, 0.0, True, False),
        ("gelu", 0.1, True, True),
    ):  # fmt: skip
        block = fastdl.nn.LinearBatchNormAct(k, n, bias, backend.device, dtype, activation=activation, dropout=p)
        with torch.no_grad():
            for values in (block.norm.weight, block.norm.bias):
                values.copy_(torch.randn(n) + 1)
        own, exact = copy.deepcopy(block), double(block)
        x = torch.randn(m, k).to(backend.device, dtype)
        z = torch.randn(m, n).to(backend.device, dtype) if with_residual else None
        mask = mask_of((m, n), p, backend.device) if p else None
        sides = []
        for side, call in ((block, block), (own, None), (exact, None)):
            to = torch.float64 if side is exact else dtype
            leaves = [t if t is None else t.detach().to(to, copy=True).requires_grad_() for t in (x, z)]
            out = block(leaves[0], residual=leaves[1]) if call else formula(side, *leaves, mask)
            out.backward(torch.sin(torch.arange(m * n, device=x.device)).reshape(m, n).to(to))
            found = [t.grad for t in leaves if t is not None] + [p.grad for p in side.parameters()]
            sides.append([out.detach(), *(g for g in found if g is not None)])
        # By norms: a value near the jump of an activation's slope may fall on either side of it. What is 0 in truth
        # (the gradient of a bias that batch norm takes away) is a sum of values that 1 / std has magnified.
        variance = F.linear(x.double(), exact.linear.weight).detach().var(0, correction=0)
        magnified = (m * n) ** 0.5 * max(1.0, float((variance + 1e-5).rsqrt().max()))
        for ours, theirs, true in zip(*sides):
            error, own_error = ((t.double() - true).norm() for t in (ours, theirs))
            ulps = 64 if dtype == torch.float64 else 4  # float64 is its own reference
            tiny = ulps * torch.finfo(dtype).eps * (true.norm() + magnified)
            assert error <= 2 * own_error + tiny, (activation, error, own_error, tiny)
        y = F.linear(x.double(), exact.linear.weight, exact.linear.bias).detach().to(dtype).double()
        assert block.norm.num_batches_tracked == 1
        tolerance = 8 * torch.finfo(dtype).eps * (1 + y.abs().max())
        torch.testing.assert_close(block.norm.running_mean.double(), 0.1 * y.mean(0), rtol=0, atol=float(tolerance))
        torch.testing.assert_close(
            block.norm.running_var.double(), 0.9 + 0.1 * y.var(0), rtol=float(tolerance), atol=float(tolerance)
        )


def test_two_launches(library):
    """The product and the normalization, both of which read what they need once; three where moments are many."""
    from emulator.counters import counters

    for (m, k, n), names in {
        (256, 64, 64): ["mma_kernel", "rows_apply_kernel"],
        (8192, 16, 64): ["mma_kernel", "given_merge_kernel", "rows_apply_kernel"],
    }.items():
        block = fastdl.nn.LinearBatchNormAct(k, n, dtype=torch.bfloat16)
        library.fastdl_emulator_device(8, 163 << 10, 80)
        x = torch.randn(m, k, dtype=torch.bfloat16)
        with _library.use("emulated"), torch.no_grad():
            counters(library)
            block(x)
            launches, _, written, kernels = counters(library)
        assert launches == len(names), kernels
        assert all(name in kernels for name in names), kernels
        written_least = 2 * m * n * 2 + n * 16  # both outputs; the saved and the running statistics
        assert written_least <= written <= written_least + 3 * m // 64 * n * 8 + n * 40


def test_moments_far_from_zero(library):
    """A column whose mean is 3,000 standard deviations: from a block's own mean no digits are lost."""
    m, k, n = 500, 8, 16
    x = torch.randn(m, k)
    weight, bias = torch.randn(n, k), torch.full((n,), 3e3)
    args = (x, weight, bias, None, None, None, None, None, None, None, 0.1, 1e-5, CODES[None], 0.0, False)
    _, linear, mean, invstd, _ = torch.ops.fastdl_emulated.linear_batch_norm_forward(*args)
    variance, true = torch.var_mean(linear.double(), 0, correction=0)
    torch.testing.assert_close(mean, true, rtol=1e-7, atol=0)
    torch.testing.assert_close(invstd, (variance + 1e-5).rsqrt(), rtol=1e-5, atol=0)


def test_gradgradcheck(backend):
    block = fastdl.nn.LinearBatchNormAct(4, 3, True, backend.device, torch.float64, activation="silu", dropout=0.3)
    parameters = tuple(p.detach().clone().requires_grad_() for p in block.parameters())
    x, z = (torch.randn(6, c, dtype=torch.float64, device=backend.device, requires_grad=True) for c in (4, 3))
    names = [name for name, _ in block.named_parameters()]

    def call(x, z, *values):
        torch.manual_seed(3)
        fresh = copy.deepcopy(block)
        fresh.__dict__["_is_plain"] = lambda: True  # functional_call's hooks aside
        return torch.func.functional_call(fresh, dict(zip(names, values)), (x,), {"residual": z})

    assert torch.autograd.gradcheck(call, (x, z, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, z, *parameters), fast_mode=True)


def test_opcheck():
    x, w, b, z = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3), torch.randn(6, 3)
    running = (torch.zeros(3), torch.ones(3), torch.tensor(0))
    args = (x, w, b, z, torch.randn(3), b, *running, torch.tensor([7]), 0.1, 1e-5, CODES["relu"], 0.4, True, 0)
    torch.library.opcheck(FORWARD.overload, args)


@pytest.mark.parametrize("case", ["hook", "eval", "three dimensions", "autocast", "no statistics", "subclass"])
def test_what_the_two_layers_serve(backend, case):
    """The block's result is that of its two layers whichever path it takes."""
    block = fastdl.nn.LinearBatchNormAct(6, 5, device=backend.device, track_running_stats=case != "no statistics")
    x = torch.randn(9, 6, device=backend.device)
    calls = []
    if case == "hook":
        block.norm.register_forward_hook(lambda *_: calls.append(1))
    if case == "eval":
        block.eval()
    if case == "subclass":
        block.norm.__class__ = type("Mine", (fastdl.nn.BatchNorm1d,), {})
    twin = copy.deepcopy(block)
    if case == "three dimensions":
        with pytest.raises((ValueError, RuntimeError)):
            block(torch.randn(2, 3, 7, device=backend.device))
        return
    with torch.autocast(backend.device.type, torch.bfloat16, enabled=case == "autocast"):
        ours, theirs = block(x), twin.norm(twin.linear(x))
    assert ours.dtype == theirs.dtype
    tolerance = 1e-2 if case == "autocast" else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert len(calls) == (2 if case == "hook" else 0)


def test_errors_change_nothing(backend):
    block = fastdl.nn.LinearBatchNormAct(6, 5, device=backend.device)
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        block(torch.randn(1, 6, device=backend.device))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        block(torch.randn(4, 7, device=backend.device))
    with pytest.raises(RuntimeError, match="residual"):
        block(torch.randn(4, 6, device=backend.device), residual=torch.randn(4, 6, device=backend.device))
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_compile(backend):
    if backend.name == "emulated":
        pytest.skip("the compiled graph holds the op, not the backend")
    block = fastdl.nn.LinearBatchNormAct(6, 5, bias=True, dropout=0.2, device=backend.device)
    assert_compiles(block, torch.randn(8, 6, device=backend.device))


def test_state_dict_and_eval():
    block = fastdl.nn.LinearBatchNormAct(6, 5, bias=True, activation="relu", dropout=0.5)
    twin = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5), "norm": torch.nn.BatchNorm1d(5)})
    twin.load_state_dict(block.state_dict())
    block(torch.randn(8, 6))
    twin.load_state_dict(block.state_dict())
    block.eval(), twin.eval()
    x = torch.randn(4, 6)
    torch.testing.assert_close(block(x), twin["norm"](twin["linear"](x)).relu())


def test_bad_arguments():
    with pytest.raises(ValueError, match="activation must be"):
        fastdl.nn.LinearBatchNormAct(6, 5, activation="tanh")
    with pytest.raises(ValueError, match="dropout probability"):
        fastdl.nn.LinearBatchNormAct(6, 5, dropout=2)
