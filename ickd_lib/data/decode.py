"""Image files as uint8 RGB tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ickd_lib.runtime import InputError


def image_files(folder: Path) -> list[Path]:
    """Return the files under `folder` with an image's file name extension, sorted; hidden files are left out."""
    from PIL import Image

    extensions = Image.registered_extensions()
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and p.is_file() and p.name[0] != ".")


def decode(files: Mapping[str, Sequence[Path]], image_size: int = 0) -> dict[str, Tensor]:
    """Read image files of one size, or resize them to one size.

    Args:
        files: the files of each split.
        image_size: height and width in pixels to which the images are resized and cropped at the centre. With 0 they
            are not resized, and all must have the size of the first one.
    Returns:
        The pixels of each split: uint8, shape [N, 3, H, W].
    Raises:
        InputError: a file cannot be read or has another size.
    """
    pixels: dict[str, Tensor] = {}
    size: tuple[int, ...] | None = None
    with ThreadPoolExecutor() as pool:
        for split, paths in files.items():
            arrays = []
            results = pool.map(lambda path: _read(path, image_size), paths)
            progress = tqdm(results, f"reading {split}", len(paths), leave=False, unit="image")
            for path, array in zip(paths, progress, strict=True):
                size = size or array.shape
                if array.shape != size:
                    raise InputError(
                        f"{path} has {array.shape[1]}×{array.shape[0]} pixels, but the first image has "
                        f"{size[1]}×{size[0]}; give an image_size to resize all of them"
                    )
                arrays.append(torch.from_numpy(array.copy()))
            pixels[split] = torch.stack(arrays).permute(0, 3, 1, 2)
    return pixels


def _read(path: Path, image_size: int) -> np.ndarray:
    """One image as uint8 [H, W, 3], upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
            if image_size:
                image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many types; each means that this file is unreadable.
        raise InputError(f"{path} cannot be read ({error}); repair or remove it") from None
