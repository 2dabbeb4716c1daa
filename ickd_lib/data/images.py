"""Storage of a data set: the images of a split as one uint8 tensor, and the batches that are made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import selection, strong, views
from ickd_lib.data.decoded import extent


@dataclass(frozen=True, repr=False)
class Batch:
    """The images and labels of one training step.

    images: float in [0, 1], shape [B, 3, H, W], in channels-last memory format. Networks normalise them themselves.
    labels: class of each image, shape [B]. Under Mixup and CutMix: the class of the image with the largest share.
    index: row of each image in the data set, shape [B]; under Mixup and CutMix that of the same image.
    view: view number of each image, shape [B], or -1 where strong augmentation was applied after the view.
    soft: class probabilities under Mixup and CutMix, shape [B, C]; otherwise None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor
    soft: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of cross-entropy: `soft` [B, C] where images are mixed, otherwise `labels` [B]."""
        return self.labels if self.soft is None else self.soft

    def part(self, rows: slice) -> Batch:
        """Return the batch of the images at these positions."""
        soft = None if self.soft is None else self.soft[rows]
        return Batch(self.images[rows], self.labels[rows], self.index[rows], self.view[rows], soft)

    def __repr__(self) -> str:
        sizes = torch.tensor([self.images.shape[2:]])
        targets = "labels" if self.soft is None else "soft labels"
        return f"Batch({len(self.images)} {extent(sizes)}, {targets}, {self.images.device})"


@dataclass(frozen=True, repr=False)
class Images:
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

    def __post_init__(self) -> None:
        # In channels-last memory format a crop copies whole pixels, and convolutions are faster.
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "augment", strong.augmentation(self.augment))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"Images({self.name!r}, {len(self)} {self.extent}, {len(self.classes)} classes, augment={self.augment!r}, "
            f"{self.images.device})"
        )

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments of `models.create` that depend on the data: num_classes, mean and std."""
        return {"num_classes": len(self.classes), "mean": self.mean, "std": self.std}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def extent(self) -> str:
        """The size of the images as text."""
        return extent(torch.tensor([self.size]))

    @property
    def views(self) -> int:
        """The number of views of an image: positions of the crop, times two with flips (162 for CIFAR-100)."""
        return views.count(self.pad, self.flip)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label, row or class name."""
        return runtime.fingerprint(self.images.permute(0, 2, 3, 1), self.labels, self.index, list(self.classes))

    def subset(self, rows: Tensor) -> Images:
        """Return the images at the positions `rows`, which keep their data-set rows in `index`."""
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows])

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Return the positions of `count` images, stratified; see `selection.stratified`."""
        return selection.stratified(self.labels, count, self.classes, seed)

    def few(self, count: int, seed: int = 0) -> Images:
        """Return a stratified subset of `count` images; see `selection.stratified`."""
        return self.subset(self.draw(count, seed))

    def only(self, classes: Sequence[str | int]) -> Images:
        """Return the images of the given classes with unchanged labels; see `selection.only`."""
        return selection.only(self, classes)

    def restricted(self, classes: Sequence[str | int]) -> Images:
        """Return the images of the given classes, relabelled from 0 on; see `selection.restricted`."""
        return selection.restricted(self, classes)

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), index=self.index.to(device))

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return images without augmentation: float in [0, 1], shape [n, 3, H, W]."""
        return self.images[rows].float().div_(255)

    def cropped(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return the views `view` [B] of the images at the positions `rows` [B]: uint8, shape [B, 3, H, W].

        `views.crop_and_flip` explains the numbering of the views.
        """
        return views.crop_and_flip(self.images, rows, view, pad=self.pad, flip=self.flip)

    def augmented(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return what `cropped` returns as float in [0, 1], shape [B, 3, H, W]."""
        return self.cropped(rows, view).float().div_(255)

    def batch(self, rows: Tensor, view: Tensor, *keys: int) -> Batch:
        """Return one augmented batch.

        Args:
            rows: positions of the images in the split, shape [B].
            view: view number of each image, shape [B].
            keys: integers; the random numbers of strong augmentation are a function of them.
        """
        if self.augment == "crop":
            return Batch(self.augmented(rows, view), self.labels[rows], self.index[rows], view)
        pixels, shares = strong.augmented(self.cropped(rows, view), self.augment, *keys)
        soft = None
        if shares is not None:
            # A matrix product with one-hot labels would be rounded under reduced precision; a sum is not.
            soft = shares.new_zeros(len(rows), len(self.classes)).index_add_(1, self.labels[rows], shares)
            rows = rows[shares.argmax(1)]
        return Batch(pixels, self.labels[rows], self.index[rows], torch.full_like(view, -1), soft)


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
        return Splits(*(images.to(device) for images in self))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(images)}" for split, images in zip(self._fields, self, strict=True))
        title = self.train.name.split("/")[0]
        return f"Splits({title!r}, {sizes} {self.train.extent}, {len(self.train.classes)} classes)"
