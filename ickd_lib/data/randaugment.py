"""The operations of torchvision's RandAugment, each at strengths of its own for every image of a batch.

torchvision applies one operation at one strength to a whole tensor. Applied image by image, a batch would take
thousands of launches on a GPU. Here, the images that are given the same operation are changed together.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = 31  # number of strengths; the largest is 30
# The largest change that each operation makes; a shift is a share of the side.
GEOMETRIC = {"shear x": 0.3, "shear y": 0.3, "shift x": 150 / 331, "shift y": 150 / 331, "rotate": math.radians(30)}
COLOURS = {"brightness": 0.9, "colour": 0.9, "contrast": 0.9, "sharpness": 0.9}
OPERATIONS = ("identity", *GEOMETRIC, *COLOURS, "posterize", "solarize", "autocontrast", "equalize")


def drawn(pixels: Tensor, strength: Tensor) -> Tensor:
    """Apply an operation to each image, drawn with its sign from torch's global generator.

    Args:
        pixels: images, uint8, shape [B, 3, H, W].
        strength: strength of each operation, from 0 to 30, on the CPU, shape [B].
    Returns:
        Images of the same shape and type.
    """
    kinds = torch.randint(len(OPERATIONS), (len(pixels),), device="cpu")
    signs = 2 * torch.randint(2, (len(pixels),), device="cpu") - 1
    return applied(pixels, kinds, strength, signs)


def applied(pixels: Tensor, kinds: Tensor, strength: Tensor, signs: Tensor) -> Tensor:
    """Apply an operation to each image.

    Source: Cubuk et al. 2020 (arXiv 1909.13719), as `torchvision.transforms.v2.RandAugment` implements it. Colours
    differ by at most 1 of 255, and few pixels of a rotated or sheared image come from a neighbour.

    Args:
        pixels: images, uint8, shape [B, 3, H, W].
        kinds: positions in `OPERATIONS`, on the CPU, shape [B].
        strength: strengths from 0 to 30, on the CPU, shape [B].
        signs: 1 or -1, on the CPU, shape [B]; used by the operations that have a direction.
    Returns:
        Images of the same shape and type.
    """
    from torchvision.transforms.v2 import functional

    share, out = strength.double() / (STRENGTHS - 1), pixels.clone()
    largest = [{**GEOMETRIC, **COLOURS}.get(name, 1.0) for name in OPERATIONS]
    change = share * signs * torch.tensor(largest, dtype=torch.double)[kinds]
    device = pixels.device

    def column(values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return one value for each image, on the images' device, in the form [n, 1, 1, 1]."""
        return values.to(dtype).to(device, non_blocking=True)[:, None, None, None]

    def change_images(some: Tensor, name: str, at: Tensor) -> Tensor:
        """Return images `some` [n, 3, H, W], at the positions `at` [n], after an operation that moves no pixel."""
        if name == "posterize":
            bits = 8 - (share[at] * 4).round()
            return some & column(256 - 2 ** (8 - bits), torch.uint8)
        if name == "solarize":
            return torch.where(some >= column(255 * (1 - share[at]), torch.float), 255 - some, some)
        if name == "autocontrast":
            return functional.autocontrast(some)
        if name == "equalize":
            return functional.equalize(some)
        # The others move each pixel away from an image without brightness, colour, contrast or sharpness, or to it.
        if name == "brightness":
            without = torch.zeros_like(some)
        elif name == "sharpness":
            without = functional.adjust_sharpness(some, 0.0)
        else:
            without = functional.adjust_saturation(some, 0.0)
        without = without.float().mean((1, 2, 3), keepdim=True) if name == "contrast" else without.float()
        return (some + (some - without) * column(change[at], torch.float)).clamp(0, 255).byte()

    moved = torch.tensor([name in GEOMETRIC for name in OPERATIONS])[kinds]
    if len(at := moved.nonzero().squeeze(1)):
        places = at.to(device, non_blocking=True)
        matrices = _sources(kinds[at], change[at], *pixels.shape[2:])
        out[places] = _resampled(pixels[places], matrices.float().to(device, non_blocking=True))
    for kind, name in enumerate(OPERATIONS):
        if name not in ("identity", *GEOMETRIC) and len(at := (kinds == kind).nonzero().squeeze(1)):
            places = at.to(device, non_blocking=True)
            out[places] = change_images(pixels[places], name, at)
    return out


def _sources(kinds: Tensor, change: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [n, 2, 3] that map positions in the results, from the centre, to those in the originals."""
    matrices = torch.eye(2, 3, dtype=torch.double).repeat(len(kinds), 1, 1)
    shear_x, shear_y, shift_x, shift_y, rotate = (kinds == OPERATIONS.index(name) for name in GEOMETRIC)
    matrices[shear_x, 0, 1] = change[shear_x]
    matrices[shear_x, 0, 2] = change[shear_x] * height / 2
    matrices[shear_y, 1, 0] = change[shear_y]
    matrices[shear_y, 1, 2] = change[shear_y] * width / 2
    matrices[shift_x, 0, 2] = -(change[shift_x] * width).trunc()
    matrices[shift_y, 1, 2] = -(change[shift_y] * height).trunc()
    matrices[rotate, 0, 0] = matrices[rotate, 1, 1] = change[rotate].cos()
    matrices[rotate, 0, 1] = -change[rotate].sin()
    matrices[rotate, 1, 0] = change[rotate].sin()
    return matrices


def _resampled(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel from the nearest one at its source, black outside: uint8, [n, 3, H, W]."""
    height, width = pixels.shape[2:]
    x = torch.arange(width, device=pixels.device) - (width - 1) / 2
    y = torch.arange(height, device=pixels.device) - (height - 1) / 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], -1)
    half = torch.tensor([width / 2, height / 2]).to(pixels.device, non_blocking=True)
    grid = torch.einsum("hwk,nck->nhwc", places, matrices) / half
    return F.grid_sample(pixels.float(), grid, mode="nearest", align_corners=False).round_().byte()
