"""Images of one's own as queries: read from a file, and brought to the size of a data set's images."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ickd_lib.data import Images
from ickd_lib.data.pillow import pixels_of
from ickd_lib.explore.samples import SampleSet
from ickd_lib.runtime import InputError


def own_image(image: str | Path | bytes, like: Images, *, name: str = "") -> SampleSet:
    """Read one image and bring it to the size of other images. Its class is unknown, so its label is -1.

    The image is scaled so that it covers that size, and cropped at the centre.

    Args:
        image: path of an image file, or its content.
        like: images whose size, classes and normalisation it takes.
        name: name of the file, where `image` is its content.
    Returns:
        A set of one sample.
    Raises:
        InputError: the file does not exist or is not an image.
    """
    if isinstance(image, bytes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name or "image")
            path.write_bytes(image)
            return own_image(path, like)
    path = Path(image).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path}; write the path of an image file")
    pixels = pixels_of(path)[None].float()
    (height, width), (h, w) = like.size, pixels.shape[2:]
    scale = max(height / h, width / w)
    size = (max(height, round(scale * h)), max(width, round(scale * w)))
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = pixels[..., top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)
    device = like.labels.device
    one = Images(
        pixels.to(device),
        torch.tensor([-1], device=device),
        torch.tensor([0], device=device),
        like.classes,
        like.mean,
        like.std,
        pad=0,
        flip=False,
        name="own/image",
        superclasses=like.superclasses,
        superclass_of=like.superclass_of,
    )
    return SampleSet(replace(one, files=(path.name,)), numbered=False)
