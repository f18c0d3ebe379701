"""BatchTransform: values against NumPy given the parameters, statistics of the parameters, state, bad inputs."""

import pickle
import threading

import numpy as np
import pytest
import torch

from fastdl import _library
from fastdl.augment import augment
from fastdl.data import BatchTransform

MEAN, STD = [0.485, 0.456, 0.406, 0.5, 0.3], [0.229, 0.224, 0.225, 0.25, 0.5]
NUMPY_PADDING = {"constant": "constant", "edge": "edge", "reflect": "reflect", "symmetric": "symmetric"}
bits = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.uint8: torch.uint8}


def pixels(*shape, dtype=torch.uint8, seed=0):
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    return torch.rand(shape, generator=g).to(dtype)


def round16(x):
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 65536), exponent - 16)


def numpy_values(value, integer, mean, std, dtype):
    """The documented arithmetic on (C, h, w) float32 pixels."""
    f = np.float32
    if dtype == torch.uint8:
        scaled = np.nan_to_num(value if integer else value * f(255))
        return torch.from_numpy(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), len(value))[:, None, None] for v in (mean, std))
    if not integer:
        return torch.from_numpy((value - mean.astype(f)) / std.astype(f)).to(dtype)
    factor = 1 / (255 * std)
    high = round16(factor)
    low, bias = round16(factor - high).astype(f), (-mean / std).astype(f)
    return torch.from_numpy((value * high.astype(f) + bias) + value * low).to(dtype)


def numpy_resize(image, size, axis):
    """Antialiased linear resize of one axis: whole-number tents, float32 sums in the order of the pixels."""
    length = image.shape[axis]
    image, lines = np.moveaxis(image, axis, 0), []
    for i in range(size):
        height = [2 * max(length, size) - abs((2 * j + 1) * size - (2 * i + 1) * length) for j in range(length)]
        under = [j for j in range(length) if height[j] > 0]
        total = np.float32(sum(height[j] for j in under))
        line = np.float32(0)
        for j in under:
            line = line + np.float32(np.float32(height[j]) / total) * image[j]
        lines.append(line)
    return np.moveaxis(np.stack(lines), 0, axis)


def numpy_transform(images, params, size, padding, mode, resized, mean, std, dtype):
    """(M, C, H, W) images, one a row of the parameters -> (M, C, h, w)."""
    left, top, right, bottom = padding
    results = []
    for i, image in enumerate(images.numpy()):
        t, x, h, w, flip = (int(params[k].reshape(-1)[i]) for k in ("top", "left", "height", "width", "flip"))
        crop = np.pad(image, ((0, 0), (top, bottom), (left, right)), mode=NUMPY_PADDING[mode])[:, t : t + h, x : x + w]
        crop = crop.astype(np.float32)
        if resized:
            crop = numpy_resize(numpy_resize(crop, size[0], 1), size[1], 2)
        crop = crop[:, :, ::-1] if flip else crop
        results.append(numpy_values(np.ascontiguousarray(crop), images.dtype == torch.uint8, mean, std, dtype))
    return torch.stack(results)


def strided(x, layout):
    """The same values in other memory."""
    n, c, h, w = x.shape
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "every second":
        y = torch.zeros(n, c + 1, h, 2 * w + 1, dtype=x.dtype)[:, 1:, :, 1::2]
    elif layout == "transposed":
        y = torch.zeros(n, c, w, h, dtype=x.dtype).mT
    elif layout == "unaligned":
        y = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    elif layout == "expanded":
        return x[:1].expand(n, -1, -1, -1)
    else:
        return x
    return y.copy_(x)


