"""Image files as uint8 RGB tensors.

Pillow's own conversion to RGB clips 16-bit and floating-point images to 8 bits and drops transparency. Here the values
are scaled and transparent pixels are shown on white, and a warning reports how many files were converted.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ickd_lib import runtime
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from PIL import Image

SIXTEEN_BITS = "16 bits a channel, divided by 257"
UPPER_BITS = "16 bits in each of several channels, of which Pillow reads the upper 8"
FLOATING_POINT = "floating-point values, multiplied by 255"
EXIF = frozenset({"exif", "xmp", "XML:com.adobe.xmp"})  # where Pillow keeps what `getexif` reads
ORIENTATION = 0x0112  # EXIF tag; its values 5 to 8 exchange height and width
TRANSPARENCY = "transparent pixels, composited on white"


def image_files(folder: Path) -> list[Path]:
    """Return the files under `folder` with an image's file name extension, sorted, without hidden files and folders."""
    from PIL import Image

    extensions = Image.registered_extensions()
    if not folder.is_dir():
        return []
    found = (Path(entry.path) for _, entries in walked(str(folder)) for entry in entries)
    return sorted(path for path in found if path.suffix.lower() in extensions)


def walked(folder: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield the files in a folder and in all folders below it, without hidden files and folders.

    Links are followed, but not to a folder that contains the link.

    Returns:
        For each folder, its path relative to `folder`, with "/" and "" for `folder` itself, and its files in no order.
    """
    real = os.path.realpath(folder)
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", real, (real,))]
    while waiting:
        below, real, around = waiting.pop()
        files = []
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if not entry.is_dir():
                    files.append(entry)
                    continue
                target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                if target not in around and not f"{real}{os.sep}".startswith(f"{target}{os.sep}"):
                    waiting.append((f"{below}/{entry.name}" if below else entry.name, target, (*around, target)))
        yield below, files


def pixels_of_splits(
    files: Mapping[str, Sequence[Path]], image_size: int = 0, failed: dict[str, list[int]] | None = None
) -> dict[str, Tensor]:
    """Read image files of one size, or resize them to one size.

    One warning names the first file of each kind that was converted: 16-bit, floating-point, transparent.

    Args:
        files: the files of each split.
        image_size: height and width in pixels to which the images are resized and cropped at the centre. With 0 they
            are not resized, and all must have the size of the first one.
        failed: if given, files that cannot be read are no error. Their pixels are 0, and their positions in each split
            are written here.
    Returns:
        The pixels of each split: uint8, shape [N, 3, H, W].
    Raises:
        InputError: a file cannot be read or has values out of range, more pixels than Pillow's limit or another size.
    """
    from PIL import Image

    pixels: dict[str, Tensor] = {}
    size: tuple[int, ...] | None = None
    converted: dict[str, list[Path]] = {}
    # `_read` raises an error where Pillow only warns. The filter is set here, because threads share it.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for split, paths in files.items():
            arrays: list[Tensor | None] = []
            results = pool.map(partial(_attempt, image_size, failed is not None), paths)
            progress = tqdm(results, f"reading {split}", len(paths), leave=False, unit="image", file=runtime.stream())
            for path, (array, conversions) in zip(paths, progress, strict=True):
                if array is None:
                    arrays.append(None)
                    continue
                size = size or array.shape
                if array.shape != size:
                    pool.shutdown(cancel_futures=True)  # otherwise all other files would be read before the error
                    raise InputError(
                        f"{path} has {array.shape[1]}×{array.shape[0]} pixels, but the first image has "
                        f"{size[1]}×{size[0]}; give an image_size (--image-size) or crop='resized' (--crop resized) "
                        "to resize all of them"
                    )
                arrays.append(torch.from_numpy(array.copy()))
                for conversion in conversions:
                    converted.setdefault(conversion, []).append(path)
            if failed is not None:
                failed[split] = [i for i, one in enumerate(arrays) if one is None]
            black = torch.zeros(size or (1, 1, 3), dtype=torch.uint8)
            pixels[split] = torch.stack([black if one is None else one for one in arrays]).permute(0, 3, 1, 2)
    if converted:
        parts = [f"{len(paths)} with {conversion} (first: {paths[0]})" for conversion, paths in converted.items()]
        warnings.warn(f"converted images to 8-bit RGB: {'; '.join(parts)}", stacklevel=2)
    return pixels


def pixels_of(path: Path, image_size: int = 0) -> Tensor:
    """Read one image file: uint8, shape [3, H, W].

    For each kind of conversion, a note that names the first file is printed once.

    Args:
        path: the file.
        image_size: as for `pixels_of_splits`; with 0 the image keeps its own size.
    Raises:
        InputError: as for `pixels_of_splits`.
    """
    array, conversions = _read(path, image_size)
    for conversion in conversions:
        runtime.notice(f"images are converted to 8-bit RGB: {conversion} (first: {path})", once=conversion)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, upright, from its header.

    Raises:
        InputError: the file does not exist or is not an image.
    """
    return size_and_orientation(path)[:2]


def size_and_orientation(path: Path) -> tuple[int, int, int]:
    """Return what `size_of` returns, and the EXIF orientation, which is 1 if the image is stored upright."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            turned = 1 if EXIF.isdisjoint(file.info) else file.getexif().get(ORIENTATION, 1)
            return (file.width, file.height, turned) if turned in (5, 6, 7, 8) else (file.height, file.width, turned)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}); repair or remove it") from None


def _attempt(image_size: int, tolerant: bool, path: Path) -> tuple[np.ndarray | None, list[str]]:
    """Return what `_read` returns; None as the array of a file that cannot be read, if that is no error."""
    try:
        return _read(path, image_size)
    except InputError:
        if tolerant:
            return None, []
        raise


def _read(path: Path, image_size: int) -> tuple[np.ndarray, list[str]]:
    """Read one image as uint8 [H, W, 3], upright, and return it with the conversions that were applied."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:  # reads the header; the pixels are decoded later
            require_few_pixels(path, file.height, file.width)
            upper_bits = not file.mode.startswith("I") and ";16" in str(file.tile[:1])  # how Pillow will decode it
            image, conversions = to_rgb(ImageOps.exif_transpose(file), file.format, path)
            conversions += [UPPER_BITS] * upper_bits
            if image_size:
                image = fitted(image, image_size)
            return np.asarray(image), conversions
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        # Above twice the limit Pillow raises this error, which contains the number of pixels in its message only.
        number = re.search(r"\d+", str(error))
        raise _too_large(path, f"{number.group() if number else 'too many'} pixels", Image.MAX_IMAGE_PIXELS) from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # Pillow's decoders raise many types; each means that this file is unreadable.
        raise InputError(f"{path} cannot be read ({error}); repair or remove it") from None


def require_few_pixels(path: Path, height: int, width: int) -> None:
    """Raise InputError if an image has more pixels than Pillow's limit against decompression bombs."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _too_large(path, f"{width}×{height} pixels", limit)


def _too_large(path: Path, size: str, limit: int | None) -> InputError:
    return InputError(
        f"{path} has {size}, more than Pillow's limit of {limit} against decompression bombs; make the image smaller, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def fitted(image: Image.Image, size: int) -> Image.Image:
    """Return an image resized to height and width `size`, and cropped at the centre where its shape is another."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def to_rgb(image: Image.Image, file_format: str | None, path: Path | str) -> tuple[Image.Image, list[str]]:
    """Convert an image to mode RGB with 8 bits a channel, and return it with the conversions that were applied.

    Args:
        image: a decoded image in any mode.
        file_format: Pillow's name of the file's format.
        path: the file, or another name of the image, for error messages.
    """
    from PIL import Image

    conversions = []
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise InputError(f"{path} has floating-point values from {low:g} to {high:g}; expected 0 to 1; rescale it")
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
        conversions.append(FLOATING_POINT)
    elif image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise InputError(f"{path} has values from {low} to {high}; expected 8 or 16 bits, 0 to 65535; rescale it")
        # Mode I has 32 bits. PNG and PPM files in this mode contain 16 bits; in other files the values show the depth.
        if image.mode != "I" or file_format in ("PNG", "PPM") or high > 255:
            eight_bits = (values + 128) // 257  # rounded; 257 = 65535 / 255
            conversions.append(SIXTEEN_BITS)
        else:
            eight_bits = values
        transparent_value = image.info.get("transparency")
        image = Image.fromarray(eight_bits.astype(np.uint8))
        if isinstance(transparent_value, int):
            image.putalpha(Image.fromarray(np.where(values == transparent_value, 0, 255).astype(np.uint8)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            conversions.append(TRANSPARENCY)
    return image.convert("RGB"), conversions
