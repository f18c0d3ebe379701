"""Batch transforms against the same in torch ops: crop, flip, normalize, cast."""

import pytest
import torch
from machine import DEVICE
from protocol import call, cases

from fastdl.data import BatchTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = cases(cpu=[(64, 32, 28), (16, 256, 224)], cuda=[(512, 32, 28), (256, 256, 224)])  # batch, image, crop


def in_torch(images, size, dtype):
    """One crop and flip for the batch, as torchvision draws them, in torch's own ops."""
    top, left = (int(torch.randint(images.shape[-1] - size + 1, ())) for _ in range(2))
    x = images[..., top : top + size, left : left + size].float() / 255
    x = x.flip(-1) if torch.rand(()) < 0.5 else x
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
    return ((x - mean) / std).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crop_flip_normalize(compare, shape, dtype):
    n, image, size = shape
    transform = BatchTransform(size, crop="random", hflip=True, mean=MEAN, std=STD, dtype=dtype, seed=0)
    elements = n * 3 * size * size
    compare(
        op="crop + flip + normalize", shape=(n, 3, size, size), dtype=dtype,
        operands=lambda: [torch.randint(0, 256, (n, 3, image, image), dtype=torch.uint8, device=DEVICE)],
        arms={"fastdl": call(transform), "torch": call(lambda x: in_torch(x, size, dtype))},
        bytes=elements * (1 + dtype.itemsize),
    )  # fmt: skip