CASES = {  # shape, size, options
    "random": ((5, 3, 17, 19), (11, 13), {"crop": "random", "padding": (2, 3), "hflip": True}),
    "edge": ((4, 3, 9, 7), (12, 9), {"crop": "random", "padding": 5, "padding_mode": "edge", "hflip": True}),
    "reflect": ((4, 1, 9, 7), (12, 9), {"crop": "random", "padding": (6, 5, 1, 8), "padding_mode": "reflect"}),
    "symmetric": ((4, 4, 9, 7), (20, 13), {"crop": "random", "padding": (7, 9, 2, 4), "padding_mode": "symmetric"}),
    "in the padding": ((6, 3, 2, 3), (5, 5), {"crop": "random", "padding": 20, "hflip": True}),
    "resized": ((5, 3, 37, 29), (16, 21), {"crop": "resized", "hflip": True}),
    "enlarged": ((4, 3, 7, 5), (16, 21), {"crop": "resized", "scale": (0.3, 0.9)}),
    "shrunk": ((2, 1, 90, 70), (3, 2), {"crop": "resized", "scale": (0.9, 1.0)}),
    "wide": ((2, 3, 20, 150), (9, 141), {"crop": "resized", "ratio": (3, 9), "hflip": True}),  # beyond a vector
    "wide, shrunk": ((2, 3, 30, 200), (9, 35), {"crop": "resized", "scale": (0.8, 1), "ratio": (4, 9)}),
    "wide crop": ((3, 3, 9, 150), (7, 133), {"crop": "random", "hflip": True}),
    "center": ((2, 3, 16, 15), (5, 8), {"crop": "center"}),
    "five": ((2, 3, 16, 15), (5, 8), {"crop": "five", "hflip": True}),
    "ten": ((2, 3, 16, 15), (5, 8), {"crop": "ten", "padding": 1}),
    "none": ((3, 5, 8, 31), (8, 31), {"crop": None, "hflip": True}),
    "one pixel": ((3, 2, 1, 1), (1, 1), {"crop": "random"}),
}


def check_case(backend, name, dtype, source=torch.uint8, layout="contiguous", memory_format=torch.contiguous_format):
    backend.requires("augment")
    shape, size, options = CASES[name]
    options = {"padding": 0, "padding_mode": "constant", **options}
    norm = {} if dtype == torch.uint8 else {"mean": MEAN[: shape[1]], "std": STD[: shape[1]]}
    t = BatchTransform(size, **options, **norm, dtype=dtype, memory_format=memory_format, seed=3, return_params=True)
    images = strided(pixels(*shape, dtype=source), layout)
    output, params = t(images.to(backend.device))
    output, params = output.cpu(), {k: v.cpu() for k, v in params.items()}
    copies = {"five": 5, "ten": 10}.get(options["crop"], 1)
    expected = numpy_transform(
        images.repeat_interleave(copies, 0), params, size, t.padding, t.padding_mode, options["crop"] == "resized",
        norm.get("mean", 0), norm.get("std", 1), dtype,
    )  # fmt: skip
    expected = expected if copies == 1 else expected.unflatten(0, (-1, copies))
    assert output.shape == expected.shape
    assert output.dtype == dtype
    flat = output if copies == 1 else output.flatten(0, 1)
    assert flat.is_contiguous(memory_format=memory_format)
    if backend.name == "reference" and options["crop"] == "resized":  # a matrix product: sums in another order
        torch.testing.assert_close(output.float(), expected.float(), rtol=0, atol=3e-2 if dtype != torch.uint8 else 1)
    else:
        assert torch.equal(output.view(bits[dtype]), expected.view(bits[dtype]))


