"""Augmentation by view number: the random crop and flip of an image as a function of one whole number.

A view number reproduces an augmentation exactly, so that a teacher's outputs for it can be stored and found again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def count(pad: int, flip: bool) -> int:
    """Return the number of views of an image: (2 pad + 1)² positions of the crop, times two with flips."""
    return (2 * pad + 1) ** 2 * (1 + flip)


def crop_and_flip(images: Tensor, rows: Tensor, view: Tensor, *, pad: int, flip: bool) -> Tensor:
    """Return the given views of the given images.

    An image is padded with `pad` zeros on every side, cropped to its original size at an offset of `down` and `right`
    pixels, each from 0 to 2 pad, and mirrored from left to right where `mirrored` is 1. The view number is
    (down · (2 pad + 1) + right) · 2 + mirrored; without flips it is down · (2 pad + 1) + right.

    Args:
        images: uint8, shape [N, 3, H, W].
        rows: position of each requested image, shape [B].
        view: view number of each requested image, from 0 to `count(pad, flip)` - 1, shape [B].
        pad: zeros added on every side.
        flip: whether half of the views are mirrored.
    Returns:
        uint8, shape [B, 3, H, W].
    """
    height, width = images.shape[2:]
    across = 2 * pad + 1
    offset, mirrored = (view // 2, view % 2) if flip else (view, torch.zeros_like(view))
    x = torch.arange(width, device=rows.device)
    columns = (offset % across)[:, None] + torch.where(mirrored[:, None] == 1, x.flip(0), x)
    lines = (offset // across)[:, None] + torch.arange(height, device=rows.device)
    # Channels come last here: with the images' memory format, indexing then copies whole pixels.
    padded = F.pad(images.permute(0, 2, 3, 1)[rows], (0, 0, pad, pad, pad, pad))
    each = torch.arange(len(rows), device=rows.device)[:, None, None]
    return padded[each, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
