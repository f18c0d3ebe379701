"""A gallery of augmentation: the one, two and ten images that a network is shown of a photograph.

python -m fastdl.gallery [PATH]      default: gallery.png
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdl.transform import BatchTransform

SIDE, CROP = 224, 176


def sample_photographs() -> np.ndarray[Any, Any]:
    """Return scikit-image's astronaut, cat and coffee, (3, SIDE, SIDE, 3) uint8."""
    from PIL import Image, ImageOps
    from skimage import data

    named: Any = data
    photographs = [Image.fromarray(getattr(named, name)()) for name in ("astronaut", "chelsea", "coffee")]
    return np.stack([np.asarray(ImageOps.fit(p, (SIDE, SIDE), Image.Resampling.LANCZOS)) for p in photographs])


def draw(path: str | Path) -> Path:
    """Draw the gallery as one PNG: for each photograph the image and its mirror image, ten crops, and random ones."""
    from matplotlib.figure import Figure

    photographs = sample_photographs()
    keep: dict[str, Any] = {"dtype": torch.uint8}
    ten = BatchTransform(CROP, crop="ten", **keep)(photographs)
    random = BatchTransform(CROP, padding=24, hflip=True, seed=1, padding_mode="reflect", **keep)
    resized = BatchTransform(CROP, crop="resized", hflip=True, seed=1, **keep)
    many = np.repeat(photographs, 5, axis=0)
    drawn = torch.cat([random(many).unflatten(0, (-1, 5)), resized(many).unflatten(0, (-1, 5))], dim=1)

    figure = Figure(figsize=(22, 10), layout="constrained")
    bands: Any = figure.subfigures(3, 1)
    for i, band in enumerate(bands):
        images = [photographs[i], photographs[i][:, ::-1]]
        rows = [ten[i].permute(0, 2, 3, 1).numpy(), drawn[i].permute(0, 2, 3, 1).numpy()]
        grid = band.add_gridspec(2, 14)
        for j, (image, title) in enumerate(zip(images, ("1 image", "2: and its mirror image"))):
            _show(band.add_subplot(grid[:, 2 * j : 2 * j + 2]), image, title)
        titles = [
            ["10: corners, center and the same of the mirror image"],
            ["random crops and flips, padded by reflection"],
        ]
        titles[1] += ["", "", "", "", "random areas and shapes, resized"]
        for r in range(2):
            for j in range(10):
                title = titles[r][j] if j < len(titles[r]) else ""
                _show(band.add_subplot(grid[r, 4 + j]), rows[r][j], title)
    path = Path(path)
    figure.savefig(path, dpi=80)
    return path


def _show(axes: Any, image: np.ndarray[Any, Any], title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=9, loc="left").set_in_layout(False)
    axes.set_axis_off()


if __name__ == "__main__":
    print(f"picture: {draw(sys.argv[1] if len(sys.argv) > 1 else 'gallery.png')}")
