"""What transforms take: images, index vectors and labels, checked; all else is rejected."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_OTHER = ("BoundingBoxes", "Mask", "KeyPoints", "Video")  # torchvision's tensors that are no images


def whole_numbers(value: Any) -> list[int] | None:
    """Return one whole number or several as a list, NumPy's too; None for anything else."""
    values = list(value) if isinstance(value, Iterable) else [value]
    if any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        return None
    return [operator.index(v) for v in values]


def as_size(op: str, value: Any) -> tuple[int, int]:
    """Return (height, width) from one number of pixels or two."""
    pair = whole_numbers(value)
    if pair is None or len(pair) not in (1, 2) or min(pair) < 1:
        raise ValueError(f"{op}: size must be a positive int or a (height, width) pair of them, got {value!r}")
    return pair[0], pair[-1]


def split_pair(op: str, batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """Part (images, labels) into images and (labels,), a batch without labels into it and ()."""
    if not isinstance(batch, (tuple, list)):
        return batch, ()
    if len(batch) != 2:
        raise TypeError(f"{op}: takes images, or a pair (images, labels), got a {type(batch).__name__} of {len(batch)}")
    return batch[0], (batch[1],)


def as_images(op: str, images: Any) -> tuple[Tensor | np.ndarray[Any, Any], torch.dtype]:
    """Return a uint8 or float32 tensor (N, C, H, W) or array (N, H, W, C), a copy only where needed, and its dtype."""
    kind = type(images).__name__
    if not isinstance(images, (Tensor, np.ndarray)) or kind in _OTHER:
        raise TypeError(f"{op}: images must be a (N, C, H, W) tensor or a (N, H, W, C) NumPy array, got {kind}; "
                        "boxes, masks and dictionaries are not transformed")  # fmt: skip
    if images.ndim != 4:
        raise ValueError(f"{op}: expected 4D images (got {images.ndim}D {kind}): (N, C, H, W) tensors or (N, H, W, C) "
                         "arrays; a single image needs a batch dimension, images[None]")  # fmt: skip
    if isinstance(images, np.ndarray):
        known = (images.dtype.kind == "f" and images.dtype.itemsize <= 8) or images.dtype == np.uint8
        dtype = {"uint8": torch.uint8, "float16": torch.float16}.get(images.dtype.name, torch.float32)
    else:
        known = images.dtype in (*DTYPES, torch.float64)
        dtype = images.dtype if images.dtype in DTYPES else torch.float32
    if not known:
        raise TypeError(f"{op}: images must be uint8 or floating, got {images.dtype}")
    if 0 in images.shape[1:]:
        raise ValueError(f"{op}: images must have pixels, got shape {tuple(images.shape)}")
    if isinstance(images, np.ndarray) and images.shape[3] > 4 and images.shape[1] in (1, 3, 4):
        raise ValueError(f"{op}: arrays are (N, H, W, C), but shape {images.shape} looks like (N, C, H, W); pass "
                         "images.transpose(0, 2, 3, 1), or a tensor, which is (N, C, H, W)")  # fmt: skip
    if isinstance(images, Tensor) and images.layout != torch.strided:
        raise TypeError(f"{op}: images must be dense, got {images.layout}; call .to_dense() first")
    if isinstance(images, np.ndarray):
        odd = any(s % images.itemsize for s in images.strides)
        return images.astype("u1" if dtype == torch.uint8 else "=f4", copy=odd), dtype
    if images.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{op}: images require grad, but no gradient passes augmentation; call .detach() first")
    return images.detach() if dtype == torch.uint8 else images.detach().float(), dtype


def as_index(op: str, index: Any, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Return an index vector as contiguous int64 on the images' device; what lies on the host is checked."""
    if isinstance(index, slice) or index is Ellipsis:
        raise TypeError(f"{op}: index must be a vector of whole numbers, got {index}; slice the images instead")
    rows = torch.as_tensor(np.ascontiguousarray(index) if isinstance(index, np.ndarray) else index)
    if rows.ndim != 1 or (rows.numel() and rows.dtype not in (torch.int64, torch.int32)):
        raise ValueError(
            f"{op}: index must be a vector of whole numbers, int64 or int32, got {rows.dtype} of shape "
            f"{tuple(rows.shape)}"
        )
    if rows.numel() and rows.device.type == "cpu" and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
        raise IndexError(f"{op}: index must lie in [0, {len(images)}), got values from {int(rows.min())} to "
                         f"{int(rows.max())}")  # fmt: skip
    return rows.to(images.device if isinstance(images, Tensor) else "cpu", torch.int64).contiguous()


def check_labels(op: str, labels: tuple[Any, ...], n: int) -> None:
    """Raise TypeError unless labels are one value an image."""
    for value in labels:
        shape = tuple(np.shape(value)) if not isinstance(value, dict) else None
        if shape != (n,):
            raise TypeError(
                f"{op}: labels must be one value an image, shape ({n},), got {type(value).__name__}"
                f"{f' of shape {shape}' if shape else ''}; boxes and masks are not transformed"
            )


def check_units(op: str, images: Tensor | np.ndarray[Any, Any]) -> None:
    """Raise ValueError where float images on the host lie far beyond [0, 1], as 0…255 images do."""
    floating = isinstance(images, np.ndarray) or images.device.type == "cpu"
    if not floating or images.dtype in (np.uint8, torch.uint8) or 0 in images.shape or not images.max() > 2:
        return
    raise ValueError(f"{op}: float images must lie in [0, 1] to be normalized, got values up to {images.max():g}; "
                     "divide 0…255 images by 255, or pass them as uint8")  # fmt: skip
