"""Dropout as torch's users meet it: modules, errors, autograd, generators, compile, export, op_db."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils.checkpoint import checkpoint

import fastdl.functional as FF
import fastdl.nn as fnn
from fastdl.activation import CODES, activate
from fastdl.dropout import _dropout, _dropout_backward, _dropout_in_place
from fastdl.philox import keep_mask, new_seed

ACTIVATIONS = list(CODES)
FEATURES = ["dropout1d", "dropout2d", "dropout3d"]


def next_mask(shape, p, device="cpu"):
    """The mask that the next call will draw."""
    state = torch.get_rng_state()
    mask = keep_mask(shape, new_seed(torch.device(device)), p)
    torch.set_rng_state(state)
    return mask


def outcome(function):
    """What a user sees: the exception's type and text, or the warnings' texts and the output's shape."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function()
        except Exception as error:
            return type(error), str(error)
    return [str(w.message) for w in caught], tuple(result.shape), result.dtype


# ------------------------------------------------------------------------------------------------- errors and identity


@pytest.mark.parametrize(
    ("name", "make", "arguments"),
    [
        ("dropout", lambda: torch.ones(4), (1.1,)),
        ("dropout", lambda: torch.ones(4), (-0.1, False)),
        ("dropout", lambda: torch.arange(4), (0.5,)),
        ("dropout", lambda: torch.arange(4), (0.5, False)),
        ("dropout", lambda: torch.arange(4), (0.0,)),
        ("dropout", lambda: torch.arange(4), (1.0,)),
        ("dropout", lambda: torch.arange(4), (0.5, True, True)),
        ("dropout", lambda: torch.ones(4, dtype=torch.bool), (0.5,)),
        ("dropout", lambda: torch.ones(4, dtype=torch.complex64), (0.5,)),
        ("dropout", lambda: [1.0], (0.5,)),
        ("dropout", lambda: torch.ones(4), ("half",)),
        ("dropout", lambda: torch.ones(4, requires_grad=True), (0.5, True, True)),
        ("dropout", lambda: torch.ones(4, requires_grad=True)[1:], (0.5, True, True)),
        ("dropout", lambda: torch.ones(1).expand(4), (0.5, True, True)),
        ("dropout", lambda: torch.ones(4, device="meta"), (0.5,)),
        *[(name, lambda: torch.ones(2, 3, 4), (1.5,)) for name in FEATURES],
        *[(name, lambda: torch.arange(24).view(2, 3, 4), (0.5,)) for name in FEATURES],
        *[(name, lambda d=d: torch.ones([2] * d), (0.5,)) for name in FEATURES for d in range(7)],
        *[(name, lambda: torch.ones(1, 1, 1).expand(2, 3, 4), (0.5, True, True)) for name in FEATURES],
    ],
)
def test_errors_and_warnings_are_torchs(name, make, arguments):
    ours, theirs = (outcome(lambda lib=lib: getattr(lib, name)(make(), *arguments)) for lib in (FF, F))
    assert ours == theirs


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_modules_construct_like_torch(name):
    ours, theirs = getattr(fnn, name), getattr(torch.nn, name)
    assert repr(ours()) == repr(theirs())
    assert repr(ours(0.25, True)) == repr(theirs(0.25, True))
    assert ours().state_dict() == theirs().state_dict()
    assert isinstance(ours(), theirs)
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"dropout probability has to be between 0 and 1, but got {p}"):
            ours(p)


def test_extras_show_and_are_checked():
    module = fnn.Dropout(0.1, activation="gelu")
    assert repr(module) == "Dropout(p=0.1, inplace=False, activation='gelu')"
    with pytest.raises(ValueError, match=r"Dropout: activation must be None or one of relu, .*, got 'tanh'"):
        fnn.Dropout(activation="tanh")
    with pytest.raises(ValueError, match=r"dropout: activation must be None or one of relu, .*, got 'tanh'"):
        FF.dropout(torch.ones(3), activation="tanh")
    with pytest.raises(RuntimeError, match=r"residual must have the input's shape \(2, 3\), got \(3,\)"):
        FF.dropout(torch.ones(2, 3), residual=torch.ones(3))
    with pytest.raises(NotImplementedError, match='"dropout" not implemented for'):
        FF.dropout(torch.arange(3), residual=torch.arange(3))
    with pytest.raises(TypeError):
        FF.dropout(torch.ones(3), 0.5, True, False, "relu")


