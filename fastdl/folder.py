"""Decoding a folder of images into one array, with Pillow in threads."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fastdl.images import as_size

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"])


def decode_folder(
    path: str | Path, size: int | Sequence[int], *, mode: str = "RGB", threads: int | None = None, progress: bool = True
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    """Return images (N, h, w, C) uint8, labels (N,) int64 and the names of the classes.

    path: a folder with one subfolder a class, as torchvision's ImageFolder; images may lie deeper in it. Each image
    is turned upright, resized to cover `size`, and center cropped to it.

    Raises:
        FileNotFoundError: No folder, no class folders, or no images in them.
        ValueError: A file that cannot be decoded (the message names it), or a bad size or mode.
        ImportError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("ResidentDataset: decoding a folder needs Pillow: pip install 'fastdl[data]'") from error
    height, width = as_size("ResidentDataset", size)
    if mode not in ("RGB", "L"):
        raise ValueError(f"ResidentDataset: mode must be 'RGB' or 'L', got {mode!r}")
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"ResidentDataset: no folder {root}")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(file, label) for label, name in enumerate(classes) for file in _files(root / name)]
    empty = [name for label, name in enumerate(classes) if all(known != label for _, known in files)]
    if not files or empty:
        raise FileNotFoundError(
            f"ResidentDataset: {root} must hold one subfolder of images a class; "
            f"{'none in ' + ', '.join(empty) if empty else 'there are none'} ({', '.join(sorted(SUFFIXES))})"
        )
    images = np.empty((len(files), height, width, 3 if mode == "RGB" else 1), np.uint8)

    def decode(i: int) -> None:
        try:
            images[i] = _decode(files[i][0], height, width, mode)
        except Exception as error:
            raise ValueError(f"ResidentDataset: cannot decode {files[i][0]}: {error}") from error

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for _ in _with_progress(pool.map(decode, range(len(files))), len(files), progress):
            pass
    return images, np.array([label for _, label in files], np.int64), classes


def _files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _decode(file: Path, height: int, width: int, mode: str) -> np.ndarray[Any, Any]:
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.draft(mode, (width, height))  # JPEG: decode at the smallest scale that is large enough
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith("I;16"):  # which Pillow would saturate
            picture = Image.fromarray(np.rint(np.asarray(picture, np.uint16) / 257).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {picture.mode} have no scale of their own; save them with 8 or 16 bits")
        picture = ImageOps.fit(picture.convert(mode), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, -1)


def _with_progress(steps: Iterable[Any], total: int, progress: bool) -> Iterator[Any]:
    """Show a bar on a terminal, where rich is installed; elsewhere nothing."""
    if progress and sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import track
        except ImportError:
            yield from steps
            return
        yield from track(steps, "decoding images", total, console=Console(stderr=True), transient=True)
    else:
        yield from steps
