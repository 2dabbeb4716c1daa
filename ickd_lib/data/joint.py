"""Joint augmentation of an image and its annotations, as a function of a random number generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Geometry(NamedTuple):
    """How an augmentation moves the pixels of one image, and with them its masks and boxes.

    A window of the image is resized and placed in a frame, and the frame may be mirrored.

    top, left, height, width: the window, in pixels of the image.
    resized: height and width of the window after it is resized.
    above, before: rows of the frame above the window, and columns before it.
    size: height and width of the frame.
    mirrored: whether left and right change places.
    """

    top: int
    left: int
    height: int
    width: int
    resized: tuple[int, int]
    above: int
    before: int
    size: tuple[int, int]
    mirrored: bool

    def pixels(self, image: Tensor, fill: Sequence[int]) -> Tensor:
        """Return the image in the frame, interpolated with antialiasing: uint8, shape [3, *size].

        Args:
            image: uint8, shape [3, h, w].
            fill: colour of the frame outside the window, three numbers from 0 to 255.
        """
        window = self._window(image)
        if window.shape[1:] != self.resized:
            # On a GPU, torch interpolates only floats.
            values = window.float() if window.is_cuda else window
            values = F.interpolate(values[None], self.resized, mode="bilinear", antialias=True)[0]
            window = values.round().to(torch.uint8) if window.is_cuda else values
        return self._framed(window, fill)

    def labels(self, mask: Tensor, fill: int) -> Tensor:
        """Return a mask in the frame, with the value of the nearest pixel: shape [..., *size].

        Args:
            mask: uint8 or bool, shape [..., h, w].
            fill: value of the frame outside the window.
        """
        window = self._window(mask)
        if window.shape[-2:] != self.resized:
            # torch has this interpolation only for bytes and floats, and only with a dimension of channels.
            values = window.reshape(math.prod(window.shape[:-2]), 1, *window.shape[-2:]).to(torch.uint8)
            values = F.interpolate(values, self.resized, mode="nearest-exact")
            window = values.view(*window.shape[:-2], *self.resized).to(mask.dtype)
        return self._framed(window, fill)

    def _window(self, pixels: Tensor) -> Tensor:
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def _framed(self, window: Tensor, fill: int | Sequence[int]) -> Tensor:
        frame = window
        if window.shape[-2:] != self.size:
            # A GPU is waited for where a value is copied to it, so that is done only for images that need it.
            colour = window.new_tensor(fill)[..., None, None]
            frame = colour.expand(*window.shape[:-2], *self.size).clone()
            height, width = self.resized
            frame[..., self.above : self.above + height, self.before : self.before + width] = window
        return frame.flip(-1) if self.mirrored else frame


def moved(boxes: Tensor, image: Tensor, geometries: Sequence[Geometry]) -> Tensor:
    """Return boxes in the frames of their images, cut off at the borders of the windows: float32, shape [M, 4].

    Args:
        boxes: left, top, right and bottom edges in pixels of the images, float32, shape [M, 4].
        image: position in `geometries` of each box's image, int64, shape [M].
        geometries: the geometry of each image.
    """
    rows = [
        (g.left, g.top, g.resized[1] / g.width, g.resized[0] / g.height, *g.resized[::-1], g.before, g.above, g.size[1])
        for g in geometries
    ]
    corner, factor, extent, start, width = torch.tensor(rows).to(boxes)[image, None].split((2, 2, 2, 2, 1), dim=2)
    placed = torch.minimum(((boxes.view(-1, 2, 2) - corner) * factor).clamp(min=0), extent) + start
    x, y = placed.unbind(2)
    mirrored = torch.tensor([g.mirrored for g in geometries], device=boxes.device)[image, None]
    return torch.stack([torch.where(mirrored, width[..., 0] - x.flip(1), x), y], dim=2).flatten(1)


def enlargement(height: int, width: int, shorter: int) -> Geometry:
    """Return the geometry that resizes a whole image so that its shorter side has `shorter` pixels."""
    factor = shorter / min(height, width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    return Geometry(0, 0, height, width, size, 0, 0, size, False)


@dataclass(frozen=True)
class RandomCrop:
    """Random scale, random crop of one size and random flip, the usual augmentation of segmentation.

    A window is drawn in the image and resized to `size`, which equals a crop of the resized image and costs less. Where
    the window is larger than the image, the image lies at a random place in it and the rest is filled.

    Args:
        size: height and width of the result in pixels.
        scale: smallest and largest factor by which the image is resized; the factor is drawn uniformly between them.
        flip: whether half of the results are mirrored from left to right.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True

    def draw(self, height: int, width: int, generator: torch.Generator) -> Geometry:
        """Return a random geometry for an image of this height and width."""
        factor, down, right, mirror = torch.rand(4, generator=generator).tolist()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * factor
        top, inner_height, scaled_height, above = _axis(height, self.size[0], factor, down)
        left, inner_width, scaled_width, before = _axis(width, self.size[1], factor, right)
        resized = scaled_height, scaled_width
        mirrored = self.flip and mirror < 0.5
        return Geometry(top, left, inner_height, inner_width, resized, above, before, self.size, mirrored)


def _axis(length: int, target: int, factor: float, draw: float) -> tuple[int, int, int, int]:
    """Place a window along one axis of an image.

    Args:
        length: pixels of the image.
        target: pixels of the result.
        factor: factor by which the image is resized.
        draw: place of the window, from 0 to below 1.
    Returns:
        First pixel and number of pixels of the image inside the window, the number of pixels to which they are resized,
        and the number of pixels to be filled before them.
    """
    window = max(round(target / factor), 1)
    space = length - window
    offset = int(draw * (abs(space) + 1)) * (1 if space >= 0 else -1)
    first, last = max(offset, 0), min(offset + window, length)
    scaled = min(max(round((last - first) * target / window), 1), target)
    return first, last - first, scaled, min(round((first - offset) * target / window), target - scaled)


@dataclass(frozen=True)
class RandomResize:
    """Resize to one of several sizes and random flip, the usual augmentation of detection.

    Args:
        sizes: lengths of the shorter side in pixels, of which one is drawn.
        longest: largest length of the longer side in pixels; where it would be exceeded, both sides become shorter.
        flip: whether half of the results are mirrored from left to right.
    """

    sizes: tuple[int, ...]
    longest: int
    flip: bool = True

    def draw(self, height: int, width: int, generator: torch.Generator) -> Geometry:
        """Return a random geometry for an image of this height and width, without fill."""
        draw, mirror = torch.rand(2, generator=generator).tolist()
        size = self.resized(height, width, self.sizes[int(draw * len(self.sizes))])
        return Geometry(0, 0, height, width, size, 0, 0, size, self.flip and mirror < 0.5)

    def resized(self, height: int, width: int, shorter: int) -> tuple[int, int]:
        """Return height and width of an image after its shorter side is resized to `shorter`, limited by `longest`."""
        factor = min(shorter / min(height, width), self.longest / max(height, width))
        return max(round(height * factor), 1), max(round(width * factor), 1)
