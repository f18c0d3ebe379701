"""Hypothesis searches shapes, strides, dtypes and options of every op for a difference to the formula or to torch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_optim import assert_near, twins

import fastdl.functional as FF
from fastdl import _library, data, init, matmul, optim
from fastdl.activation import CODES, activate
from fastdl.philox import keep_mask, new_seed

pytestmark = pytest.mark.fuzz
fuzz = settings(
    derandomize=True, deadline=None, max_examples=100, print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
SMOOTH = st.sampled_from([None, "silu", "gelu", "gelu_tanh"])  # at a kink rounding may choose either gradient
PROBABILITIES = st.sampled_from([0.0, 1e-4, 0.1, 0.5, 0.99, 1.0])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SIZES = st.integers(1, 9)


@st.composite
def layouts(draw, dims, overlap=True):
    """How a tensor lies in memory: order of dimensions, steps, offset, and dimensions of stride 0."""
    return (
        draw(st.permutations(range(dims))),
        draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=dims, max_size=dims)),
        draw(st.integers(0, 5)),
        draw(st.sets(st.integers(0, dims - 1), max_size=1)) if overlap and dims else set(),
    )


def lay_out(values, layout):
    """Return a view of fresh memory with the values (of stride-0 dimensions: the first), and all of that memory."""
    order, steps, offset, zero = layout
    for d in zero:
        values = values.narrow(d, 0, min(1, values.size(d)))
    sizes = [values.size(d) * steps[d] for d in order]
    memory = torch.full((offset + math.prod(sizes) + 3,), -7, dtype=values.dtype)
    view = memory[offset : offset + math.prod(sizes)].view(sizes)
    view = view[tuple(slice(None, None, steps[d]) for d in order)]
    view = view.permute([order.index(d) for d in range(len(order))])
    view.copy_(values)
    return view, memory


def make(shape, dtype, layout, scale=1.0):
    """Return an N(0, scale²) tensor of the shape and layout."""
    view, _ = lay_out(torch.randn(shape, dtype=torch.float64).mul(scale).to(dtype), layout)
    return view.expand(shape)


def next_mask(shape, p):
    """Return the mask that the next call draws."""
    state = torch.get_rng_state()
    mask = keep_mask(shape, new_seed(torch.device("cpu")), p)
    torch.set_rng_state(state)
    return mask


def drop(values, mask, p):
    """The formula of dropout with a given mask."""
    return values * mask / (1 - p) if p < 1 else values * 0


def leaf(tensor, dtype=None):
    """Return a leaf with the tensor's values and strides, or in another dtype."""
    if tensor is None:
        return None
    return (tensor.detach() if dtype is None else tensor.detach().to(dtype)).requires_grad_()


def check_close(actual, exact, dtype):
    assert actual.shape == exact.shape
    if exact.numel():
        scale = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 1.0
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1))


def check_gradients(output, exact, leaves, exact_leaves, dtype):
    grad = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    pairs = [(a, b) for a, b in zip(leaves, exact_leaves) if a is not None]
    ours = torch.autograd.grad(output, [a for a, _ in pairs], grad)
    theirs = torch.autograd.grad(exact, [b for _, b in pairs], grad.double())
    for a, b, (of, _) in zip(ours, theirs, pairs):
        assert a.dtype == of.dtype
        check_close(a, b, dtype)


