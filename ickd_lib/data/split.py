"""What all splits of images have in common, whether an image has one label, a class mask or objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor

from ickd_lib.data.objects import SplitObjects
from ickd_lib.data.sequences import Decoded

S = TypeVar("S", bound="ImageSplit")


def positions_of(index: Tensor) -> Tensor:
    """Return the position in `index` [N], int64, of each number up to the largest one; -1 for numbers it lacks."""
    table = torch.full((int(index.max()) + 1 if len(index) else 1,), -1, device=index.device)
    table[index] = torch.arange(len(index), device=index.device)
    return table


class ImageSplit(ABC):
    """A split of N images with one label each (`LabelledImages`), or with class masks or objects (`DenseImages`).

    Attributes:
        index: row of each image in the whole split, int64, shape [N]; a subset keeps the rows of its images.
        classes: names of the C classes.
        mean, std: mean and standard deviation of each channel, scaled to [0, 1].
        name: data set and split, such as "cifar100/train".
        superclasses, superclass_of, unlabelled_share: see `Images`; empty or 0 where there are none.
        masks, objects: see `DenseImages`; None where there are none.
    """

    index: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    unlabelled_share: float = 0.0
    masks: tuple[Tensor, ...] | Decoded | None = None
    objects: SplitObjects | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded when they are needed, so that batches should be made ahead by a `Loader`."""
        return False

    @property
    def unlabelled(self) -> int:
        """The number of images without a label."""
        return 0

    @property
    def files(self) -> tuple[str, ...]:
        """Path of the file of every row of the whole split, relative to the folder of the data set, where known."""
        return ()

    @property
    def recorded_crop(self) -> dict[str, int | bool]:
        """The settings of the crop that runs record beside `augment`; empty where there are none."""
        return {}

    @property
    def evaluation_crop(self) -> dict[str, Any]:
        """How images are brought to one size for the evaluation, which runs record; empty where their sizes differ.

        "size" is height and width in pixels. "crop" is "fit" where an image is resized and cropped at the centre, and
        "resized" for the evaluation crop of `ResizedCrop`.
        """
        return {}

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments of `models.create` that depend on the data: num_classes, mean and std."""
        return {"num_classes": len(self.classes), "mean": self.mean, "std": self.std}

    @abstractmethod
    def subset(self: S, rows: Tensor) -> S:
        """Return the images at the positions `rows`, which keep their data-set rows in `index`."""

    @abstractmethod
    def to(self: S, device: torch.device | str) -> S:
        """Return the same images on another device."""

    @abstractmethod
    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Return the positions of `count` images, a function of both arguments."""

    def few(self: S, count: int, seed: int = 0) -> S:
        """Return a subset of `count` images, those that `draw` chooses."""
        return self.subset(self.draw(count, seed))

    def file(self, row: int) -> str:
        """Return the path of the file in a row of the whole split, in the folder of the split; "" if there is none."""
        return self.files[row] if row < len(self.files) else ""
