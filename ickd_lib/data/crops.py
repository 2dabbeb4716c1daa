"""The crops of one image: the views on which a network is trained, and the crop on which it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import views
from ickd_lib.data.joint import Geometry

VIEWS = 2**31  # range of the view numbers where each epoch draws new ones
ATTEMPTS = 10  # number of boxes that are drawn until one fits into the image, as in torchvision
KINDS = ("pad", "resized")


@dataclass(frozen=True)
class PadCrop:
    """A crop of the image's own size after padding, and a flip; the evaluation uses the whole image.

    Args:
        size: height and width of all images in pixels.
        pad, flip: see `views.crop_and_flip`.
    """

    size: tuple[int, int]
    pad: int
    flip: bool

    @property
    def count(self) -> int:
        """The number of views of an image."""
        return views.count(self.pad, self.flip)

    def view(self, image: Tensor, row: int, view: int) -> Tensor:
        """Return a view of an image, uint8 [3, H, W]: that of `views.crop_and_flip`, whatever the row."""
        at, number = torch.tensor([0]), torch.tensor([view])
        return views.crop_and_flip(image[None], at, number, pad=self.pad, flip=self.flip)[0]

    def whole(self, image: Tensor) -> Tensor:
        """Return the image without augmentation, uint8 [3, H, W]."""
        return image


@dataclass(frozen=True)
class ResizedCrop:
    """The usual crops of ImageNet (Szegedy et al. 2015, arXiv 1409.4842), as torchvision implements them.

    A view is a box of random area and aspect ratio at a random place, resized to a square and mirrored in half of the
    cases. Box and mirroring are a function of the image's row and the view number. For the evaluation, the shorter side
    is resized and the centre is cropped.

    Args:
        side: height and width of a crop in pixels.
        views: the number of view numbers from which each epoch draws; 0 draws from so many that each epoch has new
            views.
        scale: smallest and largest area of the box as a share of the image.
        ratio: smallest and largest width divided by height of the box.
        flip: whether half of the views are mirrored from left to right.
        centre: `side` divided by the shorter side in the evaluation.
    """

    side: int
    views: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    centre: float = 0.875

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop in pixels."""
        return self.side, self.side

    @property
    def count(self) -> int:
        """The number of views of an image."""
        return self.views or VIEWS

    def box(self, height: int, width: int, row: int, view: int) -> Geometry:
        """Return the geometry of a view of an image of this height and width."""
        generator = runtime.generator("resized crop", row, view)
        draws = torch.rand(2 * ATTEMPTS + 3, generator=generator, dtype=torch.float64).tolist()
        down, right, mirror = draws[-3:]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(ATTEMPTS):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[2 * attempt])
            aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                break
        else:  # the largest box in the middle of a very long or very high image
            w = width if width / height <= self.ratio[1] else round(height * self.ratio[1])
            h = height if width / height >= self.ratio[0] else round(width / self.ratio[0])
            top, left = (height - h) // 2, (width - w) // 2
        return Geometry(top, left, h, w, self.size, 0, 0, self.size, self.flip and mirror < 0.5)

    def view(self, image: Tensor, row: int, view: int) -> Tensor:
        """Return a view of an image, uint8 [3, h, w], as uint8 [3, side, side]."""
        return self.box(image.shape[1], image.shape[2], row, view).pixels(image, (0, 0, 0))

    def whole(self, image: Tensor) -> Tensor:
        """Return the centre crop of an image, uint8 [3, h, w], without augmentation, as uint8 [3, side, side]."""
        height, width = image.shape[1:]
        shorter = round(self.side / self.centre)
        size = (shorter, int(shorter * width / height)) if height <= width else (int(shorter * height / width), shorter)
        if (height, width) != size:
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        top, left = (round((length - self.side) / 2.0) for length in size)
        return image[:, top : top + self.side, left : left + self.side]
