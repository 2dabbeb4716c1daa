"""The headers of image files: height, width, and whether torchvision's JPEG decoder reads the file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ickd_lib.data.pillow import pixels_of, require_few_pixels, size_and_orientation, size_of

FRAMES = {0xC0, 0xC1, 0xC2}  # markers of frames in baseline, extended and progressive JPEG
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment


class Header(NamedTuple):
    """What the header of an image file contains.

    height, width: size in pixels, upright.
    jpeg: whether it is a JPEG file of 8 bits in grey or in colour, which torchvision's decoder reads. All other files,
        such as those in CMYK and those that EXIF data turn, are read by Pillow.
    """

    height: int
    width: int
    jpeg: bool


def header_of(path: Path) -> Header:
    """Read the header of an image file.

    Raises:
        InputError: the file cannot be read, is not an image or has more pixels than Pillow's limit.
    """
    try:
        with open(path, "rb") as file:
            found = _frame(file)
    except OSError:
        found = None  # the message is Pillow's
    header = found or Header(*size_of(path), False)
    if found and found.height == 0:  # it has EXIF data, or is not readable by torchvision
        height, width, orientation = size_and_orientation(path)
        header = Header(height, width, found.jpeg and orientation == 1)
    require_few_pixels(path, header.height, header.width)
    return header


def _frame(file: BinaryIO) -> Header | None:
    """Return the header of a JPEG file; None if it is no such file.

    Height and width are 0 if it has EXIF data. Pillow reads a file whose orientation is in XMP data, which torchvision
    ignores.
    """
    if file.read(2) != b"\xff\xd8":
        return None
    turned, of_xmp = False, False
    while True:
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF:
            return None
        marker = start[1]
        if marker in ALONE or marker == 0xFF:
            file.seek(-2 if marker != 0xFF else -3, 1)
            continue
        length = int.from_bytes(start[2:], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = file.read(6)
            if len(frame) < 6:
                return None
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            known = marker in FRAMES and frame[0] == 8 and frame[5] in (1, 3) and height > 0 and width > 0
            known &= not of_xmp
            return Header(0, 0, known) if turned or not known else Header(height, width, True)
        if marker == 0xDA or length < 2:  # the image data begin without a frame
            return None
        body = length - 2
        if marker == 0xE1:
            start = file.read(min(body, 4))
            body -= len(start)
            turned |= start == b"Exif"
            if start == b"http":  # XMP
                rest = file.read(body)
                of_xmp, body = of_xmp or b"Orientation" in rest, body - len(rest)
        file.seek(body, 1)


def upright_pixels(path: Path, jpeg: bool) -> Tensor:
    """Read an image file at its own size, upright: uint8, shape [3, h, w].

    Args:
        path: the file.
        jpeg: see `Header`. If torchvision's decoder fails, or is not in this version of torchvision, Pillow reads it.
    Raises:
        InputError: the file cannot be read.
    """
    if jpeg and (decode := _decoder()):
        try:
            return decode(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
        except (RuntimeError, ValueError, OSError):  # Pillow's error names the file
            pass
    return pixels_of(path)


@cache
def _decoder() -> Callable[[Tensor], Tensor] | None:
    """Return torchvision's decoder of the bytes of a JPEG file; None where there is none.

    Its decoders are deprecated since torchvision 0.29. The import takes long, so it is left until a file is decoded.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    return partial(decode_jpeg, mode=ImageReadMode.RGB, apply_exif_orientation=True)
