"""nn.MLP and functional.mlp: two layers whose backward is fused across them."""

import copy

import pytest
import torch
from test_linear import assert_compiles

import fastdl.functional as FF
import fastdl.nn
from fastdl import _library
from fastdl.activation import CODES
from fastdl.linear import linear
from fastdl.linear_backward import GRAD_INPUT, GRAD_WEIGHT

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# name -> (batch dimensions, in_features, hidden_features, out_features)
SIZES = {"small": ((9,), 6, 10, 5), "batch": ((3, 50), 16, 72, 24), "vector": ((), 6, 8, 6), "tall": ((300,), 8, 40, 3),
         "no-rows": ((0,), 6, 8, 6)}  # fmt: skip


def operands(size, dtype, device):
    batch, k, h, n = SIZES[size]
    shapes = ((*batch, k), (h, k), (h,), (n, h), (n,), (*batch, n))
    scales = (1, k**-0.5, 1, h**-0.5, 1, 1)
    return [(torch.randn(s) * c).to(device, dtype).requires_grad_() for s, c in zip(shapes, scales)]


def two_layers(x, w1, b1, w2, b2, z, activation, p):
    return linear(linear(x, w1, b1, activation=activation, dropout=p), w2, b2, dropout=p, residual=z)


@pytest.mark.parametrize("activation", list(CODES))
@pytest.mark.parametrize("size", SIZES)
def test_forward_and_backward(backend, size, activation):
    """Against the same formula in float64, the two calls of `linear` being the measure of error."""
    for dtype in DTYPES:
        p = 0.3 if dtype in (torch.float32, torch.bfloat16) else 0.0
        ours = operands(size, dtype, backend.device)
        theirs, exact = ([t.detach().to(d, copy=True).requires_grad_() for t in ours] for d in (dtype, torch.float64))
        results = []
        for leaves, call in ((ours, FF.mlp), (theirs, None), (exact, None)):
            torch.manual_seed(5)
            x, w1, b1, w2, b2, z = leaves
            if call:
                out = call(x, w1, b1, w2, b2, activation=activation, dropout=p, residual=z)
            else:
                out = two_layers(*leaves, activation, p)
            out.backward(torch.cos(torch.arange(out.numel(), device=out.device)).reshape(out.shape).to(out))
            results.append([out.detach(), *(t.grad for t in leaves)])
        for a, b, c in zip(*results):
            error, own = (a.double() - c).norm(), (b.double() - c).norm()
            assert error <= 2 * own + 16 * torch.finfo(dtype).eps * c.norm(), (dtype, error, own)


def test_backward_launches(library):
    """Four products and the sums of two biases: no pass of its own for activation, dropout or a bias."""
    from emulator.counters import counters

    x, w1, b1, w2, b2, _ = operands("batch", torch.bfloat16, "cpu")
    library.fastdl_emulator_device(8, 163 << 10, 80)
    with _library.use("emulated"):
        counters(library)
        out = FF.mlp(x, w1, b1, w2, b2, dropout=0.0)
        assert counters(library)[0] == 2
        out.backward(torch.ones_like(out))
        launches, _, _, names = counters(library)
    assert launches == 5, names  # four products; sum_partials adds up bias1's partial sums
    assert "activation_backward_kernel" not in names


@pytest.mark.parametrize("needs", range(1, 64, 5))
def test_only_what_is_asked(backend, needs):
    """Every subset of gradients equals that of the two calls."""
    ours, theirs = (operands("small", torch.float64, backend.device) for _ in range(2))
    for i, (a, b) in enumerate(zip(ours, theirs)):
        b.data.copy_(a.data)
        a.requires_grad_(bool(needs >> i & 1)), b.requires_grad_(bool(needs >> i & 1))
    torch.manual_seed(1)
    FF.mlp(*ours[:5], residual=ours[5], activation="silu", dropout=0.4).square().sum().backward()
    torch.manual_seed(1)
    two_layers(*theirs, "silu", 0.4).square().sum().backward()
    for a, b in zip(ours, theirs):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_gradgradcheck(backend):
    x, w1, b1, w2, b2, z = operands("small", torch.float64, backend.device)

    def call(*leaves):
        torch.manual_seed(3)
        return FF.mlp(*leaves[:5], activation="gelu_tanh", dropout=0.3, residual=leaves[5])

    assert torch.autograd.gradcheck(call, (x, w1, b1, w2, b2, z), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, w1, b1, w2, b2, z), fast_mode=True)


def test_opcheck():
    grad, weight, x, saved = torch.randn(6, 4), torch.randn(4, 5), torch.randn(6, 5), torch.randn(6, 5)
    torch.library.opcheck(GRAD_WEIGHT.overload, (grad, x, 0))
    for bias in (True, False):
        args = (grad, weight, saved, torch.tensor([7]), CODES["gelu"], 0.3, bias, 0)
        torch.library.opcheck(GRAD_INPUT.overload, args)


def test_module(backend):
    block = fastdl.nn.MLP(6, 10, activation="relu", dropout=0.2, device=backend.device)
    assert list(block.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    x = torch.randn(4, 6, device=backend.device)
    results = []
    for module in (block, copy.deepcopy(block)):
        if results:
            module.fc1.register_forward_hook(lambda *_: None)  # the layers are then called one by one
        torch.manual_seed(2)
        out = module(x, residual=x)
        out.sum().backward()
        results.append([out.detach(), *(p.grad for p in module.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
    block.eval()
    torch.testing.assert_close(block(x), block.fc2(block.fc1(x).relu()))


def test_autocast(backend):
    block = fastdl.nn.MLP(6, 10, 4, device=backend.device)
    x = torch.randn(8, 6, device=backend.device)
    with torch.autocast(backend.device.type, torch.bfloat16):
        out = block(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())


def test_compile(backend):
    if backend.name == "emulated":
        pytest.skip("the compiled graph holds the op, not the backend")
    block = fastdl.nn.MLP(6, 10, dropout=0.2, device=backend.device)
    assert_compiles(block, torch.randn(8, 6, device=backend.device))


def test_bad_input(backend):
    with pytest.raises(ValueError, match="activation must be"):
        fastdl.nn.MLP(6, 5, activation="tanh")
    with pytest.raises(ValueError, match="dropout probability"):
        FF.mlp(torch.ones(2, 3), torch.ones(4, 3), None, torch.ones(2, 4), dropout=2)
    x, w1, b1, w2, b2, _ = operands("small", torch.float32, backend.device)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        FF.mlp(x[:, :3], w1, b1, w2, b2)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        FF.mlp(x, w1, b1, w2[:, :3], b2)
    with pytest.raises(RuntimeError, match="residual must have the output's shape"):
        FF.mlp(x, w1, b1, w2, b2, residual=torch.ones(3, 3, device=backend.device))
