"""Data sets that live whole in memory, on the host or on the device; epochs shuffle an index, not images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdl.folder import decode_folder
from fastdl.images import as_images

_NAMES = {
    "images": ("images", "x", "x_train", "data", "arr_0"),
    "labels": ("labels", "y", "y_train", "targets", "target", "arr_1"),
}


class ResidentDataset:
    """Images and labels in memory; iterating yields an epoch of (images, labels) batches.

    Each epoch has an order of its own, a function of (seed, epoch) alone, and the transform gathers its batch from
    the data set by index, so nothing is copied. An image folder trains with three lines::

        data = ResidentDataset("photos/", size=72, transform=BatchTransform(64, hflip=True), batch_size=64)
        for images, labels in data:
            step(images, labels)

    Args:
        source: (N, H, W, C) or (N, H, W) NumPy array, (N, C, H, W) tensor, uint8 or floats in [0, 1]; a path to an
            ``.npz`` with images ("images", "x", "data", …) and labels ("labels", "y", "target", …); or a path to a
            folder with one subfolder of images a class.
        labels: One value an image, for arrays; None means 0 for all. Whole numbers become int64, as losses want them.
        transform: Called as ``transform(images, index)``, a BatchTransform or Compose; None gives ``images[index]``.
        batch_size, shuffle, drop_last: As torch's DataLoader, except that shuffle is on.
        seed: Of the order; the same on all ranks.
        rank, world_size: This process's share of every epoch, as torch's DistributedSampler deals it: the order is
            repeated from its start until it divides, or cut with drop_last.
        size: (height, width), or one number, that a folder's images are scaled to cover and center cropped to.
        device: Where images and labels live; None leaves them where they are.

    `classes` names a folder's labels.

    Raises:
        ValueError: Images or labels of unsuitable shape or number, a rank outside the world, a file that is no image.
        FileNotFoundError: No such path, or a folder without images.
        KeyError: An archive without images.
    """

    def __init__(
        self,
        source: Any,
        labels: Any = None,
        *,
        transform: Any = None,
        batch_size: int = 64,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        size: int | Sequence[int] = 256,
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
                source, labels, self.classes = decode_folder(path, size)
            elif path.suffix == ".npz":
                source, labels = _read_npz(path)
            else:
                raise ValueError(f"ResidentDataset: takes a folder or an .npz, got {path}; load the file and pass "
                                 "its arrays")  # fmt: skip
        if isinstance(source, (np.ndarray, Tensor)) and source.ndim == 3:  # gray
            source = source[..., None] if isinstance(source, np.ndarray) else source[:, None]
        self.images: Any = _place(as_images("ResidentDataset", source)[0], device)
        n = len(self.images)
        where = self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")
        self.labels = _as_labels(np.zeros(n, np.int64) if labels is None else labels).to(where)
        if tuple(self.labels.shape) != (n,):
            raise ValueError(
                f"ResidentDataset: labels must be one value an image, shape ({n},), got {tuple(self.labels.shape)}"
            )
        self.transform, self.batch_size, self.shuffle, self.drop_last = transform, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self._position = self._resume = 0

    def _share(self) -> int:
        n = len(self.images)
        return n // self.world_size if self.drop_last else -(-n // self.world_size)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self._share() // self.batch_size if self.drop_last else -(-self._share() // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; whole iterations count epochs by themselves."""
        self.epoch, self._position, self._resume = int(epoch), 0, 0

    def order(self) -> Tensor:
        """Return the indices that this process visits in the current epoch."""
        n, total = len(self.images), self._share() * self.world_size
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        if 0 < n < total:
            order = order.repeat(-(-total // n))
        return order[self.rank : total : self.world_size]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield the batches of an epoch; after load_state_dict, those that were left of it."""
        order, epoch = self.order().to(self.labels.device), self.epoch
        first, self._resume = self._resume, 0
        for batch in range(first, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.images[index] if self.transform is None else self.transform(self.images, index)
            self._position = batch + 1
            yield images, self.labels[index]
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def __repr__(self) -> str:
        shape, rank = tuple(self.images.shape), f"rank={self.rank} of {self.world_size}"
        return f"ResidentDataset({shape}, batch_size={self.batch_size}, shuffle={self.shuffle}, {rank})"

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and the transform's state."""
        state: dict[str, Any] = {"epoch": self.epoch, "position": self._position}
        if hasattr(self.transform, "state_dict"):
            state["transform"] = self.transform.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, in the middle of an epoch too, where another data set of the same arguments stood."""
        stateful = hasattr(self.transform, "load_state_dict")
        missing = {"epoch", "position", *(("transform",) if stateful else ())} - set(state_dict)
        if missing:
            raise KeyError(f"ResidentDataset: the state lacks {', '.join(sorted(missing))}")
        if stateful:
            self.transform.load_state_dict(state_dict["transform"])
        self.epoch, self._position = int(state_dict["epoch"]), int(state_dict["position"])
        self._resume = self._position


def _as_labels(labels: Any) -> Tensor:
    try:
        values = torch.as_tensor(np.asarray(labels) if isinstance(labels, (list, tuple)) else labels)
    except TypeError as error:
        raise TypeError(
            f"ResidentDataset: labels must be numbers: {error}; numpy.unique(labels, return_inverse=True) counts names"
        ) from error
    return values if values.is_floating_point() or values.dtype == torch.bool else values.long()


def _place(images: Any, device: torch.device | str | None) -> Any:
    """Return images on the device; arrays stay arrays on the host, where the transform reads them in place."""
    if device is None or (isinstance(images, np.ndarray) and torch.device(device).type == "cpu"):
        return images
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)
    return images.to(device)


def _read_npz(path: Path) -> tuple[Any, Any]:
    with np.load(path) as archive:
        found = {what: next((n for n in names if n in archive), None) for what, names in _NAMES.items()}
        if found["images"] is None:
            raise KeyError(
                f"ResidentDataset: {path} must hold images under one of {', '.join(_NAMES['images'])}; it has "
                f"{', '.join(archive) or 'nothing'}"
            )
        return archive[found["images"]], None if found["labels"] is None else archive[found["labels"]].reshape(-1)