@pytest.mark.parametrize("name", CASES)
def test_values_are_numpys(backend, name):
    check_case(backend, name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("name", ["random", "resized"])
def test_output_dtypes(backend, name, dtype):
    check_case(backend, name, dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["random", "resized", "ten", "reflect"])
def test_float_images_and_channels_last(backend, name):
    check_case(backend, name, torch.float32, source=torch.float32, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["wide", "wide, shrunk", "wide crop"])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
def test_rows_longer_than_a_vector(backend, name, source):
    for memory_format, layout in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels_last")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            check_case(backend, name, dtype, source=source, layout=layout, memory_format=memory_format)


@pytest.mark.parametrize("name", ["resized", "enlarged", "wide", "wide, shrunk"])
def test_pixels_beyond_a_tent_do_not_count(name):
    """Not even infinite ones, of which 0 times them would be NaN."""
    shape, size, options = CASES[name]
    images = pixels(*shape, dtype=torch.float32)
    images[:, :, shape[2] // 2, shape[3] // 2] = float("inf")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        t = BatchTransform(size, **options, seed=3, return_params=True, memory_format=memory_format)
        output, params = t(images)
        expected = numpy_transform(images, params, size, (0,) * 4, "constant", True, 0, 1, torch.float32)
        assert torch.equal(output, expected)
        assert output.isinf().any()


@pytest.mark.parametrize("layout", ["channels_last", "every second", "transposed", "unaligned", "expanded"])
@pytest.mark.parametrize("name", ["random", "resized"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_strides(backend, name, layout, memory_format):
    check_case(backend, name, torch.float32, layout=layout, memory_format=memory_format)


@pytest.mark.parametrize("name", ["random", "resized", "five", "edge"])
def test_arrays_equal_tensors(name):
    shape, size, options = CASES[name]
    images = pixels(*shape)
    array = images.permute(0, 2, 3, 1).numpy()
    for view in (array.copy(), np.flip(np.flip(array, 2).copy(), 2), np.repeat(array, 2, axis=3)[..., ::2]):
        view.flags.writeable = False
        expected = BatchTransform(size, **options, seed=1)(images)
        assert torch.equal(BatchTransform(size, **options, seed=1)(view), expected)
        with _library.use("reference"):
            torch.testing.assert_close(BatchTransform(size, **options, seed=1)(view), expected)
    floats = array.astype(np.float64) / 255
    expected = BatchTransform(size, **options, seed=1)(images)
    torch.testing.assert_close(BatchTransform(size, **options, seed=1)(floats), expected, rtol=1e-6, atol=1e-6)


def test_resize_agrees_with_interpolate():
    images = pixels(4, 3, 50, 40, dtype=torch.float32)
    output, p = BatchTransform((24, 33), crop="resized", seed=0, return_params=True)(images)
    for i in range(4):
        t, x, h, w = (int(p[k][i]) for k in ("top", "left", "height", "width"))
        crop = images[i : i + 1, :, t : t + h, x : x + w].double()
        expected = torch.nn.functional.interpolate(crop, (24, 33), mode="bilinear", antialias=True)
        torch.testing.assert_close(output[i : i + 1].double(), expected, rtol=0, atol=1e-6)


def test_reference_in_float64():
    images = pixels(2, 3, 20, 20)
    arguments = [None, 2, [9, 9], [0] * 4, 0, True, [0.08, 1.0], [0.75, 4 / 3], MEAN[:3], STD[:3]]
    exact, _ = augment.reference(images, *arguments, torch.float64, False, 1, 0)
    output, _ = augment(images, *arguments, torch.float32, False, 1, 0)
    assert exact.dtype == torch.float64
    assert (output - exact).abs().max() < 2e-6


def test_division_by_255_is_exact(backend):
    backend.requires("augment")
    x = torch.arange(256, dtype=torch.uint8, device=backend.device).view(1, 1, 16, 16)
    assert torch.equal(BatchTransform(None, crop=None)(x), x.float() / 255)
    assert torch.equal(BatchTransform(None, crop=None, dtype=torch.uint8)(x), x)
    assert torch.equal(BatchTransform(None, crop=None, dtype=None)(x), x)


def test_saturation_and_special_values(backend):
    backend.requires("augment")
    x = torch.tensor([-1.0, -0.0, 0.5 / 255, 1.5 / 255, 1.0, 1.1, 3e38, float("inf"), -float("inf"), float("nan")])
    x = x.view(1, 1, 2, 5).to(backend.device)
    assert BatchTransform(None, crop=None, dtype=torch.uint8)(x).flatten().tolist() == [
        0,
        0,
        0,
        2,
        255,
        255,
        255,
        255,
        0,
        0,
    ]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = BatchTransform(None, crop=None, dtype=dtype)(x)
        assert torch.equal(torch.nan_to_num(y.float(), nan=7), torch.nan_to_num(x.to(dtype).float(), nan=7))


def test_casts_round_as_torch():
    x = torch.randint(-(2**31), 2**31 - 1, (1, 1, 512, 1024), dtype=torch.int32).view(torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        y, expected = BatchTransform(None, crop=None, dtype=dtype)(x), x.to(dtype)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(0).view(torch.int16), expected.nan_to_num(0).view(torch.int16))


def test_parameters_do_not_depend_on_the_split(backend):
    backend.requires("augment")
    images = pixels(64, 3, 20, 20).to(backend.device)
    for options in ({"crop": "random", "padding": 3}, {"crop": "resized"}):
        make = lambda o=options: BatchTransform(14, **o, hflip=True, seed=11)  # noqa: E731
        whole, parts = make()(images), make()
        assert torch.equal(
            torch.cat([parts(images[:1]), parts(images[1:30]), parts(images[30:30]), parts(images[30:])]), whole
        )
        gathered, index = make(), torch.arange(63, -1, -1)
        assert torch.equal(gathered(images.flip(0), index), whole)
        assert parts.counter == 64


def test_parameters_equal_the_reference(backend):
    backend.requires("augment")
    images = torch.zeros(3000, 1, 37, 53, dtype=torch.uint8, device=backend.device)
    for options in (
        {"crop": "random", "padding": (1, 2)},
        {"crop": "resized"},
        {"crop": "resized", "scale": (0.9, 1), "ratio": (3, 4)},
        {"crop": "resized", "scale": (1, 1), "ratio": (0.2, 0.3)},
        {"crop": "resized", "ratio": (1, 1)},
    ):
        drawn = []
        for name in (None, "reference"):
            t = BatchTransform(7, **options, hflip=True, seed=2**64 - 5, return_params=True)
            t.counter = 2**33
            if name is None:
                drawn.append(t(images)[1])
            else:
                with _library.use(name):
                    drawn.append(t(images)[1])
        for key in drawn[0]:
            assert torch.equal(drawn[0][key], drawn[1][key]), key


def chi_square(counts):
    counts = counts.double()
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_offsets_and_flips_are_uniform():
    from scipy.stats import chi2

    images = torch.zeros(20000, 1, 12, 11, dtype=torch.uint8)
    _, p = BatchTransform(4, hflip=True, seed=5, return_params=True)(images)
    joint = (p["top"] * 8 + p["left"]) * 2 + p["flip"].long()
    counts = torch.bincount(joint, minlength=9 * 8 * 2)
    assert len(counts) == 144
    assert chi2.sf(chi_square(counts), 143) > 1e-4
    pairs = joint[:-1] * 144 + joint[1:]  # neighbours are independent
    assert chi2.sf(chi_square(torch.bincount(pairs % 97, minlength=97)), 96) > 1e-4


def test_resized_boxes_follow_scale_and_ratio():
    images = torch.zeros(20000, 1, 200, 240, dtype=torch.uint8)
    _, p = BatchTransform(1, crop="resized", seed=5, return_params=True)(images)
    h, w = p["height"].double(), p["width"].double()
    area, aspect = h * w / (200 * 240), w / h
    assert area.min() > 0.078
    assert area.max() <= 1
    assert aspect.min() > 0.73
    assert aspect.max() < 1.37
    small = area < 0.6  # never refused: uniform there
    assert abs(float((area[small] < 0.34).double().mean()) - 0.5) < 0.02
    assert abs(float((aspect[small] < 1).double().mean()) - 0.5) < 0.02
    assert (p["top"] + p["height"] <= 200).all()
    assert (p["left"] + p["width"] <= 240).all()


def test_ten_crop_order():
    """torchvision's: top left, top right, bottom left, bottom right, center; then those of the mirror image."""
    x = pixels(1, 1, 7, 8)
    ten = BatchTransform((4, 5), crop="ten", dtype=torch.uint8)(x)[0]
    mirror = x.flip(3)
    for i, image in enumerate((x[0], mirror[0])):
        corners = [image[:, :4, :5], image[:, :4, 3:], image[:, 3:, :5], image[:, 3:, 3:], image[:, 2:6, 2:7]]
        for j, crop in enumerate(corners):
            assert torch.equal(ten[5 * i + j], crop), (i, j)
    assert torch.equal(BatchTransform((4, 5), crop="five", dtype=torch.uint8)(x)[0], ten[:5])


def test_empty_batches(backend):
    backend.requires("augment")
    empty = torch.empty(0, 3, 8, 8, dtype=torch.uint8, device=backend.device)
    for crop, shape in (("random", (0, 3, 4, 4)), ("ten", (0, 10, 3, 4, 4)), ("resized", (0, 3, 4, 4))):
        output, params = BatchTransform(4, crop=crop, return_params=True)(empty)
        assert output.shape == shape
        assert params["top"].shape == shape[: -3 + (crop != "ten") - (crop != "ten")]
    assert BatchTransform(4)(pixels(3, 3, 8, 8), []).shape == (0, 3, 4, 4)


def test_state_continues(backend):
    backend.requires("augment")
    images = pixels(10, 3, 12, 12).to(backend.device)
    t = BatchTransform(8, hflip=True)
    t(images)
    state, copy = t.state_dict(), pickle.loads(pickle.dumps(t))
    expected, other = t(images), BatchTransform(8, hflip=True)
    other.load_state_dict(state)
    assert torch.equal(other(images), expected)
    assert torch.equal(copy(images), expected)
    assert not torch.equal(t(images), expected)


def test_torch_seeds_rule():
    images = pixels(10, 3, 12, 12)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(BatchTransform(5)(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


class Repeated(torch.utils.data.Dataset):
    """The same image, again and again, as a transform in a worker sees it."""

    def __init__(self):
        self.transform = BatchTransform(6, seed=0, return_params=True)
        self.image = pixels(1, 1, 40, 40)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        p = self.transform(self.image)[1]
        return int(p["top"]) * 100 + int(p["left"])


def test_workers_draw_apart():
    loader = torch.utils.data.DataLoader(Repeated(), batch_size=1, num_workers=2)
    first, second = [int(x) for x in loader], [int(x) for x in loader]
    assert len(set(first)) > 6  # a copied counter would repeat every number
    assert first != second  # nor does each epoch begin anew


def test_threads_share_the_interpreter():
    images, expected = pixels(64, 3, 64, 64), []
    make = lambda: BatchTransform(48, hflip=True, seed=0)  # noqa: E731
    threads = [threading.Thread(target=lambda: expected.append(make()(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(e, make()(images)) for e in expected)


def test_thread_count_changes_nothing():
    images, previous, outputs = pixels(40, 3, 64, 64), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs.append(BatchTransform(48, crop="resized", seed=0)(images))
    finally:
        torch.set_num_threads(previous)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_opcheck():
    arguments = [1, [4, 4], [1, 1, 1, 1], 0, True, [0.08, 1.0], [0.75, 1.3], [0.5], [0.25], torch.float32, True, 1, 0]
    for crop, index in ((1, None), (2, torch.tensor([1, 0])), (5, None)):
        padding = [0] * 4 if crop == 2 else arguments[2]
        torch.library.opcheck(
            augment.overload, (pixels(2, 3, 8, 8), index, crop, arguments[1], padding, *arguments[3:])
        )


def test_compiles():
    def step(images, counter):
        arguments = [
            1,
            [4, 4],
            [0] * 4,
            0,
            True,
            [0.08, 1.0],
            [0.75, 1.3],
            [0.5],
            [0.25],
            torch.float32,
            False,
            1,
            counter,
        ]
        return augment(images, None, *arguments)[0] * 2

    images = pixels(3, 3, 8, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for counter in (0, 3, 6):
        assert torch.equal(compiled(images, counter), step(images, counter))


BAD_ARGUMENTS = {
    "crop": ({"size": 4, "crop": "middle"}, "crop must be one of"),
    "no size": ({"size": None}, "needs a size"),
    "size 0": ({"size": 0}, "positive int"),
    "three sizes": ({"size": (1, 2, 3)}, "positive int"),
    "padding": ({"size": 4, "padding": (1, 2, 3)}, "1, 2 or 4 numbers"),
    "negative padding": ({"size": 4, "padding": -1}, "1, 2 or 4 numbers"),
    "padding mode": ({"size": 4, "padding_mode": "wrap"}, "padding_mode must be one of"),
    "padded resize": ({"size": 4, "crop": "resized", "padding": 1}, "takes no padding"),
    "scale": ({"size": 4, "crop": "resized", "scale": (0.5, 0.2)}, "0 < low ≤ high ≤ 1"),
    "scale above 1": ({"size": 4, "crop": "resized", "scale": (0.5, 1.2)}, "0 < low ≤ high ≤ 1"),
    "ratio": ({"size": 4, "crop": "resized", "ratio": (0, 1)}, "0 < low ≤ high"),
    "mean in 0…255": ({"size": 4, "mean": [123.7, 116.3, 103.5]}, "divide statistics of 0…255 images by 255"),
    "std in 0…255": ({"size": 4, "std": [58.4]}, "divide statistics"),
    "std 0": ({"size": 4, "std": [0.2, 0.0, 0.2]}, "0 < std"),
    "mean -1": ({"size": 4, "mean": [-0.1]}, "0 ≤ mean"),
    "NaN": ({"size": 4, "std": [float("nan")]}, "0 < std"),
    "float64": ({"size": 4, "dtype": torch.float64}, "dtype must be"),
    "normalized bytes": ({"size": 4, "dtype": torch.uint8, "mean": [0.5]}, "takes no mean and std"),
    "memory format": ({"size": 4, "memory_format": torch.preserve_format}, "memory_format must be"),
    "seed": ({"size": 4, "seed": 2**64}, "64 bits"),
    "fractional seed": ({"size": 4, "seed": 1.5}, "whole number"),
    "fractional size": ({"size": 4.0}, "positive int"),
    "true size": ({"size": True}, "positive int"),
    "no padding": ({"size": 4, "padding": None}, "1, 2 or 4 numbers"),
    "one scale": ({"size": 4, "crop": "resized", "scale": 0.5}, "0 < low ≤ high ≤ 1"),
    "infinite ratio": ({"size": 4, "crop": "resized", "ratio": (1, float("inf"))}, "0 < low ≤ high"),
    "words": ({"size": 4, "mean": "imagenet"}, "one number, or one a channel"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name):
    options, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        BatchTransform(**options)


class BoundingBoxes(torch.Tensor):
    """What torchvision calls them."""


BAD_INPUTS = {
    "too small": (pixels(2, 3, 3, 8), ValueError, "larger than the padded image"),
    "one image": (pixels(3, 8, 8), ValueError, r"expected 4D images \(got 3D"),
    "int64": (torch.zeros(2, 3, 8, 8, dtype=torch.int64), TypeError, "uint8 or floating"),
    "bool": (torch.zeros(2, 3, 8, 8, dtype=torch.bool), TypeError, "uint8 or floating"),
    "int32 array": (np.zeros((2, 8, 8, 3), np.int32), TypeError, "uint8 or floating"),
    "dictionary": ({"image": pixels(2, 3, 8, 8)}, TypeError, "dictionaries are not transformed"),
    "boxes": (torch.zeros(2, 3, 8, 8).as_subclass(BoundingBoxes), TypeError, "boxes, masks"),
    "masks": ((pixels(2, 3, 8, 8), torch.zeros(2, 8, 8)), TypeError, "labels must be one value an image"),
    "boxes as labels": ((pixels(2, 3, 8, 8), torch.zeros(2, 4)), TypeError, "labels must be one value an image"),
    "wrong labels": ((pixels(2, 3, 8, 8), torch.zeros(3)), TypeError, r"shape \(2,\)"),
    "dict labels": ((pixels(2, 3, 8, 8), {"y": 1}), TypeError, "got dict"),
    "triple": ((pixels(2, 3, 8, 8), torch.zeros(2), torch.zeros(2)), TypeError, "a pair"),
    "four channels": (pixels(2, 4, 8, 8), ValueError, "mean has 3 values, the images have 4"),
    "no pixels": (torch.zeros(2, 3, 0, 8), ValueError, "must have pixels"),
    "nothing": (None, TypeError, "got NoneType"),
    "array of planes": (np.zeros((2, 3, 32, 32), np.uint8), ValueError, r"looks like \(N, C, H, W\)"),
    "sparse": (torch.zeros(2, 3, 8, 8).to_sparse(), TypeError, "must be dense"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_change_no_state(name):
    value, error, message = BAD_INPUTS[name]
    t = BatchTransform(4, mean=MEAN[:3], std=STD[:3])
    with pytest.raises(error, match=message):
        t(value)
    assert t.counter == 0


def test_other_errors():
    with pytest.raises(ValueError, match="crop=None keeps the size"):
        BatchTransform(4, crop=None)(pixels(1, 1, 5, 4))
    with pytest.raises(ValueError, match="reflect padding"):
        BatchTransform(4, padding=4, padding_mode="reflect")(pixels(1, 1, 4, 9))
    with pytest.raises(RuntimeError, match="detach"):
        BatchTransform(4)(torch.zeros(1, 1, 4, 4, requires_grad=True))
    for index in ([4], [-1]):
        with pytest.raises(IndexError, match=r"index must lie in \[0, 4\)"):
            BatchTransform(4)(pixels(4, 1, 4, 4), index)
        with pytest.raises(RuntimeError, match="index must lie in"):
            augment(pixels(4, 1, 4, 4), torch.tensor(index), 0, [4, 4], [0] * 4, 0, False, [1.0, 1.0], [1.0, 1.0],
                    [0.0], [1.0], torch.float32, False, 0, 0)  # fmt: skip
    for index in ([0.5], torch.tensor([True] * 4), 2):
        with pytest.raises(ValueError, match="whole numbers"):
            BatchTransform(4)(pixels(4, 1, 4, 4), index)
    with pytest.raises(TypeError, match="slice the images instead"):
        BatchTransform(4)(pixels(4, 1, 4, 4), slice(2))
    with pytest.raises(KeyError, match="counter"):
        BatchTransform(4).load_state_dict({"seed": 1})


def test_pairs_keep_their_labels():
    labels = torch.tensor([3, 1])
    images, same = BatchTransform(4)((pixels(2, 3, 8, 8), labels))
    assert same is labels
    images, same, params = BatchTransform(4, return_params=True)([pixels(2, 3, 8, 8), [3, 1]])
    assert images.shape == (2, 3, 4, 4)
    assert same == [3, 1]
    assert params["flip"].dtype == torch.bool


def test_numbers_of_any_kind():
    """NumPy's integers, one-element sequences, reversed indices: what other code hands over."""
    x = pixels(4, 3, 12, 10)
    expected = BatchTransform((8, 8), padding=(2, 2, 2, 2), seed=7)(x, [3, 1])
    t = BatchTransform(np.int64(8), padding=np.int32(2), seed=np.int64(7))
    assert torch.equal(t(x, np.array([1, 3])[::-1]), expected)
    assert torch.equal(BatchTransform([8], padding=[2], seed=7)(x, torch.tensor([3, 1], dtype=torch.int32)), expected)


def test_wrong_units_of_images():
    """0…255 floats would come out 255 times too large, in silence."""
    x = pixels(2, 3, 8, 8).float()
    for images in (x, x.permute(0, 2, 3, 1).numpy()):
        with pytest.raises(ValueError, match="divide 0…255 images by 255"):
            BatchTransform(4, mean=0.5, std=0.25)(images)
    assert BatchTransform(4)(x).max() > 2  # nothing is normalized
    assert BatchTransform(4, mean=0.5, std=0.25)(x[:0]).shape == (0, 3, 4, 4)


def test_compiled_as_a_whole():
    """The transform's count goes on in compiled code."""
    x, eager = pixels(3, 3, 12, 12), BatchTransform(8, hflip=True, seed=0)
    compiled = torch.compile(BatchTransform(8, hflip=True, seed=0), backend="aot_eager")
    for _ in range(10):
        assert torch.equal(compiled(x), eager(x))
