"""Joint augmentation of an image and its annotations, as a function of a random number generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def __call__(
        self, parts: Mapping[str, Tensor], fill: Mapping[str, float | Sequence[float]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the augmented parts.

        Args:
            parts: the image and its annotations as torchvision's tv_tensors of one size.
            fill: the value for pixels outside the image, for each part that has pixels; 0 for a part not named.
            generator: the random numbers are drawn from it.
        """
        from torchvision.transforms.v2 import functional as F

        factor, down, right, mirror = torch.rand(4, generator=generator).tolist()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * factor
        (top, height, scaled_height, above, below), (left, width, scaled_width, before, after) = (
            _axis(length, target, factor, draw)
            for length, target, draw in zip(parts["image"].shape[-2:], self.size, (down, right), strict=True)
        )
        result = {}
        for name, part in parts.items():
            part = F.resize(F.crop(part, top, left, height, width), [scaled_height, scaled_width])
            if above or below or before or after:
                part = F.pad(part, [before, above, after, below], fill=fill.get(name, 0))
            result[name] = F.horizontal_flip(part) if self.flip and mirror < 0.5 else part
        return result


def _axis(length: int, target: int, factor: float, draw: float) -> tuple[int, int, int, int, int]:
    """Place a window along one axis of an image.

    Args:
        length: pixels of the image.
        target: pixels of the result.
        factor: factor by which the image is resized.
        draw: place of the window, from 0 to below 1.
    Returns:
        First pixel and number of pixels of the image inside the window, the number of pixels to which they are resized,
        and the number of pixels to be filled before and after them.
    """
    window = max(round(target / factor), 1)
    space = length - window
    offset = int(draw * (abs(space) + 1)) * (1 if space >= 0 else -1)
    first, last = max(offset, 0), min(offset + window, length)
    scaled = min(max(round((last - first) * target / window), 1), target)
    before = min(round((first - offset) * target / window), target - scaled)
    return first, last - first, scaled, before, target - scaled - before


@dataclass(frozen=True)
class RandomResize:
    """Resize to one of several sizes and random flip, the usual augmentation of detection.

    Args:
        sizes: lengths of the shorter side in pixels, of which one is drawn.
        longest: limit on the longer side in pixels; the image is made smaller where it would be exceeded.
        flip: whether half of the results are mirrored from left to right.
    """

    sizes: tuple[int, ...]
    longest: int
    flip: bool = True

    def __call__(
        self, parts: Mapping[str, Tensor], fill: Mapping[str, float | Sequence[float]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the augmented parts; see `RandomCrop`. Nothing is filled here."""
        from torchvision.transforms.v2 import functional as F

        draw, mirror = torch.rand(2, generator=generator).tolist()
        height, width = parts["image"].shape[-2:]
        factor = min(self.sizes[int(draw * len(self.sizes))] / min(height, width), self.longest / max(height, width))
        size = [max(round(height * factor), 1), max(round(width * factor), 1)]
        result = {}
        for name, part in parts.items():
            part = F.resize(part, size)
            result[name] = F.horizontal_flip(part) if self.flip and mirror < 0.5 else part
        return result