def test_nan_probability():
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got nan"):
        FF.dropout(torch.ones(3), math.nan)


@pytest.mark.parametrize("name", ["dropout", *FEATURES])
def test_identity_is_the_input_itself(name):
    input = torch.randn(2, 3, 4, 5)[..., 0] if name == "dropout1d" else torch.randn(2, 3, 4, 5)
    before = torch.get_rng_state()
    form = getattr(FF, name)
    assert form(input, 0.5, False) is input
    assert form(input, 0.0) is input
    assert form(input, 0.5, False, True) is input
    assert torch.equal(torch.get_rng_state(), before)
    assert input._version == 0


def test_failed_calls_change_nothing():
    leaf = torch.ones(4, requires_grad=True)
    before = torch.get_rng_state()
    for form in (FF.dropout, FF.dropout2d):
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
            form(leaf if form is FF.dropout else leaf.detach().view(2, 2, 1, 1).requires_grad_(), 0.5, True, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(leaf, torch.ones(4))


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_module_is_dropout_of_activation_plus_residual(p, activation, inplace, training):
    module = fnn.Dropout(p, inplace, activation=activation).train(training)
    leaf = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 7, dtype=torch.float64)
    mask = next_mask(leaf.shape, p) if training else torch.ones(5, 7, dtype=torch.bool)
    input = leaf * 1
    output = module(input, residual=residual)
    scale = 0.0 if p == 1 and training else 1 / (1 - p) if training else 1.0
    expected = activate(leaf, activation) * mask * scale + residual
    torch.testing.assert_close(output, expected)
    assert (output is input) == inplace
    gradients = torch.autograd.grad(output, (leaf, residual), weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (leaf, residual), weight))


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("dim", [2, 3, 4, 5])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.filterwarnings("ignore:dropout")
def test_feature_masks_cover_what_torchs_do(name, dim, inplace):
    """Constant over the same dimensions as torch's; kept channels are scaled; the gradient has the same mask."""
    if name == "dropout1d" and dim > 3:
        pytest.skip("torch raises")
    shape = (6, 5, 4, 3, 2)[:dim]
    theirs, ours = getattr(F, name), getattr(FF, name)
    leaf = torch.ones(shape, requires_grad=True)
    seen = torch.stack([theirs(torch.ones(shape)) for _ in range(40)])
    output = ours(leaf * 1, 0.5, True, inplace)
    assert set(output.unique().tolist()) <= {0.0, 2.0}
    assert torch.equal(torch.autograd.grad(output, leaf, torch.ones_like(output))[0], output.detach())
    seen_ours = torch.stack([ours(torch.ones(shape)) for _ in range(40)])
    for d in range(1, dim + 1):
        constant = [bool((s == s.select(d, 0).unsqueeze(d)).all()) for s in (seen, seen_ours)]
        assert constant[0] == constant[1], f"dimension {d - 1}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["Dropout", "Dropout2d"])
def test_modules_in_every_dtype(name, dtype):
    input = torch.randn(4, 6, 5, 5).to(dtype).requires_grad_()
    output = getattr(fnn, name)(0.5)(input)
    output.sum().backward()  # a gradient of stride 0
    assert output.dtype == input.grad.dtype == dtype
    assert torch.equal(output, input * input.grad)
    assert set(input.grad.unique().tolist()) == {0.0, 2.0}


def test_residual_of_another_dtype_promotes_like_torch():
    input, residual = torch.randn(4, 4, dtype=torch.bfloat16), torch.randn(4, 4)
    mask = next_mask((4, 4), 0.5)
    output = FF.dropout(input, residual=residual)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, input * mask * 2 + residual)


# ----------------------------------------------------------------------------------------------------------- generator


