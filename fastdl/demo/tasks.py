"""Data and networks of the demo."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl.nn as fnn
from fastdl import data, init

DEPTH, WIDTH = 10, 128


class Task(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) to train on and to test with."""

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def digits() -> Task:
    """Return scikit-learn's 1797 digits, 8×8 pixels: the first half to train on, as in scikit-learn's own example."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    half = len(images) // 2
    return Task("digits", images[:half], labels[:half], images[half:], labels[half:], 10)


def own(path: str, seed: int, size: int = 64) -> Task:
    """Return a user's image folder or `.npz`, a fifth of it held out at random."""
    found = data.ResidentDataset(path, size=size)
    n, labels = len(found.images), found.labels.long()
    classes = int(labels.max()) + 1 if n else 0
    if n < 10 or classes < 2:
        raise ValueError(f"demo: {path} has {n} images of {classes} classes; training needs 10 images of 2 classes")
    fit: dict[str, Any] = {"size": None, "crop": None}
    if max(found.images.shape[1:]) > 96:  # the network is made for small images
        fit = {"size": size, "crop": "resized", "scale": (1, 1), "ratio": (1, 1)}
    images = data.BatchTransform(**fit, dtype=torch.uint8)(found.images)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    test, train = order[: max(1, n // 5)], order[max(1, n // 5) :]
    return Task(path, images[train], labels[train], images[test], labels[test], classes)


def mlp(task: Task, scheme: str, norm: bool, **arguments: Any) -> nn.Sequential:
    """Return ten layers of Linear and ReLU, with batch norm fused in between or without, initialized by `scheme`."""
    widths = [task.images[0].numel(), *[WIDTH] * (DEPTH - 1)]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(widths):
        layers.append(fnn.LinearBatchNormAct(i, o) if norm else fnn.Linear(i, o, activation="relu"))
    model = nn.Sequential(*layers, fnn.Linear(WIDTH, task.classes))
    init.initialize(model, scheme, seed=0, **arguments)
    return model


class Residual(nn.Module):
    """x -> relu(bn(conv(x)) + x), batch norm, residual and activation in one pass."""

    def __init__(self, channels: int, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = norm(channels)

    def forward(self, input: Tensor) -> Tensor:
        """Return an output of the input's shape."""
        output: Tensor = self.norm(self.conv(input), residual=input)
        return output


class _TorchNorm(nn.BatchNorm2d):
    """torch's batch norm, then addition, then ReLU: what the fused form replaces."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input)
        return F.relu(output if residual is None else output + residual)


def cnn(task: Task, library: str = "fastdl") -> nn.Sequential:
    """Return a small residual network with batch norm and dropout, of fastdl's modules or of torch's."""
    norm: Callable[..., nn.Module] = _TorchNorm
    dropout: Callable[[float], nn.Module] = nn.Dropout
    linear: Callable[[int, int], nn.Module] = nn.Linear
    if library == "fastdl":
        norm, dropout, linear = (lambda c: fnn.BatchNorm2d(c, activation="relu")), fnn.Dropout, fnn.Linear
    channels = task.images.shape[1]
    model = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1, bias=False), norm(32), Residual(32, norm),
        nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False), norm(64), Residual(64, norm),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), dropout(0.3), linear(64 * 16, task.classes),
    )  # fmt: skip
    return init.initialize(model, "kaiming_normal", seed=0, nonlinearity="relu")  # type: ignore[return-value]
