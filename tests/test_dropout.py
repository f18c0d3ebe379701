"""Dropout's values: every backend against the formula in float64, in every layout and dtype."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS, assert_accurate, make_normal

import fastdl.functional as FF
from fastdl.activation import CODES, activate
from fastdl.dropout import _dropout, _dropout_backward, _dropout_in_place
from fastdl.philox import keep_mask

SEED = 1234567890123456789
ACTIVATIONS = [a for a in CODES if a is not None]


def seed_on(device):
    return torch.tensor([SEED], device=device)


def by_torch(input, residual, mask, p, activation):
    """The composition that a user of torch writes, with the given mask."""
    output = torch.where(mask, activate(input, activation) * (0 if p == 1 else 1 / (1 - p)), 0)
    return output if residual is None else output + residual


def check(backend, input, p=0.3, activation=None, residual=None, mask=None, group=1):
    backend.requires("dropout")
    mask = keep_mask(input.shape, seed_on(input.device), p) if mask is None else mask
    output = _dropout(input, residual, seed_on(input.device), p, CODES[activation], group)
    exact = by_torch(input.double(), None if residual is None else residual.double(), mask, p, activation)
    assert_accurate(output, by_torch(input, residual, mask, p, activation), exact)
    assert output.stride() == torch.empty_like(input).stride()
    if residual is None and activation is None:
        assert torch.equal(output != 0, mask & (input != 0))
    return output


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(backend, dtype, layout):
    input = LAYOUTS[layout](make_normal(dtype, backend.device))
    check(backend, input)
    check(backend, input, 0.001)
    check(backend, input, residual=torch.randn_like(input))


@pytest.mark.parametrize("residual_layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_layouts_of_input_and_residual_differ(backend, residual_layout, activation):
    input = torch.randn(2, 8, 5, 6, device=backend.device)
    residual = torch.randn(2, 8, 5, 6, device=backend.device)
    if residual_layout == "channels_last":
        residual = residual.to(memory_format=torch.channels_last)
    if residual_layout == "expanded":
        residual = residual[:, :, :1].expand(2, 8, 5, 6)
    check(backend, input, activation=activation, residual=residual)
    check(backend, input.to(memory_format=torch.channels_last), activation=activation, residual=residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_activations(backend, dtype, activation, with_residual):
    input = 3 * torch.randn(4, 515, device=backend.device).to(dtype)
    check(backend, input, 0.2, activation, torch.randn_like(input) if with_residual else None)


@pytest.mark.parametrize("p", [0.0, 1e-5, 0.01, 1 / 64, 0.1, 0.5, 0.9, 63 / 64, 0.999, 1.0])
def test_probabilities(backend, p):
    input = torch.randn(3, 1025, device=backend.device)
    check(backend, input, p)
    check(backend, input, p, "relu", torch.randn_like(input))


@pytest.mark.parametrize("n", [*range(1, 34), 255, 256, 257, 511, 512, 513, 1023, 2047, 2049, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_length_and_offset(backend, dtype, n):
    """Heads and tails around vectors and blocks; nothing beside the output is touched."""
    backend.requires("dropout_")
    for offset in (0, 1, 3):
        memory = torch.randn(n + 16, device=backend.device).to(dtype)
        before = memory.clone()
        view = memory[offset : offset + n]
        check(backend, view)
        _dropout_in_place(view, None, seed_on(backend.device), 0.5, 0, 1)
        mask = keep_mask((n,), seed_on(backend.device), 0.5)
        assert torch.equal(view, before[offset : offset + n] * mask * 2)
        assert torch.equal(memory[:offset], before[:offset])
        assert torch.equal(memory[offset + n :], before[offset + n :])


def test_more_than_one_thread(backend):
    torch.set_num_threads(2)
    try:
        check(backend, torch.randn(3, 70001, device=backend.device))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("p", [0.5, 0.001, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_is_zero_whatever_it_was(backend, dtype, p):
    backend.requires("dropout", "dropout_backward")
    input = torch.tensor([math.nan, math.inf, -math.inf, -1.0] * 64, device=backend.device).to(dtype)
    mask = keep_mask(input.shape, seed_on(backend.device), p)
    output = _dropout(input, None, seed_on(backend.device), p, 0, 1)
    assert torch.equal(output[~mask], torch.zeros_like(output[~mask]))
    assert torch.equal(output[mask].isnan(), input[mask].isnan())
    assert torch.equal(output[mask].isinf(), input[mask].isinf())
    for activation in (1, 3):
        grad = _dropout_backward(input, torch.ones_like(input), seed_on(backend.device), p, activation, 1)
        assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


@pytest.mark.parametrize("layout", ["odd", "unaligned", "channels_last", "sliced", "empty"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_op(backend, dtype, activation, layout):
    backend.requires("dropout_backward")
    input = LAYOUTS[layout](make_normal(dtype, backend.device))
    grad_output = torch.randn(input.shape, device=backend.device).to(dtype)  # row-major, whatever the input's layout
    mask = keep_mask(input.shape, seed_on(backend.device), 0.4)

    def gradient(x, g):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(by_torch(x, None, mask, 0.4, activation), x, g)[0]

    actual = _dropout_backward(grad_output, input, seed_on(backend.device), 0.4, CODES[activation], 1)
    assert actual.stride() == torch.empty_like(input).stride()
    assert_accurate(actual, gradient(input, grad_output), gradient(input.double(), grad_output.double()))


@pytest.mark.parametrize("layout", ["odd", "unaligned", "transposed", "channels_last", "sliced", "stepped", "empty"])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("residual", ["none", "other", "itself"])
def test_in_place_op(backend, layout, activation, residual):
    backend.requires("dropout", "dropout_")
    input = LAYOUTS[layout](make_normal(torch.float32, backend.device))
    residual = {"none": None, "other": torch.randn_like(input), "itself": input}[residual]
    arguments = (seed_on(backend.device), 0.3, CODES[activation], 1)
    expected = _dropout(input, residual, *arguments)
    _dropout_in_place(input, residual, *arguments)
    torch.testing.assert_close(input, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (3, 5, 8, 8), (2, 3, 1, 1), (2, 3, 1, 33), (2, 3, 129)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("p", [0.5, 0.01])
def test_groups(backend, shape, channels_last, p):
    input = torch.randn(shape, device=backend.device)
    if channels_last and len(shape) == 4:
        input = input.to(memory_format=torch.channels_last)
    channels = keep_mask(shape[:2], seed_on(backend.device), p).reshape(*shape[:2], *[1] * (len(shape) - 2))
    check(backend, input, p, mask=channels.expand(shape), group=math.prod(shape[2:]))
    check(backend, input, p, "relu", torch.randn_like(input), channels.expand(shape), math.prod(shape[2:]))


def test_one_seed_is_one_mask_in_every_dtype_layout_and_function(backend):
    backend.requires("dropout")
    mask = keep_mask((6, 8, 10), seed_on(backend.device), 0.5)
    for dtype in DTYPES:
        base = torch.ones(6, 8, 10, dtype=dtype, device=backend.device)
        for input in (base, base.transpose(0, 2).contiguous().transpose(0, 2), base[:1, :1, :1].expand(6, 8, 10)):
            for activation in (0, 1, 4):
                output = _dropout(input, None, seed_on(backend.device), 0.5, activation, 1)
                assert torch.equal(output != 0, mask)


@pytest.mark.parametrize("op", ["dropout", "dropout_"])
def test_ops_refuse_bad_arguments_before_writing(backend, op):
    if backend.name == "reference":
        pytest.skip("checks belong to the compiled ops")
    backend.requires(op)
    device, run = backend.device, {"dropout": _dropout, "dropout_": _dropout_in_place}[op]
    input, seed = torch.ones(2, 3, device=device), seed_on(device)
    before = input.clone()
    for arguments, message in [
        ((None, seed, 1.5, 0, 1), "dropout probability has to be between 0 and 1, but got 1.5"),
        ((None, seed, math.nan, 0, 1), "dropout probability has to be between 0 and 1"),
        ((None, seed, 0.5, 6, 1), "activation must be a code from 0 to 5, got 6"),
        ((None, seed, 0.5, 0, 0), "group must be at least 1, got 0"),
        ((None, seed.int(), 0.5, 0, 1), "seed must be one int64 value"),
        ((None, seed.repeat(2), 0.5, 0, 1), "seed must be one int64 value, got 2 of int64"),
        ((torch.ones(3, 2, device=device), seed, 0.5, 0, 1), "residual must have the input's shape"),
        ((torch.ones(2, 3, 1, device=device), seed, 0.5, 0, 1), "residual must have the input's shape"),
        ((input.double(), seed, 0.5, 0, 1), "residual must be float32 like the input, got float64"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            run(input, *arguments)
    with pytest.raises(RuntimeError, match="input must be float32, float64, float16 or bfloat16, got int64"):
        run(torch.ones(3, dtype=torch.int64, device=device), None, seed, 0.5, 0, 1)
    assert torch.equal(input, before)


def test_in_place_refuses_overlap(backend):
    if backend.name == "reference":
        pytest.skip("checks belong to the compiled ops")
    backend.requires("dropout_")
    memory = torch.ones(10, device=backend.device)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        _dropout_in_place(memory[:1].expand(4), None, seed_on(backend.device), 0.5, 0, 1)
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to tensor"):
        _dropout_in_place(memory[1:], memory[:-1], seed_on(backend.device), 0.5, 0, 1)
    assert torch.equal(memory, torch.ones_like(memory))


def test_mean_is_kept(backend):
    """E[dropout(x)] = x, and Dropout2d's too: kept elements are scaled by 1 / (1 - p)."""
    backend.requires("dropout")
    for p in (0.1, 0.5, 0.8):
        ones = torch.ones(1 << 18, device=backend.device)
        deviation = math.sqrt(p / (1 - p) / ones.numel())
        assert abs(FF.dropout(ones, p).mean() - 1) < 5 * deviation
        assert abs(FF.dropout2d(ones.view(512, 512, 1, 1), p).mean() - 1) < 5 * deviation


def test_empty_inputs_are_like_torch(backend):
    backend.requires("dropout")
    for shape in [(0,), (0, 3, 4, 4), (2, 3, 0, 4)]:
        input = torch.empty(shape, device=backend.device)
        assert FF.dropout(input).shape == F.dropout(input).shape
        if len(shape) == 4:
            assert FF.dropout2d(input).shape == F.dropout2d(input).shape


def test_an_empty_expanded_tensor_overlaps_nowhere():
    x = torch.empty(1, 0, 2).expand(3, 0, 2)
    assert FF.dropout(x, 0.5, True, inplace=True).shape == F.dropout(x, 0.5, True, inplace=True).shape
