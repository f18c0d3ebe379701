"""float32 by bfloat16 terms where a product also sums: gradients of biases, column sums, batch norm's moments."""

import pytest
import torch
from emulator.counters import counters
from test_gemm_float32 import ALWAYS, DATA, DEVICES
from test_gemm_float32 import device as device

import fastdl
from fastdl import _library
from fastdl.activation import CODES, activation_backward
from fastdl.gemm import HIGHEST

OPS = torch.ops.fastdl_emulated


def ran(library, device):
    names = counters(library)[3]
    assert "emulated_" + device in names, names
    assert "simt_kernel" not in names
    return names


def sum_error(sums, rows):
    """Root mean square of the error of sums over the first dimension, relative to the sums of magnitudes."""
    exact, all_ = rows.double().sum(0), rows.double().abs().sum(0).clamp(min=1e-30)
    return ((sums.double() - exact) / all_).square().mean().sqrt().item()


@pytest.mark.parametrize("m", [40, 1000])
@pytest.mark.parametrize("data", DATA)
def test_bias_gradients(library, device, data, m):
    """Beside the weight's gradient, at most true float32's error: each is the sum of 16 rows' sums, in pairs."""
    grad, x = DATA[data](m, 70), DATA[data](m, 50)
    weight, bias = OPS.linear_grad_weight(grad, x, ALWAYS)
    assert "sum_partials_kernel" in ran(library, device)
    true = OPS.linear_grad_weight(grad, x, HIGHEST)
    assert sum_error(bias, grad) <= sum_error(true[1], grad) + 2**-26
    torch.testing.assert_close(weight.double(), grad.double().T @ x.double(), rtol=1e-4, atol=1e-4 * x.abs().max())
    again = OPS.linear_grad_weight(grad, x, ALWAYS)
    assert torch.equal(bias, again[1])
    assert torch.equal(weight, again[0])


@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
def test_bias_gradients_are_exact(library, device, layout):
    """Of integers, in parts of k too; with infinities and NaN where float32 has them."""
    library.fastdl_emulator_device(132, *DEVICES[device][1:])
    m, n, k = 6000, 30, 20
    grad, x = torch.randint(-64, 65, (m, n)).float(), torch.randint(-64, 65, (m, k)).float()
    if layout == "columns":
        grad = grad.T.contiguous().T
    elif layout == "strided":
        grad = torch.stack([grad, torch.full_like(grad, float("nan"))], -1)[..., 0]
    weight, bias = OPS.linear_grad_weight(grad, x, ALWAYS)
    assert "split_sum_kernel" in ran(library, device)
    assert torch.equal(bias.double(), grad.double().sum(0))
    assert torch.equal(weight.double(), grad.double().T @ x.double())
    grad[5, 3], grad[70, 3], grad[9, 4], grad[10, 5] = float("inf"), float("-inf"), float("nan"), float("inf")
    bias = OPS.linear_grad_weight(grad, x, ALWAYS)[1]
    torch.testing.assert_close(bias.double(), grad.double().sum(0), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("shape", [(300, 61, 100), (128, 192, 64), (5, 200, 33)])
def test_column_sums(library, device, activation, shape):
    """The gradient at a hidden layer's preactivation with the bias's gradient, as an MLP's backward pass wants it."""
    m, n, k = shape
    grad, w, saved = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
    kept = None if activation is None else saved
    ours, sums = OPS.linear_grad_input(grad, w, kept, None, CODES[activation], 0.0, True, ALWAYS)
    ran(library, device)
    exact = activation_backward(grad.double() @ w.double(), saved.double(), activation)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    assert sum_error(sums, ours) <= 2**-22


@pytest.mark.parametrize(("n", "tile"), [(384, 192), (250, 128)])
def test_tiles(library, n, tile):
    """Both tiles of wgmma: several a block, edges, repaired sums in every part of a thread's."""
    library.fastdl_emulator_device(*DEVICES["wgmma"])
    a, b = torch.randint(1, 4, (300, 70)).float(), torch.randint(1, 4, (70, n)).float()
    expected, exact = a @ b, OPS.linear_grad_input(a, b, None, None, CODES[None], 0.0, True, ALWAYS)
    assert f"EmulatedWgmmaShape<{tile}>" in counters(library)[3]
    assert torch.equal(exact[0], expected)
    torch.testing.assert_close(exact[1], expected.sum(0))
    a[:, 5] = float("inf")
    a[7, 6], b[6, 3::7] = float("-inf"), 0
    repaired = OPS.linear_grad_input(a, b, None, None, CODES[None], 0.0, True, ALWAYS)[0]
    torch.testing.assert_close(repaired, OPS.gemm(a, b, HIGHEST), rtol=0, atol=0, equal_nan=True)
    assert repaired.isinf().any()
    assert repaired.isnan().any()


def test_special_values_are_in_the_sums(library, device):
    """Sums of columns are those of what was stored, after the repair of what is not finite."""
    grad, w = torch.randint(1, 4, (150, 70)).float(), torch.randint(1, 4, (70, 130)).float()
    grad[3, 2], w[5, 9], grad[140, 7] = float("inf"), float("-inf"), float("nan")
    w[:, 100] = 0
    ours, sums = OPS.linear_grad_input(grad, w, None, None, CODES[None], 0.0, True, ALWAYS)
    ran(library, device)
    torch.testing.assert_close(ours, grad @ w, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(sums, (grad @ w).sum(0), equal_nan=True)
    assert ours.isinf().any()
    assert ours.isnan().any()


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_batch_norm_statistics(library, device, monkeypatch, mean):
    """LinearBatchNormAct: moments from the product's own tiles, exact where the mean is far from zero."""
    monkeypatch.setitem(fastdl.gemm._MODES, "emulated", ALWAYS)
    layer = fastdl.nn.LinearBatchNormAct(40, 70, bias=True, activation="relu")
    with torch.no_grad():
        layer.linear.bias.fill_(mean)
    x = torch.randn(300, 40)
    with _library.use("emulated"), fastdl.float32_matmul("emulated"):
        ours = layer(x)
        names = ran(library, device)
        ours.square().sum().backward()
        assert "simt_kernel" not in counters(library)[3]
    assert "rows_apply_kernel" in names  # which reads the product's output once, given its moments
    grads = [p.grad for p in layer.parameters()]
    double = fastdl.nn.LinearBatchNormAct(40, 70, bias=True, activation="relu").double()
    double.load_state_dict({name: t.double() for name, t in layer.state_dict().items()})
    with _library.use("reference"):
        exact = double(x.double())
        exact.square().sum().backward()
    tolerance = 1e-5 if mean == 0 else 1e-2  # float32 keeps so much of numbers about 10,000
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    for mine, true in zip(grads, (p.grad for p in double.parameters())):
        assert mean or (mine - true).abs().max() <= 2e-4 * true.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_every_product_of_a_layer(library, device, monkeypatch, name):
    """Forward and backward, biases included, without one multiplication of true float32."""
    monkeypatch.setitem(fastdl.gemm._MODES, "emulated", ALWAYS)
    layer = fastdl.nn.Linear(24, 30) if name == "linear" else fastdl.nn.MLP(24, 30)
    x = torch.randn(40, 24, requires_grad=True)
    inputs = [x, *layer.parameters()]
    with _library.use("emulated"), fastdl.float32_matmul("emulated"):
        layer(x).square().sum().backward()
        ran(library, device)
    ours = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    with _library.use("reference"):
        layer(x).square().sum().backward()
    for mine, t in zip(ours, inputs):
        torch.testing.assert_close(mine, t.grad, rtol=1e-4, atol=1e-3)