def test_seeds_and_generator():
    x = torch.ones(1000)
    torch.manual_seed(1)
    a, b = FF.dropout(x), FF.dropout(x)
    torch.manual_seed(1)
    assert torch.equal(a, FF.dropout(x))
    assert torch.equal(b, FF.dropout(x))
    assert not torch.equal(a, b)
    with torch.random.fork_rng():
        FF.dropout(x)
    state = torch.get_rng_state()
    FF.dropout(x, 1.0)
    assert torch.equal(state, torch.get_rng_state())  # nothing random about it


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_checkpoint_recomputes_the_same_mask(reentrant, activation):
    x = torch.randn(64, 64, requires_grad=True)
    module = torch.nn.Sequential(fnn.Dropout(0.5, activation=activation), torch.nn.Tanh(), fnn.Dropout(0.2))
    gradients = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        run(x).backward(torch.ones(64, 64))
        gradients.append(x.grad)
        x.grad = None
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------ autograd


def reseeded(function):
    """The same mask on each call, which numerical derivatives need."""

    def run(*args):
        torch.manual_seed(9)
        return function(*args)

    return run


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_twice(activation, inplace):
    def function(x, z):
        return FF.dropout(x * 1, 0.4, True, inplace, activation=activation, residual=z)

    inputs = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert gradcheck(reseeded(function), inputs, check_forward_ad=not inplace, check_batched_grad=True)
    assert gradgradcheck(reseeded(function), inputs)


@pytest.mark.parametrize("name", FEATURES)
def test_feature_gradients_twice(name):
    x = torch.randn((2, 3, 2, 2, 2)[: {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}[name]], dtype=torch.float64)
    function = reseeded(lambda x: getattr(FF, name)(x, 0.4))
    assert gradcheck(function, x.requires_grad_())
    assert gradgradcheck(function, x)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("inplace", [False, True])
def test_every_subset_of_inputs_that_need_gradients(needs, activation, inplace):
    x, z = (torch.randn(8, requires_grad=n) for n in needs)
    mask = next_mask((8,), 0.5)
    output = FF.dropout(x * 1, 0.5, True, inplace, activation=activation, residual=z)
    expected = activate(x, activation) * mask * 2 + z
    wanted = [t for t in (x, z) if t.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(output, wanted, torch.ones(8)), torch.autograd.grad(expected, wanted, torch.ones(8))
    )


def test_only_what_backward_needs_is_saved():
    saved = []
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        FF.dropout(x, residual=torch.randn(1000))
        assert saved == [1]
        FF.dropout(x, activation="relu")
        assert sorted(saved) == [1, 1, 1000]


def test_in_place_bumps_the_version_counter():
    x = torch.randn(8)
    assert FF.dropout(x, inplace=True) is x
    assert x._version == 1
    y = torch.randn(8, requires_grad=True).exp()  # saves its output
    FF.dropout(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_on_views():
    leaf = torch.randn(4, 6, requires_grad=True)
    base = leaf * 1
    mask = next_mask((4, 3), 0.5)
    FF.dropout(base[:, :3], inplace=True)
    factor = torch.cat([2.0 * mask, torch.ones(4, 3)], 1)
    torch.testing.assert_close(base, leaf * factor)
    base.sum().backward()
    torch.testing.assert_close(leaf.grad, factor)


def test_saved_seed_is_guarded():
    """Running backward twice needs retain_graph, as everywhere in torch."""
    x = torch.randn(4, requires_grad=True)
    y = FF.dropout(x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


# -------------------------------------------------------------------------------------------------- torch's subsystems


@pytest.mark.parametrize("p", [0.3, 0.001, 1.0])
@pytest.mark.parametrize("activation", [0, 1, 4])
def test_opcheck(p, activation):
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    seed = torch.tensor([3])
    strided = torch.ones(()).expand(2, 3, 4, 4)  # what out.sum().backward() hands over
    for residual in (None, torch.randn(2, 3, 4, 4), strided):
        torch.library.opcheck(_dropout.overload, (x, residual, seed, p, activation, 1))
        torch.library.opcheck(_dropout_in_place.overload, (x.clone(), residual, seed, p, activation, 16))
    torch.library.opcheck(_dropout.overload, (strided, None, seed, p, activation, 1))
    torch.library.opcheck(_dropout_backward.overload, (strided, x, seed, p, activation, 16))


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_compile_fullgraph(activation, inplace, with_residual):
    def function(x, z):
        return FF.dropout(x * 1, 0.5, True, inplace, activation=activation, residual=z)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, z = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True) if with_residual else None
    results = []
    for run in (function, compiled):
        torch.manual_seed(2)
        output = run(x, z)
        wanted = (x, z) if with_residual else (x,)
        results.append((output, *torch.autograd.grad(output, wanted, torch.ones(16, 16))))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(compiled(x, z).shape, x.shape)


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_compiled_modules_draw_new_masks(name):
    torch._dynamo.reset()
    shape = (4, 64, 2, 2, 2)[: {"Dropout": 2, "Dropout1d": 3, "Dropout2d": 4, "Dropout3d": 5}[name]]
    module = torch.compile(getattr(fnn, name)(), fullgraph=True, backend="aot_eager")
    a, b = module(torch.ones(shape)), module(torch.ones(shape))
    assert not torch.equal(a, b)
    module.eval()
    assert torch.equal(module(torch.ones(shape)), torch.ones(shape))


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(FF.dropout2d, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 4, 5), (3, 5, 6, 7)):
        output = compiled(torch.ones(shape))
        assert output.shape == shape
        assert torch.equal(output, output[:, :, :1, :1].expand(shape))


