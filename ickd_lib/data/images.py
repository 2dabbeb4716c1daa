"""Storage of a data set: the images of a split as one uint8 tensor, and the batches that are made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import strong, views
from ickd_lib.data.labelled import LabelledImages
from ickd_lib.runtime.arguments import check_tensor


@dataclass(frozen=True, repr=False)
class Images(LabelledImages):
    """One split of a data set, held in the memory of one device.

    Args:
        images: uint8, shape [N, 3, H, W].
        labels: class of each image, int64, shape [N].
        index: row of each image in the whole split, int64, shape [N]; a subset keeps the rows of its images.
        classes: names of the C classes.
        mean, std: mean and standard deviation of each channel over the whole training split, scaled to [0, 1].
        pad: zeros added on every side before a random crop.
        flip: whether half of the views are mirrored from left to right.
        name: data set and split, such as "cifar100/train".
        superclasses: names of the coarser classes; empty where there are none.
        superclass_of: position of each class's superclass in `superclasses`; empty where there are none.
        augment: augmentation of the training batches. "crop" is crop and flip; "randaugment", "mixup" and "cutmix" are
            applied after these; "randaugment+cutmix" and "randaugment+mixup" combine two.
        files: path of the file of every row of the whole split, relative to the folder of the data set; empty where the
            images are not files.
        unlabelled_share: share of images without labels in each batch; 0 for their share of the images.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    name: str
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    augment: str = "crop"
    files: tuple[str, ...] = ()
    unlabelled_share: float = 0.0

    def __post_init__(self) -> None:
        check_tensor("images", self.images, [None, 3, None, None], torch.uint8)
        for name in ("labels", "index"):
            check_tensor(name, getattr(self, name), [len(self.images)], torch.long)
        # In channels-last memory format a crop copies whole pixels, and convolutions are faster.
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "augment", strong.augmentation(self.augment))

    def __repr__(self) -> str:
        return (
            f"Images({self.name!r}, {len(self)} {self.extent}, {len(self.classes)} classes, augment={self.augment!r}, "
            f"{self.images.device})"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def views(self) -> int:
        """The number of views of an image: positions of the crop, times two with flips (162 for CIFAR-100)."""
        return views.count(self.pad, self.flip)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label, row or class name."""
        return runtime.fingerprint(self.images.permute(0, 2, 3, 1), self.labels, self.index, list(self.classes))

    @property
    def recorded_crop(self) -> dict[str, int | bool]:
        """`pad` and `flip`, which runs record; empty for digits and CIFAR-100 as they are loaded."""
        usual = [crop for name, crop in (("digits", (1, False)), ("cifar100", (4, True))) if self.name.startswith(name)]
        return {} if (self.pad, self.flip) in usual else {"pad": self.pad, "flip": self.flip}

    def subset(self, rows: Tensor) -> Images:
        """Return the images at the positions `rows`, which keep their data-set rows in `index`."""
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows])

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), index=self.index.to(device))

    def shown(self, rows: Tensor | slice) -> Tensor:
        """Return images without augmentation: uint8, shape [n, 3, H, W]."""
        return self.images[rows]

    def cropped(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return the views `view` [B] of the images at the positions `rows` [B]: uint8, shape [B, 3, H, W].

        `views.crop_and_flip` explains the numbering of the views.
        """
        return views.crop_and_flip(self.images, rows, view, pad=self.pad, flip=self.flip)


class Splits(NamedTuple):
    """The training, validation and test images of a data set.

    The validation split is empty unless one was requested or the data set has its own. Data sets with class masks or
    objects have `DenseImages` here, and tasks for them use these.
    """

    train: Images
    val: Images
    test: Images

    def to(self, device: torch.device | str) -> Splits:
        """Return the same splits on another device."""
        device = runtime.device(device)
        return Splits(*(images.to(device) for images in self))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(images)}" for split, images in zip(self._fields, self, strict=True))
        title = self.train.name.split("/")[0]
        return f"Splits({title!r}, {sizes} {self.train.extent}, {len(self.train.classes)} classes)"
