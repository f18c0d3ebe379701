"""A training loop whose loader is slow: what of its time remains beside the steps, with and without the Prefetcher.

A loader reads from a deliberately slow disk (it sleeps) or works (it augments a batch); the step is a small network's
forward, backward and update.
"""

import time

import pytest
import torch
from machine import CUDA, DEVICE
from protocol import cases

from fastdl.data import BatchTransform, Prefetcher

BATCHES = 12
SIDE = cases(cpu=[32], cuda=[224])[0]
N = cases(cpu=[128], cuda=[256])[0]


class Loader:
    """Batches of uint8 images, each after `seconds` of waiting for the disk."""

    def __init__(self, images, seconds):
        self.images, self.seconds = images, seconds

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for _ in range(BATCHES):
            time.sleep(self.seconds)
            yield self.images


def training(loader):
    """Return a call that trains over all of the loader's batches."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10)
    ).to(DEVICE)
    network(torch.zeros(N, 3, SIDE, SIDE, device=DEVICE))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def epoch():
        for images in loader:
            x = images.to(DEVICE, non_blocking=True)
            x = x if x.is_floating_point() else x.float() / 255
            network(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if CUDA:
            torch.cuda.synchronize()

    return epoch


@pytest.mark.parametrize("milliseconds", [1, 4])
def test_slow_disk(compare, milliseconds):
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE), dtype=torch.uint8)
    seconds = milliseconds / 1e3
    compare(
        op=f"{BATCHES} steps, {milliseconds} ms of disk each", shape=tuple(images.shape), dtype=torch.uint8,
        operands=lambda: [images],
        arms={
            "fastdl": lambda x: training(Prefetcher(Loader(x, seconds), DEVICE)),
            "torch": lambda x: training(Loader(x, seconds)),
        },
        bytes=BATCHES * images.nbytes,
    )  # fmt: skip


def test_augmenting_loader(compare):
    """The loader's work holds no lock on Python: it runs beside the step where there is a second core."""
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE), dtype=torch.uint8)

    class Augmenting(Loader):
        def __iter__(self):
            return map(BatchTransform(SIDE, crop="random", padding=4, hflip=True, seed=0), super().__iter__())

    compare(
        op=f"{BATCHES} steps, augmented batches", shape=tuple(images.shape), dtype=torch.uint8,
        operands=lambda: [images],
        arms={
            "fastdl": lambda x: training(Prefetcher(Augmenting(x, 0.001), DEVICE)),
            "torch": lambda x: training(Augmenting(x, 0.001)),
        },
        bytes=BATCHES * images.nbytes,
    )  # fmt: skip
