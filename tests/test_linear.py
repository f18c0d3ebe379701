"""fastdl.nn.Linear and functional.linear: values, masks, gradients, torch's contract."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import fastdl.functional
import fastdl.nn
from fastdl.activation import CODES, activate
from fastdl.linear import BACKWARD, FORWARD, linear
from fastdl.philox import keep_mask, new_seed

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = list(CODES)
# name -> (input's batch dimensions, in_features, out_features)
CASES = {
    "matrix": ((37,), 19, 29),
    "one": ((1,), 1, 1),
    "vector": ((), 19, 29),
    "batch": ((2, 3, 5), 8, 24),
    "blocks": ((40,), 16, 33),
    "tall": ((150,), 3, 7),  # column sums of more than one partial
    "no-rows": ((0,), 19, 29),
    "no-depth": ((4,), 0, 5),
    "no-columns": ((4,), 5, 0),
}


def operands(case, dtype, device, grad=False):
    """Return input, weight, bias, residual with K-scaled weights."""
    batch, k, n = CASES[case]
    shapes = ((*batch, k), (n, k), (n,), (*batch, n))
    scales = (1, max(k, 1) ** -0.5, 1, 1)
    return [
        (torch.randn(s, dtype=torch.float64) * c).to(device, dtype).requires_grad_(grad) for s, c in zip(shapes, scales)
    ]


def expected(input, weight, bias, residual, activation, p, mask):
    """The formula, in the operands' own dtype and torch's own ops."""
    out = activate(F.linear(input, weight, bias), activation)
    if mask is not None:
        out = torch.where(mask, out * (1 / (1 - p) if p < 1 else 0.0), 0)
    return out if residual is None else out + residual


def mask_of(shape, p, device):
    """Return the mask that the next call draws, and leave the generator as it was."""
    state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    mask = keep_mask(shape, new_seed(device), p)
    torch.set_rng_state(state) if device.type == "cpu" else torch.cuda.set_rng_state(state, device)
    return mask


def assert_as_good(ours, theirs, exact):
    """Require at most twice torch's own error, of the largest magnitude."""
    assert ours.shape == exact.shape
    if exact.numel():
        ulps = 32 if ours.dtype == torch.float64 else 4  # float64 is its own reference: `own` is 0
        tiny = ulps * torch.finfo(ours.dtype).eps * max(exact.abs().max().item(), 1)
        error, own = (ours.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
        assert error <= 2 * own + tiny, (error, own)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_forward_and_backward(backend, activation, dtype):
    backend.requires("linear_forward", "linear_backward")
    for case in CASES:
        for p, with_bias, with_residual in (
            (0.3, True, True),
            (0.0, True, False),
            (0.01, False, False),
            (0, True, True),
        ):
            inputs = operands(case, dtype, backend.device, grad=True)
            inputs[2] = inputs[2] if with_bias else None
            inputs[3] = inputs[3] if with_residual else None
            exact_inputs = [t if t is None else t.detach().double().requires_grad_() for t in inputs]
            own_inputs = [t if t is None else t.detach().clone().requires_grad_() for t in inputs]
            shape = (*CASES[case][0], CASES[case][2])
            mask = mask_of(shape, p, backend.device) if p else None
            ours = linear(*inputs[:3], activation=activation, dropout=p, residual=inputs[3])
            own = expected(*own_inputs, activation, p, mask)
            exact = expected(*exact_inputs, activation, p, mask)
            assert ours.dtype == dtype
            assert ours.is_contiguous()
            assert_as_good(ours, own, exact)
            grad = torch.randn_like(ours)
            for result, g in ((ours, grad), (own, grad), (exact, grad.double())):
                result.backward(g)
            for a, b, c in zip(inputs, own_inputs, exact_inputs):
                if a is not None:
                    assert_as_good(a.grad, b.grad, c.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(backend, activation):
    backend.requires("linear_forward", "linear_backward")
    for case in ("matrix", "vector"):
        batch = CASES[case][0]
        inputs = operands(case, torch.float64, backend.device, grad=True)
        inputs = [t[..., :5].detach().requires_grad_() if t.dim() else t for t in inputs]
        if batch:
            inputs[0] = inputs[0].detach()[:3].requires_grad_()
            inputs[3] = inputs[3].detach()[:3].requires_grad_()
        inputs[1] = inputs[1].detach()[:5].requires_grad_()

        def call(x, w, b, z):
            torch.manual_seed(3)
            return linear(x, w, b, activation=activation, dropout=0.4, residual=z)

        assert torch.autograd.gradcheck(call, inputs, fast_mode=backend.name == "emulated")
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=backend.name == "emulated")


def test_mask_depends_on_index_alone(backend):
    backend.requires("linear_forward")
    x, w, b, z = operands("blocks", torch.float32, backend.device)
    for p in (0.5, 0.005, 1.0):
        results = []
        for view in (x, x.mT.contiguous().mT, x.view(4, 10, 16)):
            torch.manual_seed(11)
            out = linear(view, w, b, dropout=p, residual=z.view(*view.shape[:-1], -1))
            results.append(out.reshape(z.shape))
        torch.manual_seed(11)
        mask = mask_of(z.shape, p, backend.device)
        torch.testing.assert_close(results[0], expected(x, w, b, z, None, p, mask))
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(results[2], results[0])


def test_dropout_off_in_eval():
    x, w, b, _ = operands("matrix", torch.float32, "cpu")
    assert torch.equal(linear(x, w, b, dropout=0.9, training=False), F.linear(x, w, b))
    layer = fastdl.nn.Linear(4, 5, dropout=0.9).eval()
    x = torch.randn(3, 4)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_infinities_meet_the_activation(backend):
    """relu(-inf) is 0, a dropped inf is 0, NaN passes."""
    backend.requires("linear_forward", "linear_backward")
    x = torch.tensor([[-1.0], [1.0], [float("nan")], [2.0]], device=backend.device)
    w = torch.tensor([[float("inf")], [1.0]], device=backend.device)
    for activation in ("relu", "leaky_relu"):
        for z in (None, torch.ones(4, 2, device=backend.device)):
            mask = mask_of((4, 2), 0.5, backend.device)
            out = linear(x, w, activation=activation, dropout=0.5, residual=z)
            torch.testing.assert_close(out, expected(x, w, None, z, activation, 0.5, mask), equal_nan=True)


def test_gradient_layouts(backend):
    """Stride-0 and transposed output gradients, frozen operands."""
    backend.requires("linear_forward", "linear_backward")
    x, w, b, z = operands("matrix", torch.float32, backend.device, grad=True)
    for grad in (torch.ones((), device=backend.device).expand(37, 29), torch.randn(29, 37, device=backend.device).T):
        for wanted in ([0, 1, 2, 3], [0], [1], [2], [3]):
            inputs = [t if i in wanted else t.detach() for i, t in enumerate((x, w, b, z))]
            torch.manual_seed(5)
            mask = mask_of((37, 29), 0.2, backend.device)
            ours = linear(*inputs[:3], activation="silu", dropout=0.2, residual=inputs[3])
            theirs = expected(*inputs, "silu", 0.2, mask)
            chosen = [inputs[i] for i in wanted]
            for got, want in zip(torch.autograd.grad(ours, chosen, grad), torch.autograd.grad(theirs, chosen, grad)):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_same_tensor_twice():
    """Input and weight may be one tensor: its gradient is the sum, also for the double backward."""
    x = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)

    def call(t):
        torch.manual_seed(1)
        return linear(t, t, t[0], activation="gelu", dropout=0.3, residual=t)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def test_opcheck():
    x, w, b, z = operands("matrix", torch.float32, "cpu")
    seed = new_seed(x.device)
    for args in (
        (x, w, b, z, seed, CODES["gelu"], 0.3, True),
        (x, w, None, None, None, 0, 0.0, False),
        (x.view(1, *x.shape), w, b, None, seed, CODES["relu"], 0.001, False),
    ):
        torch.library.opcheck(FORWARD.overload, args)
    grad = torch.ones(1).expand(37, 29)
    torch.library.opcheck(BACKWARD.overload, (grad, z, seed, CODES["leaky_relu"], 0.3, True))
    torch.library.opcheck(BACKWARD.overload, (grad, z, None, CODES["gelu_tanh"], 0.0, False))


