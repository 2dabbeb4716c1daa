"""Images as one resident uint8 tensor, and batches augmented by tensor operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError


@dataclass(frozen=True)
class Batch:
    """What a training step sees of the data.

    images: float in [0, 1], shape [B, 3, H, W], channels-last; networks normalise them themselves.
    labels: class, shape [B].
    index: row in the data set, shape [B].
    view: which of the data set's `views` augmentations was taken, shape [B].
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor


@dataclass(frozen=True)
class Images:
    """One split of a data set, resident on one device.

    Args:
        images: uint8, shape [N, 3, H, W].
        labels: int64, shape [N].
        index: int64, shape [N]: the row in the split as published, which a subset keeps.
        classes: C names.
        mean, std: three numbers a channel, of the whole training split scaled to [0, 1].
        pad, flip: the augmentation: zeros added on every side before a random crop; mirroring of one half.
        name: data set and split, "cifar100/train".
        superclasses, superclass_of: names of the coarser classes, and each class's one (empty where none).
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

    def __post_init__(self) -> None:
        # Channels-last in memory: a crop then copies whole pixels, and convolutions get the layout they like.
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def spec(self) -> dict[str, Any]:
        """What `models.create` needs to know of the data: num_classes, mean and std."""
        return {"num_classes": len(self.classes), "mean": self.mean, "std": self.std}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def views(self) -> int:
        """How many augmentations an image has: crop positions, times two with mirroring (CIFAR: 162)."""
        return (2 * self.pad + 1) ** 2 * (1 + self.flip)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any pixel, label or row."""
        return runtime.fingerprint(self.images.permute(0, 2, 3, 1), self.labels, self.index, list(self.classes))

    def subset(self, rows: Tensor) -> Images:
        """The images at positions `rows`, with their data-set rows kept in `index`."""
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows])

    def few(self, count: int, seed: int = 0) -> Images:
        """A stratified subset of `count` images, the same for the same seed."""
        return self.subset(stratified(self.labels, count, self.classes, seed))

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), index=self.index.to(device))

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Images without augmentation, float in [0, 1], shape [n, 3, H, W]."""
        return self.images[rows].float().div_(255)

    def augmented(self, rows: Tensor, view: Tensor) -> Tensor:
        """The views `view` [B] of the images at positions `rows` [B]: float in [0, 1], shape [B, 3, H, W].

        View number: ((shift down) · (2 pad + 1) + (shift right)) · (1 + flip) + (mirrored).
        """
        height, width = self.size
        pad, across = self.pad, 2 * self.pad + 1
        place, mirrored = (view // 2, view % 2) if self.flip else (view, torch.zeros_like(view))
        x = torch.arange(width, device=rows.device)
        columns = (place % across)[:, None] + torch.where(mirrored[:, None] == 1, x.flip(0), x)
        lines = (place // across)[:, None] + torch.arange(height, device=rows.device)
        pixels = F.pad(self.images.permute(0, 2, 3, 1)[rows], (0, 0, pad, pad, pad, pad))
        each = torch.arange(len(rows), device=rows.device)[:, None, None]
        cropped = pixels[each, lines[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2).float().div_(255)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch. The last, smaller one is kept.

        A last one of a single image joins the one before it: batch normalisation cannot train on one image.
        """
        full, rest = divmod(len(self), batch_size)
        return max(full + (rest > 1 or (rest == 1 and full == 0)), 1)

    def batches(self, batch_size: int, *, data_seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One epoch of augmented batches, from step `first` on.

        The order is a function of (data_seed, epoch), an image's view of (data_seed, epoch, index).
        """
        device, n = self.labels.device, len(self)
        order = torch.randperm(n, generator=runtime.generator(data_seed, "order", epoch)).to(device)
        rows_known = int(self.index.max()) + 1
        drawn = torch.randint(self.views, (rows_known,), generator=runtime.generator(data_seed, "view", epoch)).to(
            device
        )
        view = drawn[self.index]
        steps = self.steps(batch_size)
        for step in range(first, steps):
            rows = order[step * batch_size : n if step == steps - 1 else (step + 1) * batch_size]
            yield Batch(self.augmented(rows, view[rows]), self.labels[rows], self.index[rows], view[rows])


class Splits(NamedTuple):
    """Training, validation (empty unless asked for) and test images of one data set."""

    train: Images
    val: Images
    test: Images

    def to(self, device: torch.device | str) -> Splits:
        """The same splits on another device."""
        return Splits(*(images.to(device) for images in self))


def stratified(labels: Tensor, count: int, classes: tuple[str, ...], seed: int) -> Tensor:
    """Positions of `count` images, each class in proportion to its share (at least one); sorted; [count].

    Raises:
        InputError: `count` is below the number of classes or above the number of images.
    """
    labels = labels.cpu()
    if not len(classes) <= count <= len(labels):
        raise InputError(f"cannot draw {count} of {len(labels)} images; {len(classes)} classes need one each")
    sizes = torch.bincount(labels, minlength=len(classes))
    exact = sizes * count / len(labels)
    share = exact.floor().long().clamp(min=1).minimum(sizes)
    while share.sum() != count:  # rounding: give to the class most short of its share, or take back
        step = 1 if share.sum() < count else -1
        gap = step * (exact - share)
        gap[(share >= sizes) if step == 1 else (share <= 1)] = -torch.inf
        share[gap.argmax()] += step
    shuffled = torch.randperm(len(labels), generator=runtime.generator(seed, "stratified", count))
    chosen = [shuffled[labels[shuffled] == c][: int(share[c])] for c in range(len(classes))]
    return torch.cat(chosen).sort().values
