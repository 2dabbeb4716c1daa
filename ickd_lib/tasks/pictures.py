"""Pictures of regions and boxes: the part of the image around them, with their outline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64  # height and width of a picture
MARGIN = 0.25  # part of the sides of the region or box that is shown around it
COLOUR = (255, 217, 0)  # of the outline
DIMMED = 0.35  # brightness of what lies outside a region


def outlined(image: Tensor, mask: Tensor) -> Tensor:
    """Return a picture of a region: its surroundings, darker outside of it.

    Args:
        image: floats in [0, 1], shape [3, H, W].
        mask: True for the pixels of the region, shape [H, W].
    Returns:
        uint8, shape [3, SIDE, SIDE]; black if the region has no pixel.
    """
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return torch.zeros(3, SIDE, SIDE, dtype=torch.uint8, device=image.device)
    box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
    return _enlarged(torch.where(mask, image, DIMMED * image), box)


def framed(image: Tensor, box: Tensor) -> Tensor:
    """Return a picture of a box: its surroundings, with a frame.

    Args:
        image: floats in [0, 1], shape [3, H, W].
        box: left, top, right and bottom edge in pixels, shape [4].
    Returns:
        uint8, shape [3, SIDE, SIDE].
    """
    picture, (left, top, scale) = _enlarged(image, box), _window(image, box)
    edges = ((box - torch.stack([left, top, left, top])) * SIDE / scale).round().long().clamp(0, SIDE - 1)
    x0, y0, x1, y1 = edges.tolist()
    colour = torch.tensor(COLOUR, dtype=torch.uint8, device=image.device)
    picture[:, y0 : y1 + 1, [x0, x1]] = colour[:, None, None]
    picture[:, [y0, y1], x0 : x1 + 1] = colour[:, None, None]
    return picture


def _window(image: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return left edge, top edge and side of the square around a box, in pixels; it may reach beyond the image."""
    side = (1 + 2 * MARGIN) * (box[2:] - box[:2]).max()
    left, top = (box[:2] + box[2:] - side) / 2
    return left, top, side


def _enlarged(image: Tensor, box: Tensor) -> Tensor:
    """Return the square around a box, resized to SIDE and grey where it reaches beyond the image, uint8."""
    left, top, side = _window(image, box)
    centres = (torch.arange(SIDE, device=image.device) + 0.5) * side / SIDE
    x, y = 2 * (left + centres) / image.shape[2] - 1, 2 * (top + centres) / image.shape[1] - 1
    grid = torch.stack([x.expand(SIDE, SIDE), y[:, None].expand(SIDE, SIDE)], 2)[None]
    around = F.grid_sample(image[None] - 0.5, grid, align_corners=False)[0]
    return (255 * (around + 0.5)).round().clamp(0, 255).to(torch.uint8)