@fuzz
@given(
    data=st.data(), dtype=DTYPES, activation=SMOOTH, p=PROBABILITIES, training=st.booleans(), seed=st.integers(0, 99)
)
def test_batch_norm(backend, data, dtype, activation, p, training, seed):
    backend.requires("batch_norm_forward", "batch_norm_backward")
    torch.manual_seed(seed)
    shape = tuple(data.draw(st.tuples(st.integers(2, 9), st.sampled_from([1, 2, 3, 7, 8, 33]), *[SIZES] * k))
                  if (k := data.draw(st.integers(0, 3))) >= 0 else ())  # fmt: skip
    layout = data.draw(layouts(len(shape)))
    # A batch of a few equal values has no variance, and its gradient no digits.
    assume(not layout[3] and shape[0] * math.prod(shape[2:]) > 4)
    x = make(shape, dtype, layout) * 2 + 1
    z = make(shape, dtype, data.draw(layouts(len(shape)))) if data.draw(st.booleans()) else None
    kind = torch.float32 if dtype in (torch.float16, torch.bfloat16) and data.draw(st.booleans()) else dtype
    w, b = (torch.randn(shape[1]).to(kind) if data.draw(st.booleans()) else None for _ in range(2))
    momentum, eps = data.draw(st.sampled_from([0.1, 0.0, 1.0])), data.draw(st.sampled_from([1e-5, 1e-2]))
    stats = [torch.randn(shape[1]).to(kind), torch.rand(shape[1]).to(kind) + 0.5]
    exact_stats = [t.double() for t in stats]
    leaves, exact = [leaf(t) for t in (x, z, w, b)], [leaf(t, torch.float64) for t in (x, z, w, b)]
    mask = next_mask(shape, p) if training and p else torch.ones(shape, dtype=torch.bool)
    output = FF.batch_norm(leaves[0], *stats, *leaves[2:], training, momentum, eps, activation=activation,
                           residual=leaves[1], dropout=p)  # fmt: skip
    # Contiguous: torch's own backward is wrong in evaluation where strides are (6, 1, 2, 2), torch 2.13 on CPU.
    expected = F.batch_norm(exact[0].contiguous(), *exact_stats, *exact[2:], training, momentum, eps)
    expected = activate(expected if z is None else expected + exact[1], activation)
    expected = drop(expected, mask, p) if training and p else expected
    assert output.dtype == dtype
    check_close(output, expected, dtype)
    for ours, theirs in zip(stats, exact_stats):
        check_close(ours, theirs, kind)
    check_gradients(output, expected, leaves, exact, dtype)


@fuzz
@given(data=st.data(), dtype=DTYPES, activation=SMOOTH, p=PROBABILITIES, inplace=st.booleans(), seed=st.integers(0, 99))
def test_dropout(backend, data, dtype, activation, p, inplace, seed):
    backend.requires("dropout", "dropout_", "dropout_backward")
    torch.manual_seed(seed)
    shape = tuple(data.draw(st.lists(st.integers(0, 13), max_size=5)))
    x = make(shape, dtype, data.draw(layouts(len(shape), overlap=not inplace)))
    z = make(shape, dtype, data.draw(layouts(len(shape)))) if data.draw(st.booleans()) else None
    exact = [leaf(t, torch.float64) for t in (x, z)]
    leaves = [leaf(t) for t in (x, z)]
    mask = next_mask(shape, p) if 0 < p < 1 else torch.full(shape, p == 0)
    expected = drop(activate(exact[0], activation), mask, p)
    expected = expected if z is None else expected + exact[1]
    output = FF.dropout(leaves[0] * 1 if inplace else leaves[0], p, True, inplace, activation=activation,
                        residual=leaves[1])  # fmt: skip
    assert output.dtype == dtype
    assert inplace or (p == 0 and activation is None and z is None) or output.stride() == torch.empty_like(x).stride()
    check_close(output, expected, dtype)
    check_gradients(output, expected, leaves, exact, dtype)


@fuzz
@given(data=st.data(), dtype=DTYPES, p=PROBABILITIES, inplace=st.booleans(), name=st.sampled_from("123"))
def test_dropout_of_channels(backend, data, dtype, p, inplace, name):
    backend.requires("dropout", "dropout_")
    shape = tuple(data.draw(st.tuples(*[st.integers(0, 6)] * (2 + int(name)))))
    x = make(shape, dtype, data.draw(layouts(len(shape), overlap=not inplace)))
    mask = next_mask(shape[:2], p) if 0 < p < 1 else torch.full(shape[:2], p == 0)
    expected = drop(x.double(), mask.reshape(*shape[:2], *[1] * int(name)), p)
    output = getattr(FF, f"dropout{name}d")(x.clone() if inplace else x, p, True, inplace)
    check_close(output, expected, dtype)


@fuzz
@given(
    data=st.data(), dtype=DTYPES, activation=SMOOTH, p=PROBABILITIES, training=st.booleans(), seed=st.integers(0, 99)
)
def test_linear(backend, data, dtype, activation, p, training, seed):
    backend.requires("linear_forward", "linear_backward")
    torch.manual_seed(seed)
    batch = tuple(data.draw(st.lists(st.integers(0, 7), max_size=3)))
    k, n = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    x = make((*batch, k), dtype, data.draw(layouts(len(batch) + 1)))
    w = make((n, k), dtype, data.draw(layouts(2)), max(k, 1) ** -0.5)
    b = make((n,), dtype, data.draw(layouts(1))) if data.draw(st.booleans()) else None
    z = make((*batch, n), dtype, data.draw(layouts(len(batch) + 1))) if data.draw(st.booleans()) else None
    leaves, exact = ([leaf(t, kind) for t in (x, w, b, z)] for kind in (None, torch.float64))
    mask = next_mask((*batch, n), p) if training and p else None
    output = FF.linear(*leaves[:3], activation=activation, dropout=p, residual=leaves[3], training=training)
    expected = activate(F.linear(*exact[:3]), activation)
    expected = expected if mask is None else drop(expected, mask, p)
    expected = expected if z is None else expected + exact[3]
    assert output.dtype == dtype
    check_close(output, expected, dtype)
    check_gradients(output, expected, leaves, exact, dtype)


