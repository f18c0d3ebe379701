"""Mean and standard deviation of each channel of a data set, in one pass."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdl.images import as_images
from fastdl.resident import ResidentDataset

CHUNK = 1 << 22  # pixels at a time, so that float64 copies stay small


def channel_stats(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return the mean and the (population) standard deviation of each channel in [0, 1] units, (C,) float64 each.

    dataset: images as BatchTransform takes them, a ResidentDataset, or an iterable of batches, with labels or without.
    uint8 images are counted as whole numbers, so the result is exact to the last bit but one; float images are merged
    in float64 (Chan, Golub and LeVeque 1983). What comes out is what ``BatchTransform(mean=, std=)`` takes.

    Raises:
        ValueError: No images, batches of different channels, or float images that are not in [0, 1].
    """
    counts: Tensor | None = None  # (C, 256) pixels of each value
    n, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for images in _batches(dataset):
        values = images.transpose(0, 1).flatten(1)  # (C, pixels)
        if images.dtype == torch.uint8:
            part = torch.stack([torch.bincount(channel, minlength=256) for channel in values]).cpu()
            _same_channels(counts, part)
            counts = part if counts is None else counts + part
            continue
        values = values.double().cpu()
        _same_channels(mean if n else None, values)
        delta, m = values.mean(1) - mean, values.shape[1]
        squares = squares + values.sub(values.mean(1, keepdim=True)).square().sum(1) + delta**2 * n * m / (n + m)
        mean, n = mean + delta * m / (n + m), n + m
    if counts is not None and n:
        raise ValueError("channel_stats: got both uint8 and float images")
    if counts is not None:
        return _exact(counts)
    if n == 0:
        raise ValueError("channel_stats: the data set has no images")
    if not (mean.min() >= 0 and mean.max() <= 1):
        raise ValueError(f"channel_stats: float images must lie in [0, 1], their mean is {mean.tolist()}")
    return mean, (squares / n).sqrt()


def _exact(counts: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = [], []
    for row in counts.tolist():
        n = sum(row)
        first = Fraction(sum(v * k for v, k in enumerate(row)), n)
        second = Fraction(sum(v * v * k for v, k in enumerate(row)), n)
        mean.append(float(first / 255))
        std.append(float((second - first**2) / 255**2) ** 0.5)
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def _same_channels(known: Tensor | None, part: Tensor) -> None:
    if known is not None and known.shape[0] != part.shape[0]:
        raise ValueError(f"channel_stats: batches have {known.shape[0]} and {part.shape[0]} channels")


def _batches(dataset: Any) -> Iterator[Tensor]:
    """Yield (N, C, H, W) tensors of at most about CHUNK pixels."""
    dataset = dataset.images if isinstance(dataset, ResidentDataset) else dataset
    if not isinstance(dataset, Iterable):
        raise TypeError(f"channel_stats: takes images or an iterable of batches, got {type(dataset).__name__}")
    whole = isinstance(dataset, (Tensor, np.ndarray))
    batches: Iterable[Any] = [dataset] if whole else dataset
    for batch in batches:
        images, _ = as_images("channel_stats", batch[0] if isinstance(batch, (tuple, list)) else batch)
        step = max(
            1, CHUNK // (images[0].size if isinstance(images, np.ndarray) else images[0].numel()) if len(images) else 1
        )
        for i in range(0, len(images), step):
            part = images[i : i + step]
            yield torch.from_numpy(part.copy()).permute(0, 3, 1, 2) if isinstance(part, np.ndarray) else part
