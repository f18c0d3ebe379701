"""ResidentDataset: a whole data set of images as bytes in memory, read by index without copies."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def channel_stats(images: Any, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Return (mean, std) per channel in [0, 1] units, float64 (C,): one pass, exact sums; std is that of all pixels.

    images: (N, C, H, W) tensor or (N, H, W, C) array, uint8 or float in [0, 1], or a ResidentDataset.
    """
    tensor = images.images if isinstance(images, ResidentDataset) else as_tensor(images)
    channels = tensor.shape[1]
    if tensor.numel() == 0:
        raise ValueError(f"channel_stats: needs at least one pixel, got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:  # a histogram per channel holds all there is to know
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for part in tensor.split(chunk):
            for c in range(channels):
                counts[c] += torch.bincount(part[:, c].flatten().cpu(), minlength=256)
        values = torch.arange(256, dtype=torch.float64) / 255
        weights = counts.double() / counts.sum(1, keepdim=True)
        mean = weights @ values
        return mean, (weights * (values - mean[:, None]).square()).sum(1).sqrt()
    count, mean, m2 = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    for part in tensor.split(chunk):  # Chan's merge
        x = part.transpose(0, 1).flatten(1).double().cpu()
        delta, n = x.mean(1) - mean, x.shape[1]
        m2 += x.var(1, correction=0) * n + delta.square() * (count * n / (count + n))
        mean += delta * (n / (count + n))
        count += n
    return mean, (m2 / count).sqrt()


def as_tensor(images: Any) -> Tensor:
    """Return images as (N, C, H, W), NumPy's (N, H, W, C) or (N, H, W) as a view of it."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None] if images.ndim == 3 else images
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else ""
        raise ValueError(f"ResidentDataset: images must be a (N, C, H, W) tensor or a (N, H, W, C) array, got "
                         f"{type(images).__name__}{shape}")  # fmt: skip
    return images


def _progress(items: Sequence[Any], text: str) -> Any:
    try:
        from rich.progress import track
    except ImportError:
        return items
    return track(items, description=text, transient=True)


def read_folder(folder: Path, size: int | tuple[int, int]) -> tuple[Tensor, Tensor, list[str]]:
    """Decode an image folder, one subfolder a class: (N, 3, h, w) uint8, labels (N,), class names in sorted order.

    Images are scaled to cover `size` and cut to it at the center. Raises FileNotFoundError or ValueError.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("ResidentDataset: image folders need Pillow: pip install 'fastdl[data]'") from error
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).rglob("*"))
             if path.suffix.lower() in SUFFIXES]  # fmt: skip
    if not files:
        raise ValueError(f"ResidentDataset: {folder} must hold one subfolder of images per class, found "
                         f"{len(classes)} subfolders and no image in them")  # fmt: skip
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.empty((len(files), height, width, 3), dtype=torch.uint8)

    def decode(i: int) -> None:
        try:
            with Image.open(files[i][0]) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
        except OSError as error:
            raise ValueError(f"ResidentDataset: cannot read {files[i][0]}: {error}") from error
        images[i] = torch.from_numpy(np.asarray(fitted).copy())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in _progress([pool.submit(decode, i) for i in range(len(files))], f"decoding {folder.name}"):
            done.result()
    return images.permute(0, 3, 1, 2), torch.tensor([label for _, label in files]), classes


class ResidentDataset:
    """A data set of images that lives in memory; iterating gives (images, labels) batches.

    Args:
        source: (N, C, H, W) tensor or (N, H, W, C) NumPy array, uint8 or float; a path to an `.npz` with images under
            "images", "x" or "data" and labels under "labels", "y" or "target"; or a folder with one subfolder of
            images per class.
        labels: (N,), for arrays; 0 for all where there are none.
        transform: called as transform(images, index), a BatchTransform or Compose; None gives images[index].
        batch_size, shuffle, drop_last: as torch's DataLoader, except that shuffle defaults to True.
        seed: of the shuffling; epoch e has the permutation of (seed, e), the same on all ranks.
        rank, world_size: this process's share of every epoch; all ranks get the same number of images, the first
            ones twice where the division leaves a rest.
        size: (height, width) that a folder's images are fitted to, 256 unless given.
        device: where images and labels live.

    `classes` names a folder's labels. Raises ValueError, FileNotFoundError or KeyError for what cannot be read.
    """

    def __init__(
        self,
        source: Any,
        labels: Any = None,
        *,
        transform: Callable[..., Any] | None = None,
        batch_size: int = 64,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        size: int | tuple[int, int] = 256,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"ResidentDataset: batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"ResidentDataset: rank must lie in [0, world_size) = [0, {world_size}), got {rank}")
        self.classes: list[str] = []
        if isinstance(source, (str, Path)):
            path = Path(source)
            if not path.exists():
                raise FileNotFoundError(f"ResidentDataset: no file or folder {path}")
            if path.is_dir():
                source, labels, self.classes = read_folder(path, size)
            else:
                source, labels = _read_npz(path)
        self.images = as_tensor(source).to(device)
        n = len(self.images)
        self.labels = torch.as_tensor(np.zeros(n, np.int64) if labels is None else labels).to(self.images.device)
        if self.labels.shape[:1] != (n,):
            raise ValueError(f"ResidentDataset: labels must have one value an image, ({n},), got "
                             f"{tuple(self.labels.shape)}")  # fmt: skip
        self.transform, self.batch_size, self.shuffle, self.drop_last = transform, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass; passes count up by themselves."""
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, batches handed out in it, and the transform's state."""
        state: dict[str, Any] = {"epoch": self.epoch, "position": self.position}
        if hasattr(self.transform, "state_dict"):
            state["transform"] = self.transform.state_dict()  # type: ignore[union-attr]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, in the middle of an epoch too, where another data set of the same arguments stood."""
        self.epoch, self.position = state_dict["epoch"], state_dict["position"]
        if "transform" in state_dict:
            self.transform.load_state_dict(state_dict["transform"])  # type: ignore[union-attr]

    def order(self) -> Tensor:
        """Return this rank's indices of the current epoch, in order."""
        n = len(self.images)
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        share = -(-n // self.world_size)
        if n and share * self.world_size > n:
            order = order.repeat(-(-share * self.world_size // n))[: share * self.world_size]
        return order[self.rank :: self.world_size]

    def __len__(self) -> int:
        share = -(-len(self.images) // self.world_size)
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        batches, epoch = self.order().split(self.batch_size), self.epoch
        for position in range(self.position, len(self)):
            index = batches[position].to(self.images.device)
            self.position = position + 1
            images = self.images[index] if self.transform is None else self.transform(self.images, index)
            yield images, self.labels[index]
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)


def _read_npz(path: Path) -> tuple[Any, Any]:
    with np.load(path) as archive:
        names = list(archive)
        found = [next((n for n in choices if n in names), None)
                 for choices in (("images", "x", "data"), ("labels", "y", "target"))]  # fmt: skip
        if found[0] is None:
            raise KeyError(f"ResidentDataset: {path} must hold images as 'images', 'x' or 'data', has {names}")
        return archive[found[0]], None if found[1] is None else archive[found[1]]