def test_op_db(backend):
    backend.requires("linear_forward")
    info = next(op for op in op_db if op.name == "nn.functional.linear")
    for sample in info.sample_inputs(backend.device, torch.float32, requires_grad=False):
        out = fastdl.functional.linear(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(out, F.linear(sample.input, *sample.args, **sample.kwargs), rtol=1e-5, atol=1e-4)


def test_module_db(backend):
    backend.requires("linear_forward", "linear_backward")
    info = next(m for m in module_db if m.module_cls is torch.nn.Linear)
    for sample in info.module_inputs_func(info, backend.device, torch.float64, requires_grad=True, training=True):
        arguments, call = sample.constructor_input, sample.forward_input
        torch.manual_seed(2)
        ours = fastdl.nn.Linear(*arguments.args, **arguments.kwargs).to(backend.device, torch.float64)
        torch.manual_seed(2)
        theirs = torch.nn.Linear(*arguments.args, **arguments.kwargs).to(backend.device, torch.float64)
        assert repr(ours) == repr(theirs)
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
        results = []
        for module in (ours, theirs):
            out = module(*call.args, **call.kwargs)
            parameters = list(module.parameters())
            inputs = [t for t in (*call.args, *call.kwargs.values()) if t.requires_grad]
            results.append((out, *torch.autograd.grad(out.sum(), [*inputs, *parameters])))
        torch.testing.assert_close(results[0], results[1])


def test_module_contract():
    layer = fastdl.nn.Linear(6, 4, activation="gelu", dropout=0.25)
    assert repr(layer) == "Linear(in_features=6, out_features=4, bias=True, activation='gelu', dropout=0.25)"
    plain = torch.nn.Linear(6, 4)
    plain.load_state_dict(layer.state_dict())
    layer.load_state_dict(plain.state_dict())
    assert isinstance(layer, torch.nn.Linear)
    x, z = torch.randn(3, 6), torch.randn(3, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(1)
        first = layer(x, residual=z)
        torch.manual_seed(1)
        assert torch.equal(twin(x, residual=z), first)
    half = fastdl.nn.Linear(6, 4, False, "cpu", torch.bfloat16, activation="relu")
    assert half.bias is None
    assert half(x.bfloat16()).dtype == torch.bfloat16


def errors(call):
    with pytest.raises(Exception) as info:
        call()
    return info.type, str(info.value)


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "dropout": 0.5}], ids=["plain", "fused"])
def test_errors_are_torchs(backend, options):
    x, w, b = torch.randn(2, 3), torch.randn(4, 5), torch.randn(4)
    for args in (
        (x, w, b),
        (x.half(), torch.randn(4, 3), None),
        (torch.randn(3), w, b),
        (torch.randn(2, 2, 3), w),
        (torch.randn(2, 5), w, torch.randn(3)),
        (torch.randn(2, 5), w, b.half()),
        (torch.randn(2, 5), torch.randn(2, 4, 5)),
        (torch.tensor(1.0), w),
    ):
        args = [a.to(backend.device) if a is not None else None for a in args]
        before = torch.get_rng_state()
        assert errors(lambda args=args: linear(*args, **options)) == errors(lambda args=args: F.linear(*args))
        assert torch.equal(torch.get_rng_state(), before)


