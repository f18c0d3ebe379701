"""The augmentation kernels on their own: traffic, launches, sizes beyond 32 bits, agreement with the CPU path."""

import random

import pytest
import torch
from emulator.counters import counters

from fastdl import _library
from fastdl.data import BatchTransform

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
def test_one_launch_moves_the_minimum(library, dtype, last, source):
    """Each pixel of a crop is read once, each value written once; unaligned rows and odd widths included."""
    images = torch.randint(0, 256, (3, 3, 45, 39)).to(source)
    if last:
        images = images.to(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    t = BatchTransform((21, 35), hflip=True, dtype=dtype, memory_format=layout, seed=0)
    for index in (None, torch.tensor([2, 0])):
        n = 3 if index is None else len(index)
        elements = n * 3 * 21 * 35
        with _library.use("emulated"):
            counters(library)
            t(images, index)
            launches, read, written, _ = counters(library)
        assert launches == 1
        assert written == elements * dtype.itemsize + n * 5 * 4
        rest = read - elements * source.itemsize  # the 256 threads of a block share one load of their sample's index
        assert rest == 0 if index is None else rest in (8 * 256 * n * blocks for blocks in (1, 3, 7, 21))


def test_padding_is_not_read(library):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with _library.use("emulated"):
        counters(library)
        BatchTransform(24, padding=8, crop="center")(images)
        assert counters(library)[1] == images.numel()


def options_of(rng, source, shape):
    crop = rng.choice(["random", "resized", "center", "five", "ten", None])
    h, w = shape[2:]
    padding = [0] * 4 if crop == "resized" else [rng.randrange(min(h, w)) for _ in range(4)]
    tall, wide = h + padding[1] + padding[3], w + padding[0] + padding[2]
    size = (
        (rng.randint(1, 70), rng.randint(1, 70)) if crop == "resized" else (rng.randint(1, tall), rng.randint(1, wide))
    )
    dtype = rng.choice(DTYPES)
    norm = {} if dtype == torch.uint8 else {"mean": [0.1 * c for c in range(shape[1])], "std": 0.3}
    return {
        "size": (tall, wide) if crop is None else size, "crop": crop, "padding": padding, "hflip": rng.random() < 0.5,
        "padding_mode": rng.choice(["constant", "edge", "reflect", "symmetric"]), "dtype": dtype, **norm,
        "memory_format": rng.choice([torch.contiguous_format, torch.channels_last]), "return_params": True,
    }  # fmt: skip


def random_images(rng):
    shape = (rng.randint(1, 4), rng.choice([1, 2, 3, 4, 5, 9]), rng.randint(1, 60), rng.randint(1, 60))
    source = rng.choice([torch.uint8, torch.float32])
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images if source == torch.uint8 else torch.rand(shape) * 1.2 - 0.1
    layout = rng.choice(["contiguous", "channels_last", "window", "transposed", "batch last"])
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    elif layout == "window":
        whole = torch.zeros(shape[0], shape[1], shape[2] + 3, shape[3] + 5, dtype=source)
        images = whole[:, :, 1:-2, 3:-2].copy_(images)
    elif layout == "transposed":
        images = images.mT.contiguous().mT
    elif layout == "batch last":
        images = images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    return images


def agree(seed):
    rng = random.Random(seed)
    images = random_images(rng)
    options = options_of(rng, images.dtype, images.shape)
    index = torch.randint(0, len(images), (5,)) if rng.random() < 0.5 else None
    expected, params = BatchTransform(**options, seed=seed)(images, index)
    with _library.use("emulated"):
        output, same = BatchTransform(**options, seed=seed)(images, index)
    assert all(torch.equal(params[k], same[k]) for k in params), options
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[output.itemsize]
    assert torch.equal(output.view(kind), expected.view(kind)), options


@pytest.mark.parametrize("part", range(6))
def test_kernel_equals_cpu(emulated_library, part):
    for seed in range(15 * part, 15 * part + 15):
        agree(seed)


@pytest.mark.slow
def test_kernel_equals_cpu_at_length(emulated_library):
    for seed in range(100, 1500):
        agree(seed)


def test_beyond_32_bits(backend):
    """Images far out in memory, and pixels far out in an image; the memory in between is never touched."""
    backend.requires("augment")
    many = torch.empty(33, 1, 8192, 8192, dtype=torch.uint8, device=backend.device)  # 2.2 GB
    many[32, :, 4090:4102, 4090:4102] = 7
    for crop in ("center", "resized"):
        t = BatchTransform(4, crop=crop, scale=(1e-9, 1e-9), dtype=torch.uint8, return_params=True)
        output, p = t(many, [32]) if crop == "center" else t(many[:, :, 4091:4101, 4091:4101], [32])
        assert (output == 7).all(), p
    large = many.view(1, 1, 33 * 8192, 8192)
    large[0, 0, -4:, -4:] = 9
    assert (BatchTransform(4, crop="five", dtype=torch.uint8)(large)[0, 3] == 9).all()


def test_a_bad_index_on_the_device_shows(emulated_library):
    images = torch.rand(2, 3, 8, 8)
    for crop, dtype in ((1, torch.float32), (2, torch.float16), (1, torch.uint8)):
        arguments = [crop, [4, 4], [0] * 4, 0, False, [0.08, 1.0], [0.75, 1.3], [0.5], [0.5], dtype, False, 1, 0]
        output, boxes = torch.ops.fastdl_emulated.augment(images, torch.tensor([0, 2, -1]), *arguments)
        assert (boxes[1:] == -1).all()
        assert not (boxes[0] == -1).any()
        assert (output[1:] == 0).all() if dtype == torch.uint8 else output[1:].isnan().all()
        assert not output[0].isnan().any()


def test_far_larger_images_shrink(backend):
    """Tiles adapt to tents of any width, up to what a block can hold."""
    backend.requires("augment")
    images = torch.randint(0, 256, (1, 3, 300, 700), dtype=torch.uint8, device=backend.device)
    for size in ((1, 1), (3, 2), (300, 1), (1, 700)):
        t = BatchTransform(size, crop="resized", scale=(1, 1), ratio=(2, 3), seed=0)
        with _library.use("reference"):
            expected = BatchTransform(size, crop="resized", scale=(1, 1), ratio=(2, 3), seed=0)(images)
        torch.testing.assert_close(t(images), expected, rtol=0, atol=2e-5)


def test_many_channels(emulated_library):
    images = torch.zeros(1, 65, 4, 4, dtype=torch.uint8)
    with _library.use("emulated"), pytest.raises(RuntimeError, match="at most 64 channels, got 65; split them"):
        BatchTransform(4)(images)
