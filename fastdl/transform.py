"""BatchTransform: the module over the op `augment`, with its checks, state and parameters."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastdl.augment import CROPS, PADDING_MODES, augment, augment_array
from fastdl.images import DTYPES, as_images, as_index, as_size, check_labels, check_units, split_pair, whole_numbers
from fastdl.philox import philox

WORKER_STREAM = 128  # of philox, for the seeds of DataLoader workers
_WIDEST = 2.0**30  # ratio: images have fewer pixels a side


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def _four(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom from torchvision's one, two or four numbers."""
    sides = whole_numbers(padding)
    if sides is None or len(sides) not in (1, 2, 4) or min(sides) < 0:
        raise ValueError(f"BatchTransform: padding must be 1, 2 or 4 numbers of pixels ≥ 0, got {padding!r}")
    sides = sides * (4 // len(sides))
    return sides[0], sides[1], sides[2], sides[3]


def _range(name: str, value: Sequence[float], limit: float) -> tuple[float, float]:
    if not isinstance(value, Iterable) or len(value) != 2 or not 0 < value[0] <= value[1] <= limit < math.inf:
        raise ValueError(f"BatchTransform: {name} must be (low, high) with 0 < low ≤ high ≤ {limit:g}, got {value!r}")
    return float(value[0]), float(value[1])


def _units(name: str, value: float | Sequence[float] | Tensor | None, default: float) -> list[float]:
    """Return per-channel values after checking that they are in the units of images in [0, 1]."""
    if value is None:
        return [default]
    try:
        values = torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist()
    except (TypeError, ValueError) as error:
        raise ValueError(f"BatchTransform: {name} must be one number, or one a channel, got {value!r}") from error
    positive = all(v > 0 for v in values) if name == "std" else all(v >= 0 for v in values)
    if not values or not positive or not all(v <= 1 for v in values):
        raise ValueError(
            f"BatchTransform: {name} must be in the units of images in [0, 1], {'0 <' if name == 'std' else '0 ≤'} "
            f"{name} ≤ 1, got {values}; divide statistics of 0…255 images by 255"
        )
    return values


class BatchTransform:
    """Crop or resize, flip, normalize, cast and lay out a batch of images in one pass, each with its own parameters.

    Called with images (N, C, H, W) as a tensor in any memory format and strides, or (N, H, W, C) as a NumPy array;
    uint8 is divided by 255, floats are taken as [0, 1]. Returns (N, C, h, w) on the images' device, five and ten
    crops (N, 5 or 10, C, h, w) in torchvision's order. A pair (images, labels) gives a pair.

    Args:
        size: Output height and width, or one number for both; None with ``crop=None`` keeps the images' size.
        crop: "random", "resized" (torchvision's RandomResizedCrop, antialiased bilinear), "center", "five", "ten", or
            None for images that have the size already.
        padding: Pixels around the image before the crop: one number, (left/right, top/bottom), or (left, top, right,
            bottom).
        hflip: Mirror each image with probability ½, after the crop.
        scale, ratio: Of a resized crop: share of the image's area, and width / height.
        mean, std: Per channel in [0, 1] units, as torchvision's Normalize.
        dtype: float32, float16, bfloat16, or uint8 (255 · value, rounded and saturated; without mean and std); None
            keeps the images' own.
        memory_format: torch.contiguous_format or torch.channels_last.
        seed: Of the parameters; None draws one from torch's generator. Sample k of the transform's life uses
            Philox(seed, k). In a DataLoader's worker, the worker's own seed joins in.
        return_params: Also return a dict of tensors top, left, height, width (in pixels of the padded image) and flip,
            (N,) each, (N, 5 or 10) for five and ten crops.
        padding_mode: "constant" (0 before normalization), "edge", "reflect" or "symmetric".

    Raises:
        ValueError: A bad argument, a crop larger than the padded image, statistics in wrong units, or floats beyond
            [0, 1] in the first batch to be normalized.
        TypeError: Anything but images and labels: boxes, masks, dictionaries.

    >>> transform = BatchTransform(24, crop="random", padding=2, hflip=True, mean=0.5, std=0.25)
    >>> transform(torch.zeros(8, 3, 28, 28, dtype=torch.uint8)).shape
    torch.Size([8, 3, 24, 24])
    """

    def __init__(
        self,
        size: int | Sequence[int] | None,
        *,
        crop: str | None = "random",
        padding: int | Sequence[int] = 0,
        hflip: bool = False,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        seed: int | None = None,
        return_params: bool = False,
        padding_mode: str = "constant",
    ) -> None:
        if crop not in CROPS:
            raise ValueError(f"BatchTransform: crop must be one of {list(CROPS)}, got {crop!r}")
        if size is None and crop is not None:
            raise ValueError(f"BatchTransform: crop={crop!r} needs a size")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"BatchTransform: padding_mode must be one of {list(PADDING_MODES)}, got {padding_mode!r}")
        sides = _four(padding)
        if crop == "resized" and any(sides):
            raise ValueError("BatchTransform: a resized crop takes no padding")
        if dtype not in (*DTYPES, None):
            raise ValueError(f"BatchTransform: dtype must be float32, float16, bfloat16 or uint8, got {dtype}")
        if dtype in (torch.uint8, None) and not (mean is None and std is None):
            raise ValueError(f"BatchTransform: dtype={dtype} may hold uint8 images, so it takes no mean and std")
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(f"BatchTransform: memory_format must be contiguous or channels_last, got {memory_format}")
        number = [0] if seed is None else whole_numbers(seed)
        if number is None or len(number) != 1 or not -(2**63) <= number[0] < 2**64:
            raise ValueError(f"BatchTransform: seed must be a whole number of 64 bits, got {seed!r}")
        self.size = None if size is None else as_size("BatchTransform", size)
        self.crop, self.padding, self.padding_mode, self.hflip = crop, sides, padding_mode, bool(hflip)
        self.scale, self.ratio = _range("scale", scale, 1), _range("ratio", ratio, _WIDEST)
        self.mean, self.std = _units("mean", mean, 0.0), _units("std", std, 1.0)
        self.dtype, self.memory_format, self.return_params = dtype, memory_format, return_params
        self.seed = int(torch.randint(-(2**63), 2**63 - 1, (1,))) if seed is None else _signed(number[0])
        self.counter = 0

    def __call__(self, images: Any, index: Any = None) -> Any:
        """Transform a batch, or images[index] of a resident data set without copying it.

        Returns the batch; (batch, labels) for a pair; with ``return_params`` the parameters as one value more.
        """
        images, labels = split_pair("BatchTransform", images)
        input, dtype = as_images("BatchTransform", images)
        run: Any = augment if isinstance(input, Tensor) else augment_array
        rows = None if index is None else as_index("BatchTransform", index, input)
        n = input.shape[0] if rows is None else rows.shape[0]
        check_labels("BatchTransform", labels, n)
        if self.counter == 0 and (self.mean, self.std) != ([0.0], [1.0]):
            check_units("BatchTransform", input)
        channels, height, width = input.shape[1:] if run is augment else [input.shape[i] for i in (3, 1, 2)]
        size, last = self._check_size(height, width), self.memory_format == torch.channels_last
        mean, std = (self._per_channel(name, channels) for name in ("mean", "std"))
        output, boxes = run(
            input, rows, CROPS[self.crop], size, self.padding, PADDING_MODES[self.padding_mode], self.hflip, self.scale,
            self.ratio, mean, std, self.dtype or dtype, last, self._key(), self.counter,
        )  # fmt: skip
        self.counter += n
        result = (output, *labels, *((self._name(boxes),) if self.return_params else ()))
        return result if len(result) > 1 else output

    def _check_size(self, height: int, width: int) -> tuple[int, int]:
        left, top, right, bottom = self.padding
        padded = height + top + bottom, width + left + right
        size = self.size or padded
        limit = {"reflect": 1, "symmetric": 0}.get(self.padding_mode)
        if limit is not None and (max(top, bottom) > height - limit or max(left, right) > width - limit):
            raise ValueError(
                f"BatchTransform: {self.padding_mode} padding {self.padding} is too wide for images of {height}×{width}"
            )
        if self.crop is None and size != padded:
            raise ValueError(
                f"BatchTransform: crop=None keeps the size, but padded images are {padded[0]}×{padded[1]} and size is "
                f"{size[0]}×{size[1]}; choose a crop"
            )
        if self.crop != "resized" and (size[0] > padded[0] or size[1] > padded[1]):
            raise ValueError(
                f"BatchTransform: a crop of {size[0]}×{size[1]} is larger than the padded image, "
                f"{padded[0]}×{padded[1]}; pad more or crop less"
            )
        return size

    def _per_channel(self, name: str, channels: int) -> list[float]:
        values: list[float] = getattr(self, name)
        if len(values) not in (1, channels):
            raise ValueError(f"BatchTransform: {name} has {len(values)} values, the images have {channels} channels")
        return values * (channels // len(values))

    def _key(self) -> int:
        # Workers hold copies of one transform, made anew each epoch: their own seeds keep their images apart.
        worker = get_worker_info()
        if worker is None:
            return self.seed
        words = philox(torch.tensor([self.seed]), torch.tensor([worker.seed]), WORKER_STREAM)
        return _signed(int(words[0]) | int(words[1]) << 32)

    def _name(self, boxes: Tensor) -> dict[str, Tensor]:
        flat = boxes.long() if self.crop in ("five", "ten") else boxes[:, 0].long()
        values = dict(zip(("top", "left", "height", "width", "flip"), flat.unbind(-1)))
        return {**values, "flip": values["flip"].bool()}

    def state_dict(self) -> dict[str, int]:
        """Return the seed and how many samples the transform has seen."""
        return {"seed": self.seed, "counter": self.counter}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where another transform of the same arguments stood."""
        missing = {"seed", "counter"} - set(state_dict)
        if missing:
            raise KeyError(f"BatchTransform: the state lacks {sorted(missing)}")
        self.seed, self.counter = _signed(int(state_dict["seed"])), int(state_dict["counter"])

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name not in ("size", "seed", "counter")}
        return f"BatchTransform({self.size}, {', '.join(f'{name}={value!r}' for name, value in shown.items())})"
