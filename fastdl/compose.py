"""Compose: torchvision-v2-style transforms that fuse into one BatchTransform."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdl.transform import BatchTransform

Size = int | Sequence[int]


@dataclass
class RandomCrop:
    """Crop each image at a place of its own, after padding: torchvision's RandomCrop.

    size and padding in pixels, as in `fastdl.data.BatchTransform`; padding_mode: "constant", "edge", "reflect" or
    "symmetric". pad_if_needed and another fill than 0 raise ValueError in Compose: they do not fuse.
    """

    size: Size
    padding: Size | None = None
    pad_if_needed: bool = False
    fill: float = 0
    padding_mode: str = "constant"

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        if self.pad_if_needed:
            raise ValueError("Compose: RandomCrop(pad_if_needed=True) cannot fuse; give the padding")
        if self.fill != 0:
            raise ValueError(f"Compose: RandomCrop(fill={self.fill}) cannot fuse; padding is 0 before normalization")
        return {"crop": "random", "size": self.size, "padding": self.padding or 0, "padding_mode": self.padding_mode}


@dataclass
class RandomResizedCrop:
    """Crop a random area and aspect ratio of each image, then resize it: torchvision's RandomResizedCrop.

    size in pixels; scale: the share of the image's area; ratio: width / height, both (least, most). Another
    interpolation than "bilinear" and antialias=False raise ValueError in Compose: they do not fuse.
    """

    size: Size
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: Any = "bilinear"
    antialias: bool | None = True

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        name = str(getattr(self.interpolation, "value", self.interpolation))
        if name not in ("bilinear", "2") or not self.antialias:
            raise ValueError(
                f"Compose: RandomResizedCrop(interpolation={name!r}, antialias={self.antialias}) cannot fuse; "
                "it is antialiased bilinear"
            )
        return {"crop": "resized", "size": self.size, "scale": self.scale, "ratio": self.ratio}


@dataclass
class CenterCrop:
    """Crop the center of each image: torchvision's CenterCrop.

    size in pixels, one number or (height, width). Raises ValueError, when run, for a crop larger than the image.
    """

    size: Size

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        return {"crop": "center", "size": self.size}


@dataclass
class FiveCrop:
    """Crop the corners and the center, (N, 5, C, h, w): torchvision's FiveCrop, stacked.

    size in pixels, one number or (height, width). Raises ValueError, when run, for a crop larger than the image.
    """

    size: Size

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        return {"crop": "five", "size": self.size}


@dataclass
class TenCrop:
    """Crop the corners and the center of each image and its mirror image, (N, 10, C, h, w): torchvision's TenCrop.

    size in pixels, one number or (height, width). vertical_flip=True raises ValueError in Compose: it does not fuse.
    """

    size: Size
    vertical_flip: bool = False

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        if self.vertical_flip:
            raise ValueError("Compose: TenCrop(vertical_flip=True) cannot fuse; flips are horizontal")
        return {"crop": "ten", "size": self.size}


@dataclass
class RandomHorizontalFlip:
    """Mirror each image with probability ½ (p = 0 never does): torchvision's RandomHorizontalFlip.

    Another p raises ValueError in Compose: it does not fuse.
    """

    p: float = 0.5

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        if self.p not in (0, 0.5):
            raise ValueError(f"Compose: RandomHorizontalFlip(p={self.p}) cannot fuse; p must be 0.5, or 0 for none")
        return {"hflip": self.p > 0}


@dataclass
class Normalize:
    """Subtract the mean and divide by the standard deviation of each channel: torchvision's Normalize.

    mean, std: one number or one a channel, in [0, 1] units. inplace is accepted; the output is always new. Raises
    ValueError in Compose for values in other units or a std that is not positive.
    """

    mean: float | Sequence[float] | Tensor
    std: float | Sequence[float] | Tensor
    inplace: bool = False

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        return {"mean": self.mean, "std": self.std}


@dataclass
class ToDtype:
    """Cast; uint8 images are divided by 255, which is torchvision's ToDtype with scale=True.

    dtype: float32, float16, bfloat16 or uint8. A first step without `scale`, which would leave uint8 images in
    0 … 255, and a dictionary of types raise ValueError in Compose.
    """

    dtype: torch.dtype
    scale: bool = False

    def options(self) -> dict[str, Any]:
        """Return BatchTransform's arguments."""
        if not isinstance(self.dtype, torch.dtype):
            raise ValueError("Compose: ToDtype takes one dtype, for images; dictionaries of types cannot fuse")
        return {"dtype": self.dtype}


