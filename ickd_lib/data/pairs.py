"""Pixels and labels of a data set of pairs, such as those of torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ickd_lib.data.pillow import fitted, to_rgb
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from PIL import Image


def stacked(dataset: Sequence[Any], image_size: int = 0) -> tuple[Tensor, Tensor]:
    """Read all images and labels of a data set of pairs, such as one of torchvision, for `DataSet.splits`.

    Args:
        dataset: has a length, and an item (image, label) for each number below it. An image is a Pillow image; or a
            tensor, [H, W], [1, H, W] or [3, H, W]; or a NumPy array, [H, W], [H, W, 1] or [H, W, 3]. The values of
            tensors and arrays are uint8, or floating-point numbers from 0 to 1. Its transforms must not be random and
            must not normalise: the training augments and normalises the images.
        image_size: height and width in pixels to which the images are resized and cropped at the centre. With 0 they
            are not resized, and all must have the size of the first one.
    Returns:
        Pixels, uint8 [N, 3, H, W], and labels, int64 [N].
    Raises:
        InputError: an item is no such pair, a value is out of range, or images differ in size.
    """
    pixels: list[Tensor] = []
    labels: list[int] = []
    for i in range(len(dataset)):
        place = f"item {i} of {type(dataset).__name__}"
        try:
            image, label = dataset[i]
            labels.append(int(label))
        except (TypeError, ValueError) as error:
            raise InputError(f"{place} is not a pair of an image and the number of its class: {error}") from None
        one = to_rgb(_as_pillow(image, place), None, place)[0]
        array = np.array(fitted(one, image_size) if image_size else one)
        if pixels and array.shape[:2] != pixels[0].shape[:2]:
            first, other = ("×".join(map(str, reversed(x.shape[:2]))) for x in (pixels[0], array))
            raise InputError(f"{place} has {other} pixels, but the first image has {first}; give an image_size")
        pixels.append(torch.from_numpy(array))
    if not pixels:
        raise InputError(f"{type(dataset).__name__} has no items; give a data set with images")
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _as_pillow(image: Any, place: str) -> Image.Image:
    """Return an image as one of Pillow; `place` names it in errors."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        what = f"an image of shape {list(image.shape)}" if hasattr(image, "shape") else f"a {type(image).__name__}"
        raise InputError(
            f"{place} has {what}; expected a Pillow image, a tensor [H, W], [1, H, W] or [3, H, W], or an array "
            "with the channels last"
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise InputError(
                f"{place} has values from {low:g} to {high:g}; expected 0 to 1; leave out transforms that normalise"
            )
        array = np.rint(255 * array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{place} has values of type {array.dtype}; expected uint8, or floating-point from 0 to 1")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
