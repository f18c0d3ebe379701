"""Compose: equal to one BatchTransform, refuses what cannot fuse."""

import pickle

import pytest
import torch

from fastdl.data import (
    BatchTransform,
    CenterCrop,
    Compose,
    FiveCrop,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    TenCrop,
    ToDtype,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
FLOAT = ToDtype(torch.float32, scale=True)


def images():
    return torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8)


FUSED = {
    "the usual": (
        [RandomCrop(16, padding=4), RandomHorizontalFlip(), FLOAT, Normalize(MEAN, STD)],
        {"size": 16, "padding": 4, "hflip": True, "mean": MEAN, "std": STD},
    ),
    "flip first": ([RandomHorizontalFlip(), RandomCrop((16, 8))], {"size": (16, 8), "hflip": True, "dtype": None}),
    "no cast": ([RandomCrop(16), Normalize(MEAN, STD)], {"size": 16, "mean": MEAN, "std": STD}),
    "to half": ([FLOAT, Normalize(MEAN, STD), ToDtype(torch.float16)], {"size": None, "crop": None, "mean": MEAN,
                                                                         "std": STD, "dtype": torch.float16}),
    "resized": (
        [RandomResizedCrop(16, (0.2, 1), interpolation="bilinear"), ToDtype(torch.bfloat16, scale=True)],
        {"size": 16, "crop": "resized", "scale": (0.2, 1), "dtype": torch.bfloat16},
    ),
    "edges": ([RandomCrop(16, (1, 2), padding_mode="edge")], {"size": 16, "padding": (1, 2), "padding_mode": "edge",
                                                               "dtype": None}),
    "center": ([CenterCrop([16, 8]), FLOAT], {"size": (16, 8), "crop": "center"}),
    "five": ([FiveCrop(16)], {"size": 16, "crop": "five", "dtype": None}),
    "ten": ([TenCrop(16), FLOAT, Normalize(0.5, 0.5)], {"size": 16, "crop": "ten", "mean": 0.5, "std": 0.5}),
    "never flips": ([RandomHorizontalFlip(0), CenterCrop(8)], {"size": 8, "crop": "center", "dtype": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_equals_one_transform(name):
    steps, options = FUSED[name]
    if name == "never flips":
        steps = steps[::-1]
    x = images()
    expected = BatchTransform(**options, seed=4)(x)
    output = Compose(steps, seed=4)(x)
    assert output.dtype == expected.dtype
    assert torch.equal(output, expected)


def test_pairs_state_layout_and_pickle():
    x, y = images(), torch.arange(6)
    t = Compose([RandomCrop(16)], memory_format=torch.channels_last)
    batch, labels = t((x, y))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert labels is y
    other = Compose([RandomCrop(16)])
    other.load_state_dict(t.state_dict())
    copy = pickle.loads(pickle.dumps(t))
    expected = t(x)
    assert torch.equal(other(x), expected)
    assert torch.equal(copy(x), expected)
    assert t(x.permute(0, 2, 3, 1).numpy(), [3, 1]).shape == (2, 3, 16, 16)
    _, params = Compose([RandomCrop(16)], return_params=True)(x)
    assert params["top"].shape == (6,)


REFUSED = {
    "empty": ([], "at least one transform"),
    "two crops": ([RandomCrop(16), CenterCrop(8)], "CenterCrop cannot fuse with the crop before it"),
    "two flips": ([RandomHorizontalFlip(), RandomHorizontalFlip()], "two RandomHorizontalFlip"),
    "two normalizations": ([Normalize(0.5, 0.5), Normalize(0.5, 0.5)], "two Normalize"),
    "padded after normalization": ([Normalize(0.5, 0.5), RandomCrop(8, padding=1)], "put Normalize after the crop"),
    "flip before five": ([RandomHorizontalFlip(), FiveCrop(8)], "put the flip after the crop"),
    "two casts": ([FLOAT, ToDtype(torch.float16, scale=True)], "keep the last"),
    "no scale": ([ToDtype(torch.float32)], "scale=True"),
    "dictionary of dtypes": ([ToDtype({torch.Tensor: torch.float32}, scale=True)], "one dtype"),
    "bytes": ([Normalize(0.5, 0.5), ToDtype(torch.uint8, scale=True)], "cannot fuse with a cast to uint8"),
    "fill": ([RandomCrop(8, fill=3)], "fill=3"),
    "pad if needed": ([RandomCrop(8, pad_if_needed=True)], "pad_if_needed"),
    "bicubic": ([RandomResizedCrop(8, interpolation="bicubic")], "antialiased bilinear"),
    "aliased": ([RandomResizedCrop(8, antialias=False)], "antialiased bilinear"),
    "vertical": ([TenCrop(8, vertical_flip=True)], "flips are horizontal"),
    "p": ([RandomHorizontalFlip(0.3)], "p must be 0.5"),
    "units": ([Normalize([123.0], [58.0])], "divide statistics"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    steps, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Compose(steps)


def test_refuses_strangers():
    with pytest.raises(TypeError, match=r"Linear cannot fuse; the transforms are those of fastdl\.data"):
        Compose([torch.nn.Linear(1, 1)])
    with pytest.raises(TypeError, match="a list of them, got RandomCrop"):
        Compose(RandomCrop(8))
    with pytest.raises(TypeError, match="boxes, masks and dictionaries"):
        Compose([RandomCrop(8)])({"image": images()})
