"""batch_norm and its modules against torch's own, in float64 and by torch's own test inputs."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils.checkpoint import checkpoint

import fastdl.functional as fF
import fastdl.nn as fnn
from fastdl.activation import ACTIVATIONS
from fastdl.philox import keep_mask

OPS = ("batch_norm_forward", "batch_norm_backward")
SHAPES = [
    (16, 32),
    (33, 7),
    (4, 3, 5, 7),
    (8, 70, 9, 9),
    (2, 5, 3, 4, 5),
    (30, 33, 1),
    (3, 1, 50),
    (2, 3, 1, 1),
    (1, 2, 9),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def last(x):
    """Channels last, where the shape has such a layout."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


def run(f, dtype, x, weight, bias, grad, training, **extras):
    """Output, gradients and running statistics, computed in `dtype`."""
    x, weight, bias = (t.detach().to(dtype).requires_grad_() for t in (x, weight, bias))
    stats = torch.full_like(bias.detach(), 0.5), torch.full_like(bias.detach(), 2.0)
    y = f(x, *stats, weight, bias, training, **extras)
    return y, *torch.autograd.grad(y, (x, weight, bias), grad.to(dtype)), *stats


def check_budget(ours, theirs, exact):
    for o, t, r in zip(ours, theirs, exact):
        assert o.shape == t.shape
        assert o.dtype == t.dtype
        assert o.stride() == t.stride()
        error, budget = ((v.double() - r).abs().max() for v in (o, t))
        assert error <= 2 * budget + 1e-6 * (1 + r.abs().max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_gradients_and_strides(backend, shape, channels_last, training):
    backend.requires(*OPS)
    for dtype in DTYPES:
        x = (torch.randn(shape, device=backend.device) * 3 + 5).to(dtype)
        x = last(x) if channels_last else x
        weight, bias = (torch.randn(shape[1], device=backend.device).to(dtype) for _ in range(2))
        grad = torch.randn_like(x)
        args = (x, weight, bias, grad, training)
        check_budget(
            run(fF.batch_norm, dtype, *args), run(F.batch_norm, dtype, *args), run(F.batch_norm, torch.float64, *args)
        )


@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "expanded", "offset", "channel slice", "nlc"])
def test_strided_input(backend, layout):
    backend.requires(*OPS)
    base = torch.randn(8, 6, 5, 12, device=backend.device)
    x = {
        "rows": lambda: base[::2],
        "columns": lambda: base[..., ::2],
        "transposed": lambda: base.transpose(2, 3),
        "expanded": lambda: base[:1].expand(8, 6, 5, 12),
        "offset": lambda: base.flatten()[1:-359].view(7, 6, 5, 12),
        "channel slice": lambda: last(base)[:, 1:4],
        "nlc": lambda: base[:, 0].transpose(1, 2),
    }[layout]()
    C = x.size(1)
    args = (
        x,
        torch.randn(C, device=x.device),
        torch.randn(C, device=x.device),
        torch.randn(x.shape, device=x.device),
        True,
    )
    check_budget(
        run(fF.batch_norm, x.dtype, *args), run(F.batch_norm, x.dtype, *args), run(F.batch_norm, torch.float64, *args)
    )


def test_gradient_of_another_layout(backend):
    backend.requires(*OPS)
    x = torch.randn(4, 6, 5, 7, device=backend.device, requires_grad=True)
    for grad in (
        last(torch.randn(4, 6, 5, 7, device=backend.device)),
        torch.ones(1, device=backend.device).expand(4, 6, 5, 7),
    ):
        ours, theirs = (
            torch.autograd.grad(f(x, None, None, training=True), x, grad)[0] for f in (fF.batch_norm, F.batch_norm)
        )
        torch.testing.assert_close(ours, theirs)