def test_errors_are_ours():
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"dropout probability has to be between 0 and 1, but got 1.1"):
        linear(x, w, dropout=1.1)
    with pytest.raises(ValueError, match=r"dropout probability has to be between 0 and 1, but got nan"):
        fastdl.nn.Linear(3, 4, dropout=float("nan"))
    with pytest.raises(ValueError, match=r"linear: activation must be None or one of relu, .* got 'tanh'"):
        linear(x, w, activation="tanh")
    residuals = (torch.randn(4), torch.randn(1, 4), torch.randn(2, 5))
    before = torch.get_rng_state()
    for p in (0.0, 0.5):
        for z in residuals:
            with pytest.raises(RuntimeError, match=r"linear: residual must have the output's shape \(2, 4\), got \("):
                linear(x, w, dropout=p, residual=z)
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast(backend):
    backend.requires("linear_forward", "linear_backward")
    x, w, b, z = operands("matrix", torch.float32, backend.device, grad=True)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert linear(x, w, b, activation="gelu", dropout=0.5).dtype == torch.bfloat16
        out = linear(x, w, b, activation="gelu", dropout=0.5, residual=z)
        assert out.dtype == torch.float32
        assert linear(x.double(), w.double(), b.double(), dropout=0.5).dtype == torch.float64
    out.sum().backward()
    assert w.grad.dtype == torch.float32