@pytest.mark.parametrize("training", [True, False])
def test_export(training):
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), fnn.Dropout(0.5, activation="relu"), fnn.Dropout(0.1))
    module.train(training)
    exported = torch.export.export(module, (torch.randn(4, 8),)).module()
    x = torch.randn(4, 8)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_as_torch_does(dtype):
    linear = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", dtype):
        hidden = linear(torch.randn(4, 8))
        output = fnn.Dropout(activation="gelu")(hidden)
        assert output.dtype == torch.nn.Dropout()(F.gelu(hidden)).dtype == dtype
        assert FF.dropout(torch.randn(4)).dtype == torch.float32
    output.sum().backward()
    assert linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_copies(name):
    module = getattr(fnn, name)(0.3, **({"activation": "relu"} if name == "Dropout" else {})).eval()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module)
        assert not twin.training


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_function_transforms(activation):
    x = torch.randn(4, 8)

    def function(x):
        return FF.dropout(x, activation=activation)

    batched = torch.vmap(function, randomness="different")(torch.ones(64, 8))
    assert len({tuple(row.tolist()) for row in batched}) > 16
    same = torch.vmap(function, randomness="same")(torch.ones(64, 8))
    assert torch.equal(same, same[:1].expand(64, 8))
    with pytest.raises(RuntimeError, match="vmap: called random operation while in randomness error mode"):
        torch.vmap(function)(x)
    torch.manual_seed(0)
    value, pullback = torch.func.vjp(function, x)
    with forward_ad.dual_level():
        torch.manual_seed(0)
        primal, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x))))
    torch.testing.assert_close(primal, value)
    torch.testing.assert_close(tangent, pullback(torch.ones_like(x))[0])


def test_symbolic_trace_and_meta():
    assert FF.dropout(torch.ones(3, device="meta"), activation="silu").device.type == "meta"
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    assert traced(torch.ones(1, 2)).shape == (1, 2)


OP_DB = {
    info.name: info
    for info in op_db
    if info.name in ("nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d")
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OP_DB)
@pytest.mark.filterwarnings("ignore:dropout")
def test_op_db_inputs(name, dtype):
    """torch's own sample inputs: the same shapes, strides, dtypes and, where nothing is random, values."""
    info = OP_DB[name]
    ours, samples = getattr(FF, name.rsplit(".", 1)[1]), 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        theirs = info.op(sample.input, *sample.args, **sample.kwargs)
        output = ours(sample.input, *sample.args, **sample.kwargs)
        assert (output.shape, output.dtype, output.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        p = sample.kwargs.get("p", 0.5)
        if p in (0.0, 1.0) or not sample.kwargs.get("training", True):
            torch.testing.assert_close(output, theirs)
        else:
            kept = output != 0
            torch.testing.assert_close(output[kept], (sample.input / (1 - p)).to(dtype)[kept])
        if output.numel():
            torch.autograd.grad(output, sample.input, torch.ones_like(output))
        samples += 1
    assert samples >= 4