def fused(x, mean, var, weight, bias, training, *, activation, residual, keep=None, p=0.0):
    y = F.batch_norm(x, mean, var, weight, bias, training) + residual
    y = y if activation is None else ACTIVATIONS[activation][0](y)
    return y if keep is None else torch.where(keep, y / (1 - p), 0)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused(backend, activation, dtype, channels_last):
    backend.requires(*OPS)
    x, z, grad = (torch.randn(5, 9, 6, 7, device=backend.device).to(dtype) * 2 for _ in range(3))
    x = last(x) if channels_last else x
    weight, bias = (torch.randn(9, device=backend.device).to(dtype) for _ in range(2))
    p = 0.25
    torch.manual_seed(3)
    keep = keep_mask(x.shape, torch.randint(-(2**63), 2**63 - 1, (1,), device=x.device), p)
    results = []
    for f, kind, extras in ((fF.batch_norm, dtype, {"dropout": p}), (fused, torch.float64, {"keep": keep, "p": p})):
        torch.manual_seed(3)
        leaf = z.detach().to(kind).requires_grad_()
        results.append(run(f, kind, x, weight, bias, grad, True, activation=activation, residual=leaf, **extras))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for ours, exact in zip(*results):
        torch.testing.assert_close(
            ours.double(), exact, rtol=tolerance, atol=tolerance * (1 + exact.abs().max().item() / 10)
        )


@pytest.mark.parametrize("p", [0.0, 0.005, 0.5, 1.0])
def test_dropout_and_residual_gradients(backend, p):
    backend.requires(*OPS)
    x = last(torch.randn(4, 8, 5, 5, device=backend.device)).requires_grad_()
    z = torch.randn(4, 8, 5, 5, device=backend.device, requires_grad=True)
    y = fF.batch_norm(x, None, None, training=True, activation="relu", residual=z, dropout=p)
    y.sum().backward()
    assert torch.equal(z.grad != 0, y != 0)
    assert torch.isfinite(y).all()
    assert y.eq(0).all() if p == 1 else True