_CROPS = (RandomCrop, RandomResizedCrop, CenterCrop, FiveCrop, TenCrop)
_KINDS = (*_CROPS, RandomHorizontalFlip, Normalize, ToDtype)


@dataclass
class Compose:
    """Fuse transforms into one pass over a batch of images, each image with parameters of its own.

    Takes at most one crop, one RandomHorizontalFlip and one Normalize, a ToDtype before and after it, in torchvision's
    order. Normalize scales uint8 images by itself. Inputs, outputs and errors are BatchTransform's:
    ``Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), Normalize(mean, std)])((images, labels))``.

    Args:
        transforms: The steps.
        memory_format, seed, return_params: As in BatchTransform.

    Raises:
        ValueError: Steps that do not fuse into one pass; the message says which and why.
        TypeError: Anything that is none of the transforms in this module.
    """

    transforms: Iterable[Any]
    memory_format: torch.memory_format = field(default=torch.contiguous_format, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    return_params: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, Iterable):
            raise TypeError(f"Compose: transforms must be a list of them, got {type(self.transforms).__name__}")
        self.transforms = list(self.transforms)
        if not self.transforms:
            raise ValueError("Compose: pass at least one transform")
        options: dict[str, Any] = {"size": None, "crop": None}
        seen: list[type] = []
        for step in self.transforms:
            kind = type(step)
            if kind not in _KINDS:
                raise TypeError(f"Compose: {kind.__module__}.{kind.__name__} cannot fuse; the transforms are those of "
                                f"fastdl.data: {', '.join(k.__name__ for k in _KINDS)}")  # fmt: skip
            _check_order(kind, step, seen)
            seen.append(kind)
            options.update(step.options())
        if not {ToDtype, Normalize} & set(seen):
            options["dtype"] = None  # crops and flips leave the images' dtype
        if Normalize in seen and options.get("dtype", torch.float32) == torch.uint8:
            raise ValueError("Compose: Normalize cannot fuse with a cast to uint8: normalized images do not fit it")
        self.transform = BatchTransform(
            **options, memory_format=self.memory_format, seed=self.seed, return_params=self.return_params
        )

    def __call__(self, images: Any, index: Any = None) -> Any:
        """Transform a batch, a pair (images, labels), or images[index]."""
        return self.transform(images, index)

    def state_dict(self) -> dict[str, int]:
        """Return the seed and how many samples the transform has seen."""
        return self.transform.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where another transform of the same steps stood."""
        self.transform.load_state_dict(state_dict)


def _check_order(kind: type, step: Any, seen: list[type]) -> None:
    """Raise ValueError where one pass, in the fixed order crop, flip, normalize, cast, would compute another thing."""
    name = kind.__name__
    if kind in _CROPS and any(k in _CROPS for k in seen):
        raise ValueError(f"Compose: {name} cannot fuse with the crop before it; one crop fits in a pass")
    if kind in (RandomHorizontalFlip, Normalize) and kind in seen:
        raise ValueError(f"Compose: two {name} steps cannot fuse; keep one")
    if kind in _CROPS and Normalize in seen:
        raise ValueError(f"Compose: {name} after Normalize cannot fuse; put Normalize after the crop")
    if kind in (CenterCrop, FiveCrop, TenCrop) and RandomHorizontalFlip in seen:
        raise ValueError(f"Compose: {name} after RandomHorizontalFlip cannot fuse; put the flip after the crop")
    if kind is ToDtype and not step.scale and not {ToDtype, Normalize} & set(seen):
        raise ValueError(f"Compose: ToDtype({step.dtype}) cannot fuse without scale=True: it would leave uint8 images "
                         "in [0, 255]")  # fmt: skip
    if kind is ToDtype and ToDtype in seen and seen[-1] is not Normalize:
        raise ValueError("Compose: two ToDtype steps cannot fuse; keep the last")