def assert_compiles(block, x):
    """The module, compiled into one graph, has the module's own output, gradients and buffers."""
    results = []
    for module in (copy.deepcopy(block), torch.compile(block, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(4)
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_compile(backend):
    backend.requires("linear_forward", "linear_backward")
    if backend.name == "emulated":
        pytest.skip("the compiled graph holds the op, not the backend")
    layer = fastdl.nn.Linear(6, 8, activation="gelu", dropout=0.3).to(backend.device)
    x, z = torch.randn(5, 6, device=backend.device, requires_grad=True), torch.randn(5, 8, device=backend.device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for module in (layer, compiled):
        torch.manual_seed(4)
        out = module(x, residual=z)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(results[0], results[1])


def test_export():
    for options in ({"activation": "gelu"}, {"activation": "relu", "dropout": 0.5}):
        layer = fastdl.nn.Linear(6, 8, **options).eval()
        x = torch.randn(5, 6)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_transforms():
    layer = fastdl.nn.Linear(6, 8, activation="silu", dropout=0.3)
    x = torch.randn(5, 6)
    out = torch.vmap(lambda t: layer(t), randomness="different")(x)
    assert out.shape == (5, 8)
    assert 0 < (out == 0).sum() < 40
    same = torch.vmap(lambda t: layer(t), randomness="same")(x[:1].expand(5, 6))
    torch.testing.assert_close(same[0], same[4])
    with pytest.raises(RuntimeError, match=r"randomness"):
        torch.vmap(lambda t: layer(t))(x)
    layer.eval()
    jacobian = torch.func.jacrev(layer)(x[0])
    torch.testing.assert_close(jacobian, torch.func.jacfwd(layer)(x[0]))
    _, tangent = torch.func.jvp(layer, (x[0],), (torch.ones(6),))
    torch.testing.assert_close(tangent, jacobian.sum(1))


def test_repeatable(backend):
    backend.requires("linear_forward", "linear_backward")
    x, w, b, z = operands("matrix", torch.float32, backend.device, grad=True)
    results = []
    for _ in range(300 if backend.name == "cuda" else 3):
        torch.manual_seed(9)
        out = linear(x, w, b, activation="gelu", dropout=0.5, residual=z)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, w, b))))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0]))


def test_subclass_of_linear_in_torchs_tools():
    """Weight norm and hooks see a torch.nn.Linear."""
    layer = torch.nn.utils.parametrizations.weight_norm(fastdl.nn.Linear(3, 4, activation="relu"))
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(2, 3)).sum().backward()
    assert calls