@pytest.mark.parametrize("channels_last", [False, True])
def test_exactness(backend, channels_last):
    backend.requires(*OPS)
    shape, beta = (16, 8, 20, 20), torch.linspace(-2, 2, 8, device=backend.device)
    for constant in (1e4, -3.3, 0.0, 1e30, 1e-30):
        x = torch.full(shape, constant, device=backend.device)
        y = fF.batch_norm(last(x) if channels_last else x, None, None, None, beta, training=True)
        assert torch.equal(y, beta.view(1, -1, 1, 1).expand(shape))
    for mean, std in ((1e6, 1.0), (0.0, 1e30), (-1e5, 1e-1), (1e30, 1e30)):
        x = torch.randn(shape, device=backend.device) * std + mean
        x = last(x) if channels_last else x
        y = fF.batch_norm(x, None, None, None, None, training=True)
        torch.testing.assert_close(y, F.batch_norm(x.double(), None, None, training=True).float(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_stay_in_their_channel(backend, bad):
    backend.requires(*OPS)
    for x in (torch.randn(4, 5, 6, 6, device=backend.device), last(torch.randn(4, 5, 6, 6, device=backend.device))):
        x[1, 2, 3, 3] = bad
        mean, var = torch.zeros(5, device=x.device), torch.ones(5, device=x.device)
        x.requires_grad_()
        y = fF.batch_norm(x, mean, var, training=True)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(x))
        for values in (y.detach().transpose(0, 1).flatten(1), grad.transpose(0, 1).flatten(1), var.view(5, 1)):
            assert torch.isfinite(values).all(dim=1).tolist() == [True, True, False, True, True]


def test_more_memory_bound_cases_are_repeatable(backend):
    backend.requires(*OPS)
    x = torch.randn(64, 3, 33, 31, device=backend.device, requires_grad=True)

    def call():
        y = fF.batch_norm(x, None, None, training=True)
        return y, torch.autograd.grad(y, x, x)[0]

    assert all(torch.equal(a, b) for a, b in zip(call(), call()))


@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision_parameters(backend, training):
    backend.requires(*OPS)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(6, 4, 5, 5, device=backend.device).to(dtype).requires_grad_()
        ours, theirs = (
            fnn.BatchNorm2d(4, device=x.device).train(training),
            torch.nn.BatchNorm2d(4, device=x.device).train(training),
        )
        for m in (ours, theirs):
            m(x).sum().backward()
        assert ours.weight.grad.dtype == torch.float32
        torch.testing.assert_close(ours(x), theirs(x), rtol=2e-2, atol=2e-2)  # the same dtype, too
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
@pytest.mark.parametrize("training", [True, False])
def test_module_db(name, training):
    (info,) = (m for m in module_db if m.name == f"nn.{name}")
    for sample in info.module_inputs_func(info, "cpu", torch.float64, True, training):
        ours = (
            getattr(fnn, name)(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            .double()
            .train(training)
        )
        theirs = (
            getattr(torch.nn, name)(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            .double()
            .train(training)
        )
        inputs = sample.forward_input.args
        a, b = ours(*inputs), theirs(*inputs)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            torch.autograd.grad(a.sin().sum(), inputs), torch.autograd.grad(b.sin().sum(), inputs)
        )
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        assert repr(ours) == repr(theirs)
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata


def test_op_db():
    (info,) = (o for o in op_db if o.name == "nn.functional.batch_norm" and not o.variant_test_name)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-7)):
        for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
            results = []
            for f in (fF.batch_norm, F.batch_norm):
                copied = sample.transform(
                    lambda t: t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t
                )
                y = f(copied.input, *copied.args, **copied.kwargs)
                results.append((y, *torch.autograd.grad(y.sin().sum(), copied.input), *copied.args[:2]))
            torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_errors_are_torchs_and_leave_the_state_alone():
    x = torch.randn(4, 3, 5, 5)
    mean, var, w = torch.zeros(3), torch.ones(3), torch.ones(3)
    four, double = torch.zeros(4), torch.ones(3).double()
    calls = [
        ((x, four, var, w), {}), ((x, mean, four, w), {}), ((x, mean, var, four), {}), ((x, mean, var, w, four), {}),
        ((x, None, var), {}), ((x, mean, None), {}), ((x.long(), mean, var), {}), ((x.bool(), None, None), {}),
        ((x, mean, var, double), {}), ((x.double(), mean, var, w), {}), ((x, double, var, w), {}),
        ((x.half(), mean, var, w.half()), {}), ((x.half(), mean.half(), var.half(), w), {}),
        ((x.bfloat16(), mean.half(), var.half()), {}),
        ((x, mean, var), {"eps": 0.0}), ((x[:1, :, :1, :1], mean, var), {}), ((x[:1, :, 0, 0], mean, var), {}),
        ((x, mean, var, w.to("meta")), {}), ((x.to("meta"), mean, var), {}),
    ]  # fmt: skip
    for args, kwargs in calls:
        errors = []
        for f in (F.batch_norm, fF.batch_norm):
            given = args if f is fF.batch_norm else copy.deepcopy(args)  # torch may write before it raises
            with pytest.raises((RuntimeError, ValueError)) as caught:
                f(*given, training=True, **kwargs)
            errors.append((caught.type, str(caught.value).split("\n")[0]))
        assert errors[0] == errors[1]
    for args in ((x, None, var), (x, mean, None), (x, None, None)):
        with pytest.raises(RuntimeError, match="must be defined in evaluation mode"):
            fF.batch_norm(*args)
    with pytest.raises(RuntimeError, match="residual must have the input's shape"):
        fF.batch_norm(x, mean, var, training=True, residual=x[:1])
    with pytest.raises(ValueError, match="activation must be"):
        fF.batch_norm(x, mean, var, training=True, activation="softplus")
    with pytest.raises(ValueError, match=r"dropout probability has to be between 0 and 1, but got 1.1"):
        fF.batch_norm(x, mean, var, training=True, dropout=1.1)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))
    assert mean._version == 0
    module = fnn.BatchNorm2d(3)
    for bad in (torch.randn(1, 3, 1, 1), torch.randn(2, 4, 2, 2), torch.randn(2, 3, 2)):
        with pytest.raises((RuntimeError, ValueError)):
            module(bad)
    assert module.num_batches_tracked == 0


def test_running_statistics(backend):
    backend.requires(*OPS)
    for kwargs in (
        {},
        {"momentum": None},
        {"track_running_stats": False},
        {"affine": False},
        {"momentum": 0.3, "eps": 1e-2},
    ):
        ours, theirs = (m(5, device=backend.device, **kwargs) for m in (fnn.BatchNorm1d, torch.nn.BatchNorm1d))
        for training in (True, True, False, True):
            x = torch.randn(7, 5, 3, device=backend.device) + 4
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    version = ours.running_mean._version
    ours(x)
    assert ours.running_mean._version > version
    assert ours.num_batches_tracked == 4


