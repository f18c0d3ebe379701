"""Batch augmentation: gather, crop or resize, flip, normalize, cast and layout in one op.

Every image has parameters of its own, a function of (seed, k) alone, where k counts the samples of a transform's
life: neither the batch split nor the device nor the number of threads changes them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdl import _C, _library
from fastdl.philox import philox

CROPS = {None: 0, "random": 1, "resized": 2, "center": 3, "five": 4, "ten": 5}
PADDING_MODES = {"constant": 0, "edge": 1, "reflect": 2, "symmetric": 3}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
STREAM = 256  # philox stream of top, left and flip; attempt t at a resized crop draws from the one t + 1 above
ATTEMPTS = 10


class Plan(NamedTuple):
    """What the op does to each image; all of it but tensors, seed and counter. Lengths in pixels."""

    size: Sequence[int]  # (height, width) of the output
    crop: int  # a value of CROPS
    padding: Sequence[int]  # left, top, right, bottom
    padding_mode: int  # a value of PADDING_MODES
    hflip: bool
    scale: Sequence[float]  # of a resized crop: share of the image's area
    ratio: Sequence[float]  # of a resized crop: width / height
    mean: Sequence[float]  # in [0, 1] units: one value, or one a channel
    std: Sequence[float]
    dtype: torch.dtype  # of the output
    channels_last: bool

    @property
    def copies(self) -> int:
        """How many crops an image gives."""
        return {CROPS["five"]: 5, CROPS["ten"]: 10}.get(self.crop, 1)


# Reference -----------------------------------------------------------------------------------------------------------


def _uniform24(word: Tensor, low: float, high: float) -> Tensor:
    # 24 bits times a 24-bit step is exact in float64: no compiler can change the sum by fusing it.
    step = float(np.float32((high - low) / 2**24))
    return low + (word >> 8).double() * step


def _exp(x: Tensor) -> Tensor:
    # ((1 + z) / (1 - z))^1024 with z = x / 2048 by squaring: operations that every device rounds alike.
    z = x / 2048
    power = (1 + z) / (1 - z)
    for _ in range(10):
        power = power * power
    return power


def _resized_boxes(seed: Tensor, counter: Tensor, height: int, width: int, plan: Plan) -> tuple[Tensor, ...]:
    """Draw torchvision's RandomResizedCrop boxes: ten attempts, then the largest central crop of a fair ratio."""
    low, high = plan.ratio
    h, w = height, width
    if width / height < low:
        h = min(height, round(width / low))
    elif width / height > high:
        w = min(width, round(height * high))
    tops, lefts, heights, widths = (torch.full_like(counter, v) for v in ((height - h) // 2, (width - w) // 2, h, w))
    found = torch.zeros_like(counter, dtype=torch.bool)
    for attempt in range(ATTEMPTS):
        r0, r1, r2, r3 = philox(seed, counter, STREAM + 1 + attempt)
        area = _uniform24(r0, *plan.scale) * float(height * width)
        aspect = _exp(_uniform24(r1, math.log(low), math.log(high)))
        w_try, h_try = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        take = ~found & (w_try > 0) & (w_try <= width) & (h_try > 0) & (h_try <= height)
        tops = torch.where(take, (r2 * (height - h_try + 1)) >> 32, tops)
        lefts = torch.where(take, (r3 * (width - w_try + 1)) >> 32, lefts)
        heights, widths, found = torch.where(take, h_try, heights), torch.where(take, w_try, widths), found | take
    return tops, lefts, heights, widths


def draw(n: int, height: int, width: int, plan: Plan, seed: int, counter: int, device: torch.device) -> Tensor:
    """Draw the parameters of samples counter, …, counter + n - 1: (N, copies, 5) int32.

    Each row is top, left, height, width and flip; crop [top : top + height, left : left + width] of the padded image,
    resize it (resized crops only), then flip it.
    """
    key = torch.tensor([seed], device=device)
    count = torch.arange(counter, counter + n, device=device)
    height, width = height + plan.padding[1] + plan.padding[3], width + plan.padding[0] + plan.padding[2]
    h, w = plan.size
    top, left, coin, _ = philox(key, count, STREAM)
    down, right = height - h, width - w
    flip = (coin >> 31) * int(plan.hflip)
    heights, widths = torch.full_like(count, h), torch.full_like(count, w)
    center = (round(down / 2), round(right / 2))
    if plan.crop == CROPS["random"]:
        top, left = (top * (down + 1)) >> 32, (left * (right + 1)) >> 32
    elif plan.crop == CROPS["resized"]:
        top, left, heights, widths = _resized_boxes(key, count, height, width, plan)
    elif plan.copies == 1:
        top, left = torch.full_like(count, center[0]), torch.full_like(count, center[1])
    else:
        corners = [(0, 0), (0, right), (down, 0), (down, right), center]
        boxes = [[t, x, h, w, 0] for t, x in corners]
        boxes += [[t, right - x, h, w, 1] for t, x in corners] if plan.copies == 10 else []
        rows = torch.tensor(boxes, device=device).expand(n, -1, -1).clone()
        rows[:, :, 4] ^= flip[:, None]
        return rows.int()
    return torch.stack((top, left, heights, widths, flip), dim=1)[:, None].int()


def _source(start: Tensor, length: int, size: int, mode: int) -> tuple[Tensor, Tensor]:
    """Return which source pixel each pixel of a crop shows, and whether it lies inside, (N, length) each."""
    i = start[:, None].long() + torch.arange(length, device=start.device)
    inside = (i >= 0) & (i < size)
    if mode == PADDING_MODES["reflect"]:
        i = torch.where(i < 0, -i, torch.where(i >= size, 2 * size - 2 - i, i))
    elif mode == PADDING_MODES["symmetric"]:
        i = torch.where(i < 0, -1 - i, torch.where(i >= size, 2 * size - 1 - i, i))
    return i.clamp(0, size - 1), inside | (mode != PADDING_MODES["constant"])


def _tent(start: Tensor, length: Tensor, size: int, out: int, dtype: torch.dtype) -> Tensor:
    """Return the weights of an antialiased linear resize of [start, start + length) to `out`, (N, out, size).

    A tent of half width max(length / out, 1) pixels around each output pixel's center, times 2·out: whole numbers.
    """
    i = torch.arange(out, device=start.device)[:, None]
    j = torch.arange(size, device=start.device) - start.long()[:, None, None]
    length = length.long()[:, None, None]
    tent = 2 * length.clamp(min=out) - ((2 * j + 1) * out - (2 * i + 1) * length).abs()
    tent = torch.where((j >= 0) & (j < length), tent.clamp(min=0), 0)
    return tent.to(dtype) / tent.sum(-1, keepdim=True).to(dtype)


def _normalize(image: Tensor, integer: bool, plan: Plan) -> Tensor:
    """Map pixels (M, C, h, w), in 0…255 where they were integers, to the output's values and dtype."""
    if plan.dtype == torch.uint8:
        return torch.nan_to_num(image if integer else image * 255).round().clamp(0, 255).to(torch.uint8)
    mean, std = (
        torch.tensor(v, dtype=torch.float64, device=image.device)[:, None, None] for v in (plan.mean, plan.std)
    )
    if image.dtype == torch.float64:
        return (image / (255 if integer else 1) - mean) / std
    if not integer:
        return ((image - mean.float()) / std.float()).to(plan.dtype)
    # x / (255 std) - mean / std. Two 16-bit factors have exact products with 8-bit pixels: x / 255 comes out exact.
    factor = 1 / (255 * std)
    high = _round16(factor)
    low, bias = _round16(factor - high), -mean / std
    return (image * high.float() + bias.float() + image * low.float()).to(plan.dtype)


def _round16(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 65536).round(), exponent - 16)


def augment_reference(
    input: Tensor, index: Tensor | None, crop: int, size: list[int], padding: list[int], padding_mode: int, hflip: bool,
    scale: list[float], ratio: list[float], mean: list[float], std: list[float], dtype: torch.dtype,
    channels_last: bool, seed: int, counter: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (output, parameters) as the op of that name does; float64 images or dtype are computed in float64."""
    plan = Plan(size, crop, padding, padding_mode, hflip, scale, ratio, mean, std, dtype, channels_last)
    images = input if index is None else input[index]
    (n, channels, height, width), (h, w) = images.shape, plan.size
    compute = torch.float64 if torch.float64 in (input.dtype, dtype) else torch.float32
    boxes = draw(n, height, width, plan, seed, counter, images.device)
    top, left, heights, widths, flip = boxes.reshape(-1, 5).unbind(1)
    sample = torch.arange(n, device=images.device).repeat_interleave(plan.copies)
    if crop == CROPS["resized"]:
        value = images.to(compute)
        rows = _tent(top, heights, height, h, value.dtype)
        columns = _tent(left, widths, width, w, value.dtype)
        value = rows[:, None] @ value @ columns[:, None].mT
    else:
        y, y_inside = _source(top - padding[1], h, height, padding_mode)
        x, x_inside = _source(left - padding[0], w, width, padding_mode)
        value = images[sample[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        value = torch.where((y_inside[:, :, None] & x_inside[:, None, :])[:, None], value, 0)
        value = value.to(compute)
    value = torch.where(flip.bool()[:, None, None, None], value.flip(3), value)
    output = _empty(n, channels, plan, images.device)
    output.copy_(_normalize(value, images.dtype == torch.uint8, plan).reshape(output.shape))
    return output, boxes


# Op ------------------------------------------------------------------------------------------------------------------


def _empty(n: int, channels: int, plan: Plan, device: torch.device) -> Tensor:
    """Return an uninitialized output: (N, C, h, w), or (N, copies, C, h, w) for five and ten crops."""
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    flat = torch.empty((n * plan.copies, channels, *plan.size), dtype=plan.dtype, device=device, memory_format=layout)
    return flat if plan.copies == 1 else flat.unflatten(0, (n, plan.copies))


def _augment_fake(input: Tensor, index: Tensor | None, crop: int, size: list[int], *rest: Any) -> tuple[Tensor, Tensor]:
    dtype, channels_last = rest[7:9]
    plan = Plan(size, crop, (), 0, False, (), (), (), (), dtype, channels_last)
    n = input.shape[0] if index is None else index.shape[0]
    boxes = torch.empty((n, plan.copies, 5), dtype=torch.int32, device=input.device)
    return _empty(n, input.shape[1], plan, input.device), boxes


augment = _library.define(
    "augment(Tensor input, Tensor? index, int crop, int[] size, int[] padding, int padding_mode, bool hflip, "
    "float[] scale, float[] ratio, float[] mean, float[] std, ScalarType dtype, bool channels_last, int seed, "
    "int counter) -> (Tensor, Tensor)",
    fake=_augment_fake,
    reference=augment_reference,
)


def augment_array(images: np.ndarray[Any, Any], index: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """Run the op on a NumPy array (N, H, W, C) of any strides, where it lies."""
    if augment.run is not augment.overload:  # another backend than the compiled one: see _library.use
        return augment(torch.from_numpy(images.copy()).permute(0, 3, 1, 2), index, *rest)  # type: ignore[no-any-return]
    like = torch.empty((len(images), images.shape[3], 0, 0))
    output, boxes = _augment_fake(like, index, *rest)
    dtype, *last = rest[9:]
    rows = None if index is None else index.numpy()
    arguments = (*rest[:9], str(dtype).removeprefix("torch."), *last)
    _C.augment_array(images, rows, *arguments, output.data_ptr(), boxes.data_ptr())
    return output, boxes