@fuzz
@given(data=st.data(), dtype=DTYPES, activation=SMOOTH, p=PROBABILITIES, seed=st.integers(0, 99))
def test_mlp(backend, data, dtype, activation, p, seed):
    backend.requires("linear_forward", "linear_backward", "linear_grad_input", "linear_grad_weight")
    torch.manual_seed(seed)
    batch = tuple(data.draw(st.lists(st.integers(0, 7), max_size=2)))
    k, h, n = (data.draw(st.integers(0, 24)) for _ in "khn")
    shapes = ((*batch, k), (h, k), (h,), (n, h), (n,))
    optional = [True, True, data.draw(st.booleans()), True, data.draw(st.booleans())]
    tensors = [
        make(s, dtype, data.draw(layouts(len(s))), max(s[-1], 1) ** -0.5) if o else None
        for s, o in zip(shapes, optional)
    ]
    leaves, exact = ([leaf(t, kind) for t in tensors] for kind in (None, torch.float64))
    state = torch.get_rng_state()
    masks = [keep_mask((*batch, width), new_seed(torch.device("cpu")), p) if p else None for width in (h, n)]
    torch.set_rng_state(state)
    output = FF.mlp(*leaves, activation=activation, dropout=p)
    expected = exact[0]
    for w, b, name, mask in ((*exact[1:3], activation, masks[0]), (*exact[3:5], None, masks[1])):
        expected = activate(F.linear(expected, w, b), name)
        expected = expected if mask is None else drop(expected, mask, p)
    assert output.dtype == dtype
    check_close(output, expected, dtype)
    check_gradients(output, expected, leaves, exact, dtype)


@fuzz
@given(data=st.data(), dtype=DTYPES, seed=st.integers(0, 99))
def test_matmul_of_small_integers_is_exact(backend, data, dtype, seed):
    backend.requires("gemm")
    torch.manual_seed(seed)
    m, n, k = (data.draw(st.integers(0, 33)) for _ in "mnk")
    batch = data.draw(st.lists(st.integers(1, 4), max_size=2))
    shapes = []
    for matrix, vector in (([m, k], [k]), ([k, n], [k])):
        dims = data.draw(st.integers(0, len(batch)))
        broadcast = [d if data.draw(st.booleans()) else 1 for d in batch[len(batch) - dims :]]
        shapes.append(vector if data.draw(st.integers(0, 3)) == 0 else [*broadcast, *matrix])
    a, b = (
        lay_out(torch.randint(-2, 3, s).to(dtype), data.draw(layouts(len(s), overlap=False)))[0].requires_grad_()
        for s in shapes
    )
    output, expected = matmul(a, b), torch.matmul(a.double(), b.double())
    assert output.dtype == dtype
    assert torch.equal(output.double(), expected)
    grads = [torch.autograd.grad(y.sum(), (a, b)) for y in (output, expected)]
    assert all(torch.equal(g, h) for g, h in zip(*grads))


RULES = {
    "SGD": {"momentum": [0.0, 0.9], "dampening": [0.0, 0.3], "nesterov": [False, True]},
    "Adam": {"betas": [(0.9, 0.999), (0.5, 0.6)], "amsgrad": [False, True], "eps": [1e-8, 1e-2]},
    "AdamW": {"betas": [(0.9, 0.999), (0.0, 0.0)], "amsgrad": [False, True], "eps": [1e-8, 1e-2]},
    "RMSprop": {"alpha": [0.99, 0.5], "momentum": [0.0, 0.9], "centered": [False, True], "eps": [1e-2]},
    "Adagrad": {"lr_decay": [0.0, 0.1], "initial_accumulator_value": [0.0, 0.1], "eps": [1e-10, 1e-2]},
}