def test_empty(backend):
    backend.requires(*OPS)
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4), (0, 3)):
        x = torch.randn(shape, device=backend.device, requires_grad=True)
        mean, var, w = (
            torch.zeros(3, device=x.device),
            torch.ones(3, device=x.device),
            torch.ones(3, device=x.device, requires_grad=True),
        )
        y = fF.batch_norm(x, mean, var, w, training=True)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
        assert torch.equal(w.grad, torch.zeros_like(w))
        assert torch.equal(mean, torch.zeros_like(mean))
        assert torch.equal(var, torch.ones_like(var))


@pytest.mark.parametrize("training", [True, False])
def test_every_subset_of_gradients(backend, training):
    backend.requires(*OPS)
    for subset in range(16):
        leaves = [torch.randn(s, device=backend.device) for s in ((6, 4, 3), (6, 4, 3), (4,), (4,))]
        wanted = [t.requires_grad_() for i, t in enumerate(leaves) if subset >> i & 1]
        x, z, w, b = leaves
        mean, var = torch.zeros(4, device=x.device), torch.ones(4, device=x.device)
        for activation in (None, "silu"):
            y = fF.batch_norm(x, mean.clone(), var.clone(), w, b, training, activation=activation, residual=z)
            assert y.requires_grad == bool(wanted)
            if wanted:
                exact = fused(
                    x.double(),
                    mean.double(),
                    var.double(),
                    w.double(),
                    b.double(),
                    training,
                    activation=activation,
                    residual=z.double(),
                )
                for a, e in zip(
                    torch.autograd.grad(y.sin().sum(), wanted), torch.autograd.grad(exact.sin().sum(), wanted)
                ):
                    torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "leaky_relu", "gelu"])
def test_gradcheck(training, activation):
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 2), (3, 2, 2), (2,), (2,))]
    mean, var = torch.zeros(2).double(), torch.ones(2).double()

    def f(x, z, w, b):
        torch.manual_seed(1)
        return fF.batch_norm(
            x, mean.clone(), var.clone(), w, b, training, activation=activation, residual=z, dropout=0.2
        )

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


def test_opcheck():
    x, z, stats = torch.randn(4, 3, 5), torch.randn(4, 3, 5), [torch.zeros(3), torch.ones(3)]
    w, seed, batches = torch.ones(3), torch.tensor([7]), torch.tensor(0)
    for training in (True, False):
        for input in (x, torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)):
            residual = z if input is x else None
            args = (input, residual, w, None, *stats, batches, seed, training, None if training else 0.1, 1e-5, 1, 0.25)
            torch.library.opcheck(torch.ops.fastdl.batch_norm_forward.default, args)
            args = (
                input,
                input,
                residual,
                w,
                None,
                *(t.double() for t in stats),
                None,
                seed,
                training,
                1e-5,
                1,
                0.25,
                True,
                True,
                True,
            )
            torch.library.opcheck(torch.ops.fastdl.batch_norm_backward.default, args)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile_and_export(momentum):
    ours = fnn.BatchNorm2d(3, momentum=momentum, activation="relu", dropout=0.0)
    eager = copy.deepcopy(ours)
    x, z = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 5, 5)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        a, b = compiled(x, residual=z), eager(x, residual=z)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a.sum(), x), torch.autograd.grad(b.sum(), x))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    program = torch.export.export(ours.eval(), (x.detach(),), {"residual": z})
    torch.testing.assert_close(program.module()(x.detach(), residual=z), eager.eval()(x, residual=z))


