"""What all splits of images with one label each have in common, wherever their pixels are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ickd_lib.data import selection, strong
from ickd_lib.data.sequences import extent
from ickd_lib.data.split import ImageSplit

S = TypeVar("S", bound="LabelledImages")


@dataclass(frozen=True, repr=False)
class Batch:
    """The images and labels of one training step.

    images: float in [0, 1], shape [B, 3, H, W], in channels-last memory format. Networks normalise them themselves.
    labels: class of each image, shape [B]. Under Mixup and CutMix: the class of the image with the largest share.
    index: row of each image in the data set, shape [B]; under Mixup and CutMix that of the same image.
    view: view number of each image, shape [B], or -1 where strong augmentation was applied after the view.
    soft: class probabilities under Mixup and CutMix, shape [B, C]; otherwise None.
    planned: for streamed images without strong augmentation, `index` and `view` on the CPU, where reading them waits
        for no GPU; otherwise None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor
    soft: Tensor | None = None
    planned: tuple[Tensor, Tensor] | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of cross-entropy: `soft` [B, C] where images are mixed, otherwise `labels` [B]."""
        return self.labels if self.soft is None else self.soft

    def part(self, rows: slice) -> Batch:
        """Return the batch of the images at these positions."""
        soft = None if self.soft is None else self.soft[rows]
        planned = self.planned and (self.planned[0][rows], self.planned[1][rows])
        return Batch(self.images[rows], self.labels[rows], self.index[rows], self.view[rows], soft, planned)

    def __repr__(self) -> str:
        sizes = torch.tensor([self.images.shape[2:]])
        targets = "labels" if self.soft is None else "soft labels"
        return f"Batch({len(self.images)} {extent(sizes)}, {targets}, {self.images.device})"


class LabelledImages(ImageSplit):
    """A split of N images with one label each. `Images` holds its pixels; `StreamedImages` decodes them when needed.

    Attributes:
        labels: class of each image, int64, shape [N]; -1 for an image without a label.
        augment: see `Images`; the other attributes are those of `ImageSplit`.
    """

    labels: Tensor
    augment: str

    @property
    def evaluation_crop(self) -> dict[str, Any]:
        """How images are brought to one size for the evaluation; see `ImageSplit`."""
        return {"size": list(self.size), "crop": "fit"}

    @cached_property
    def unlabelled(self) -> int:
        """The number of images without a label."""
        return int((self.labels < 0).sum())

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that a network is trained and evaluated on."""

    @property
    @abstractmethod
    def views(self) -> int:
        """The number of views of an image."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the images, labels, rows and class names."""

    @abstractmethod
    def shown(self, rows: Tensor | slice) -> Tensor:
        """Return images without augmentation: uint8, shape [n, 3, H, W]."""

    @abstractmethod
    def cropped(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return the views `view` [B] of the images at the positions `rows` [B]: uint8, shape [B, 3, H, W]."""

    @property
    def extent(self) -> str:
        """The size of the images as text."""
        return extent(torch.tensor([self.size]))

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Return the positions of `count` images, stratified; see `selection.stratified`."""
        return selection.stratified(self.labels, count, self.classes, seed)

    def only(self: S, classes: Sequence[str | int]) -> S:
        """Return the images of the given classes with unchanged labels; see `selection.only`."""
        return selection.only(self, classes)

    def restricted(self: S, classes: Sequence[str | int]) -> S:
        """Return the images of the given classes, relabelled from 0 on; see `selection.restricted`."""
        return selection.restricted(self, classes)

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return images without augmentation: float in [0, 1], shape [n, 3, H, W]."""
        return self.shown(rows).float().div_(255)

    def augmented(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return what `cropped` returns as float in [0, 1], shape [B, 3, H, W]."""
        return self.cropped(rows, view).float().div_(255)

    def batch(self, rows: Tensor, view: Tensor, *keys: int, made: Tensor | None = None) -> Batch:
        """Return one augmented batch.

        Args:
            rows: positions of the images in the split, shape [B].
            view: view number of each image, shape [B].
            keys: integers; the random numbers of strong augmentation are a function of them.
            made: what `cropped(rows, view)` returns, if it is known already.
        """
        pixels = self.cropped(rows, view) if made is None else made
        if self.augment == "crop":
            return Batch(pixels.float().div_(255), self.labels[rows], self.index[rows], view)
        images, shares = strong.augmented(pixels, self.augment, *keys)
        soft = None
        if shares is not None:
            # A matrix product with one-hot labels would be rounded under reduced precision; a sum is not.
            soft = shares.new_zeros(len(rows), len(self.classes)).index_add_(1, self.labels[rows], shares)
            rows = rows[shares.argmax(1)]
        return Batch(images, self.labels[rows], self.index[rows], torch.full_like(view, -1), soft)
