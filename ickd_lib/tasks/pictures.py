"""Pictures of regions and boxes: their outline, in the part of the image around them or in the whole image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64  # height and width of a crop
WHOLE = 220  # longer side of a picture of a whole image
MARGIN = 0.25  # what a crop shows on each side of a region or box, as a share of the longer side of it
LEAST = 16  # smallest side, in pixels, of the part of an image that a crop shows
LINE = (255, 217, 0)  # colour of the outline; a black line between it and the region makes it visible on any image
DIMMED = 0.4  # factor of the brightness outside a region
GREY = 128  # level of the parts of a crop that lie outside the image


def crop(image: Tensor, mask: Tensor, *, dim: bool) -> Tensor:
    """Return a picture of a region or box and its surroundings.

    Args:
        image: uint8, shape [3, H, W].
        mask: True for the pixels of the region or box, shape [H, W].
        dim: whether everything outside is made darker, as for a region; a box only has a frame.
    Returns:
        uint8, shape [3, SIDE, SIDE]; black if the mask has no pixel.
    """
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return torch.zeros(3, SIDE, SIDE, dtype=torch.uint8, device=image.device)
    top, bottom, left, right = int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1
    height, width = mask.shape
    side = max(LEAST, round((1 + 2 * MARGIN) * max(bottom - top, right - left)))
    side = min(side, max(height, width))
    left, top = _start(left, right, side, width), _start(top, bottom, side, height)
    edges = (-left, left + side - width, -top, top + side - height)  # negative numbers cut off
    return _drawn(F.pad(image, edges, value=GREY), F.pad(mask, edges, value=False), (SIDE, SIDE), dim)


def crops(samples: Sequence[tuple[Tensor, Tensor]], *, dim: bool) -> Tensor:
    """Return the pictures of some samples, each an image and a mask: uint8, shape [n, 3, SIDE, SIDE]; see `crop`."""
    found = [crop(image, mask, dim=dim) for image, mask in samples]
    return torch.stack(found) if found else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)


def whole(image: Tensor, mask: Tensor, *, dim: bool) -> Tensor:
    """Return a picture of a whole image with the outline of a region or box; the arguments are those of `crop`.

    Returns:
        uint8, shape [3, h, w], in the proportions of the image; the longer side is WHOLE.
    """
    scale = WHOLE / max(mask.shape)
    height, width = (max(1, round(scale * side)) for side in mask.shape)
    return _drawn(image, mask, (height, width), dim)


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """Return the pixels of a box, at least one, bool, shape [height, width].

    Args:
        box: left, top, right and bottom edge in pixels, shape [4].
        height, width: size of the image.
    """
    left, top, right, bottom = box.round().long().tolist()
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    mask = torch.zeros(height, width, dtype=torch.bool, device=box.device)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def _start(low: int, high: int, side: int, length: int) -> int:
    """Return the start of a window of a side with `low` to `high` in its middle; if possible it is inside the image."""
    return (length - side) // 2 if side >= length else min(max((low + high - side) // 2, 0), length - side)


def _drawn(image: Tensor, mask: Tensor, size: tuple[int, int], dim: bool) -> Tensor:
    """Resize an image to (height, width), and draw an outline two pixels wide around the pixels of a mask."""
    pixels, share = (
        F.interpolate(one[None].float(), size, mode="bilinear", antialias=True)[0] for one in (image, mask[None])
    )
    inside = (
        share[0] > 0.5 * share.max()
    )  # pixels that the mask covers by more than half; for a very thin mask, by half of its largest cover
    if dim:
        pixels = torch.where(inside, pixels, DIMMED * pixels)
    elif min(size) > 4:
        inside = F.pad(inside[2:-2, 2:-2], (2, 2, 2, 2))  # all four sides of a frame are visible
    around, further = (F.max_pool2d(inside[None].float(), 2 * n + 1, 1, n)[0] > 0 for n in (1, 2))
    pixels[:, further & ~around] = pixels.new_tensor(LINE)[:, None]
    pixels[:, around & ~inside] = 0
    return pixels.round().clamp(0, 255).to(torch.uint8)