def test_copies_pickles_and_checkpoints():
    module = fnn.BatchNorm1d(4, activation="silu", dropout=0.5)
    x = torch.randn(8, 4, requires_grad=True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.load_state_dict(torch.nn.BatchNorm1d(4).state_dict())
        assert repr(other) == repr(module)
    assert repr(module).endswith("track_running_stats=True, activation='silu', dropout=0.5)")
    torch.manual_seed(5)
    plain = torch.autograd.grad(module(x).sum(), x)
    torch.manual_seed(5)
    torch.testing.assert_close(torch.autograd.grad(checkpoint(module, x, use_reentrant=False).sum(), x), plain)


def test_autocast():
    module, x = fnn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x.bfloat16(), residual=x)
        assert half.dtype == torch.bfloat16
        assert module(x).dtype == torch.nn.BatchNorm2d(3)(x).dtype
    with pytest.raises(RuntimeError, match="residual must have the input's dtype"):
        module(x, residual=x.double())


def test_threads_do_not_change_bits():
    x = torch.randn(32, 5, 70, 70)
    before = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append([fF.batch_norm(t, None, None, training=True) for t in (x, last(x))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("values", [(1, "inf"), ("-inf", 2), ("inf", "-inf"), ("nan", 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_infinity_reaches_running_mean_as_in_torch(backend, dtype, values, channels_last):
    if backend.name not in ("reference", "cpu"):
        pytest.skip("the kernels' running_mean becomes NaN, as their merge of partial means does")
    x = torch.randn(4, 3, 5, 5).to(dtype)
    x[1, 1, 2, 2:4] = torch.tensor([float(v) for v in values]).to(dtype)
    x = last(x) if channels_last else x
    stats = [(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)) for _ in range(2)]
    ours, theirs = (f(x, *s, training=True) for f, s in zip((fF.batch_norm, F.batch_norm), stats))
    torch.testing.assert_close(stats[0], stats[1], equal_nan=True, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("training", [True, False])
def test_empty_input_does_not_excuse_wrong_statistics(training):
    for sizes in ((4, 3), (3, 4)):
        mean, var = torch.zeros(sizes[0]), torch.ones(sizes[1])
        with pytest.raises(RuntimeError, match="should contain 3 elements not 4"):
            fF.batch_norm(torch.zeros(0, 3, 4, 4), mean, var, training=training)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_torchs_tools_know_the_modules(name):
    """isinstance, update_bn and convert_sync_batchnorm; the last refuses what it would drop."""
    ours = getattr(fnn, name)(3)
    assert isinstance(ours, getattr(torch.nn, name))
    x = torch.randn(8, 3, *[2] * (int(name[-2]) if name != "BatchNorm1d" else 0)) + 5
    torch.optim.swa_utils.update_bn([x], ours)
    torch.testing.assert_close(ours.running_mean, x.transpose(0, 1).flatten(1).mean(1))
    model = torch.nn.Sequential(ours, torch.nn.Identity())
    keys = list(model.state_dict())
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[0]) is torch.nn.SyncBatchNorm
    assert model[0].weight is ours.weight
    assert model[0].running_mean is ours.running_mean
    assert list(model.state_dict()) == keys
    for extras in ({"activation": "relu"}, {"dropout": 0.1}):
        fused = getattr(fnn, name)(3, **extras)
        assert list(fused.named_children()) == []
        with pytest.raises(RuntimeError, match=rf"convert_sync_batchnorm: {name}\(3.* fuses what .* build it without"):
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(fused))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replayed_graphs_move_the_statistics_and_draw_anew():
    module, x = fnn.BatchNorm2d(8, dropout=0.5, device="cuda"), torch.randn(4, 8, 9, 9, device="cuda")
    with torch.no_grad():
        module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
    batches, mean = module.num_batches_tracked.item(), module.running_mean.clone()
    graph.replay()
    first = y.clone()
    graph.replay()
    assert module.num_batches_tracked.item() == batches + 2
    assert not torch.equal(module.running_mean, mean)
    assert not torch.equal(first, y)


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 << 30, reason="needs 40 GB on a GPU"
)
def test_more_than_32_bits_of_elements():
    x = torch.empty(2, 4, 2**29 + 8, dtype=torch.bfloat16, device="cuda")
    for c in range(4):
        x[:, c, ::2], x[:, c, 1::2] = c - 1, c + 1
    y = fF.batch_norm(x, None, None, training=True)
    assert y[:, :, ::2].eq(-1).all()
    assert y[:, :, 1::2].eq(1).all()
