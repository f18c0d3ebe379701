"""BatchTransform against torchvision v2 (where it is installed) and the same steps in torch.

torchvision draws one crop for a whole batch, so it comes twice: once so, once image by image, which is what a data
loader does and the only way to parameters of each image's own. Rows of a CPU are per thread with OMP_NUM_THREADS=1.
"""

import pytest
import torch
from machine import DEVICE
from protocol import call, cases, compiled

from fastdl.data import BatchTransform

try:
    from torchvision.transforms import v2
except ImportError:
    v2 = None

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def images(n, side, layout="contiguous"):
    x = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, device=DEVICE)
    return x.contiguous(memory_format=LAYOUTS[layout])


def peers(crop, dtype, layout):
    """Return torchvision's arms, over a batch and image by image."""
    if v2 is None:
        return {}
    steps = [crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose(steps if dtype == torch.float32 else [*steps, v2.ToDtype(dtype)])

    def whole(x):
        return transform(x).contiguous(memory_format=LAYOUTS[layout])

    def each(x):
        return torch.stack([transform(image) for image in x]).contiguous(memory_format=LAYOUTS[layout])

    return {"torchvision batch": call(whole), "torchvision": call(each)}


def in_torch(size, padding, dtype, layout):
    """Return crop, flip, scale, normalize and cast of a whole batch in torch's ops."""

    def run(x):
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        x = torch.nn.functional.pad(x, [padding] * 4) if padding else x
        y = (x[:, :, 3 : 3 + size, 5 : 5 + size].flip(3).float() / 255 - mean) / std
        return y.to(dtype).contiguous(memory_format=LAYOUTS[layout])

    return run


def compare_transform(compare, op, n, side, size, dtype, layout, options, crop, torch_steps=None):
    transform = BatchTransform(size, **options, hflip=True, mean=MEAN, std=STD, dtype=dtype,
                               memory_format=LAYOUTS[layout], seed=0)  # fmt: skip
    arms = {"fastdl": call(transform), **peers(crop, dtype, layout)}
    if torch_steps is not None:
        arms |= {"torch": call(torch_steps), "compile": call(compiled(torch_steps))}
    elements = n * 3 * size * size
    compare(op=op, shape=(n, 3, side, side), dtype=dtype, layout=layout, operands=lambda: [images(n, side, layout)],
            arms=arms, bytes=elements * (1 + dtype.itemsize))  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_crop(compare, dtype, layout):
    """ImageNet: 256² to 224²."""
    n = cases(cpu=[16], cuda=[256])[0]
    compare_transform(compare, "crop", n, 256, 224, dtype, layout, {"crop": "random"}, v2 and v2.RandomCrop(224),
                      in_torch(224, 0, dtype, layout))  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resized_crop(compare, dtype, layout):
    """ImageNet training: a random part of 256² to 224², antialiased."""
    n = cases(cpu=[16], cuda=[256])[0]
    crop = v2 and v2.RandomResizedCrop(224, antialias=True)
    compare_transform(compare, "resized_crop", n, 256, 224, dtype, layout, {"crop": "resized"}, crop)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cifar(compare, dtype):
    """CIFAR: 32², padded by 4."""
    options = {"crop": "random", "padding": 4}
    compare_transform(compare, "cifar", 512, 32, 32, dtype, "contiguous", options, v2 and v2.RandomCrop(32, padding=4),
                      in_torch(32, 4, dtype, "contiguous"))  # fmt: skip