@fuzz
@given(data=st.data(), name=st.sampled_from(sorted(RULES)), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_optimizers(backend, data, name, dtype):
    backend.requires("optim_step_")
    options = {key: data.draw(st.sampled_from(values)) for key, values in RULES[name].items()}
    options |= {"maximize": data.draw(st.booleans()), "weight_decay": data.draw(st.sampled_from([0.0, 0.1]))}
    if options.get("nesterov") and not (options["momentum"] and not options["dampening"]):
        options["nesterov"] = False
    shapes = data.draw(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=4))
    kept, params = [], []
    for shape in shapes:
        view, memory = lay_out(torch.randn(shape, dtype=dtype), data.draw(layouts(len(shape), overlap=False)))
        kept.append((view, memory, memory.clone()))
        params.append(view.requires_grad_())
    other = twins(params)
    ours = getattr(optim, name)(params, lr=0.01, **options)
    theirs = getattr(torch.optim, name)(other, lr=0.01, foreach=False, **copy.deepcopy(options))
    for _ in range(3):
        for p, q in zip(params, other):
            p.grad = q.grad = None
            if data.draw(st.integers(0, 4)):  # now and then a parameter has none
                grad = torch.randn(p.shape, dtype=dtype)
                p.grad = lay_out(grad, data.draw(layouts(p.dim(), overlap=False)))[0]
                q.grad = grad
        ours.step()
        theirs.step()
    assert_near(params, other, ulps=512)
    for view, memory, before in kept:  # nothing beside the parameters was written
        before.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view.detach())
        assert torch.equal(memory, before)


FILLS = {
    "uniform_": (-1.0, 2.0), "normal_": (1.0, 0.5), "trunc_normal_": (0.0, 1.0, -1.0, 2.0), "xavier_uniform_": (),
    "xavier_normal_": (0.5,), "kaiming_uniform_": (), "kaiming_normal_": (),
}  # fmt: skip


@fuzz
@given(data=st.data(), name=st.sampled_from(sorted(FILLS)), dtype=DTYPES, seed=st.integers(-(2**63), 2**63 - 1))
def test_init(backend, data, name, dtype, seed):
    backend.requires("init_")
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)))
    view, memory = lay_out(torch.zeros(shape, dtype=dtype), data.draw(layouts(len(shape), overlap=False)))
    before = memory.clone()
    getattr(init, name)(view, *FILLS[name], seed=seed, name="w")
    with _library.use("reference"):
        expected = getattr(init, name)(torch.empty(shape, dtype=dtype), *FILLS[name], seed=seed, name="w")
    assert torch.equal(view, expected)
    before.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view)
    assert torch.equal(memory, before)


@fuzz
@given(
    draw=st.data(), dtype=st.sampled_from([torch.uint8, torch.float32]), channels=st.integers(1, 4),
    n=st.integers(0, 5), height=st.integers(1, 19), width=st.integers(1, 19), padding=st.integers(0, 3),
    crop=st.sampled_from(["random", "resized", "center", "five", "ten", None]), hflip=st.booleans(),
    out=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), seed=st.integers(-(2**63), 2**64 - 1),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
def test_augment(backend, draw, dtype, channels, n, height, width, padding, crop, hflip, out, seed, memory_format):
    backend.requires("augment")
    padding = 0 if crop == "resized" else padding
    size = (height + 2 * padding, width + 2 * padding)
    if crop == "resized":
        size = tuple(draw.draw(st.integers(1, 19)) for _ in size)
    elif crop is not None:
        size = tuple(draw.draw(st.integers(1, limit)) for limit in size)
    options = {"crop": crop, "padding": padding, "hflip": hflip, "dtype": out, "seed": seed, "return_params": True,
               "memory_format": memory_format}  # fmt: skip
    if draw.draw(st.booleans()):
        options |= {"mean": [0.1 * c + 0.2 for c in range(channels)], "std": 0.25}
    values = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8)
    values = values if dtype == torch.uint8 else values / 255
    images = lay_out(values, draw.draw(layouts(4)))[0].expand(values.shape)
    results = []
    for scope in (None, "reference"):
        transform = data.BatchTransform(size, **options)
        if scope is None:
            results.append(transform(images))
        else:
            with _library.use(scope):
                results.append(transform(images))
    (ours, ours_drawn), (expected, drawn) = results
    assert ours.stride() == expected.stride()
    torch.testing.assert_close(ours_drawn, drawn, rtol=0, atol=0)
    torch.testing.assert_close(ours, expected, rtol=torch.finfo(out).eps * 4, atol=torch.finfo(out).eps * 8)


def test_every_activation_has_its_place_here():
    assert set(CODES) == {None, "silu", "gelu", "gelu_tanh", "relu", "leaky_relu"}
