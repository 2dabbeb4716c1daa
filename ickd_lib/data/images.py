"""Images as one resident uint8 tensor, and batches augmented by tensor operations."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.augment import augmentation, strong
from ickd_lib.runtime import InputError


@dataclass(frozen=True)
class Batch:
    """What a training step sees of the data.

    images: float in [0, 1], shape [B, 3, H, W], channels-last; networks normalise them themselves.
    labels: class, shape [B]; of the image with the largest share where images are mixed.
    index: row in the data set, shape [B]; of the same image.
    view: which of the data set's `views` augmentations was taken, shape [B]; -1 where it is none of them.
    soft: probabilities of the classes, shape [B, C], where images are mixed, else None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor
    soft: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """What cross-entropy takes: `soft` [B, C] where images are mixed, else `labels` [B]."""
        return self.labels if self.soft is None else self.soft


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
        augment: what `batches` gives: "crop" (and flip), or after these "randaugment", "mixup", "cutmix", or one of
            the last two after the first: "randaugment+cutmix".
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
        # Channels-last in memory: a crop then copies whole pixels, and convolutions get the layout they like.
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "augment", augmentation(self.augment))

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
        """Changes with any pixel, label, row or class."""
        return runtime.fingerprint(self.images.permute(0, 2, 3, 1), self.labels, self.index, list(self.classes))

    def subset(self, rows: Tensor) -> Images:
        """The images at positions `rows`, with their data-set rows kept in `index`."""
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows])

    def few(self, count: int, seed: int = 0) -> Images:
        """A stratified subset of `count` images, the same for the same seed."""
        return self.subset(stratified(self.labels, count, self.classes, seed))

    def only(self, classes: Sequence[str | int]) -> Images:
        """The images of some classes (given as to `restricted`, one or more); the label space stays."""
        wanted = torch.zeros(len(self.classes), dtype=torch.bool)
        wanted[self._chosen(classes)] = True
        return self.subset(wanted.to(self.labels.device)[self.labels].nonzero().squeeze(1))

    def restricted(self, classes: Sequence[str | int]) -> Images:
        """The images of some classes, which become the label space.

        Args:
            classes: names of classes or of superclasses (all their classes), or positions; their order and
                repetitions do not matter.
        Returns:
            Labels 0 to K-1, in the data set's order of classes; mean, std and the rows in `index` as they were. All
            classes are the images themselves.
        Raises:
            InputError: an unknown name, a position out of range, or fewer than two classes.
        """
        chosen = self._chosen(classes)
        if len(chosen) < 2:
            raise InputError(f"classes={list(classes)!r} is {self.classes[chosen[0]]!r} alone; name two or more")
        if len(chosen) == len(self.classes):
            return self
        number = torch.full((len(self.classes),), -1)
        number[chosen] = torch.arange(len(chosen))
        kept, names = self.only(chosen), tuple(self.classes[c] for c in chosen)
        title, slash, split = self.name.partition("/")
        return replace(
            kept,
            labels=number.to(kept.labels.device)[kept.labels],
            classes=names,
            superclass_of=self.superclass_of and tuple(self.superclass_of[c] for c in chosen),
            name=title.removesuffix(_listed(self.classes)) + _listed(names) + slash + split,
        )

    def _chosen(self, classes: Sequence[str | int]) -> list[int]:
        """The positions of the classes that `classes` names, each once, sorted; at least one."""
        title = self.name.split("/")[0]
        if isinstance(classes, str) or not len(classes):
            raise InputError(f"classes={classes!r} is no list of one or more; give names or positions of {title}'s")
        uppers = [name for s, name in enumerate(self.superclasses) if s in self.superclass_of]  # those with classes
        known = list(dict.fromkeys((*self.classes, *uppers)))
        chosen: set[int] = set()
        for given in classes:
            if isinstance(given, SupportsIndex):
                position = operator.index(given)
                if not 0 <= position < len(self.classes):
                    raise InputError(
                        f"class {position} is out of range; {title} has {len(self.classes)}, from 0 to "
                        f"{len(self.classes) - 1}"
                    )
                chosen.add(position)
                continue
            kind = "class or superclass" if uppers else "class"
            name = given if given in known else runtime.choose(given, known, kind)
            if name in self.classes:
                chosen.add(self.classes.index(name))
            else:
                upper = self.superclasses.index(name)
                chosen.update(c for c, s in enumerate(self.superclass_of) if s == upper)
        return sorted(chosen)

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
        return self._cropped(rows, view).float().div_(255)

    def _cropped(self, rows: Tensor, view: Tensor) -> Tensor:
        """`augmented` before the scaling: uint8, shape [B, 3, H, W]."""
        height, width = self.size
        pad, across = self.pad, 2 * self.pad + 1
        place, mirrored = (view // 2, view % 2) if self.flip else (view, torch.zeros_like(view))
        x = torch.arange(width, device=rows.device)
        columns = (place % across)[:, None] + torch.where(mirrored[:, None] == 1, x.flip(0), x)
        lines = (place // across)[:, None] + torch.arange(height, device=rows.device)
        pixels = F.pad(self.images.permute(0, 2, 3, 1)[rows], (0, 0, pad, pad, pad, pad))
        each = torch.arange(len(rows), device=rows.device)[:, None, None]
        return pixels[each, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch. The last, smaller one is kept.

        A last one of a single image joins the one before it: batch normalisation cannot train on one image.
        """
        full, rest = divmod(len(self), batch_size)
        return max(full + (rest > 1 or (rest == 1 and full == 0)), 1)

    def batches(self, batch_size: int, *, data_seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One epoch of augmented batches, from step `first` on.

        The order is a function of (data_seed, epoch), an image's view of (data_seed, epoch, index), and what
        `augment` adds of (data_seed, epoch, step).
        """
        order, view = self.plan(data_seed=data_seed, epoch=epoch)
        steps = self.steps(batch_size)
        for step in range(first, steps):
            last = len(self) if step == steps - 1 else (step + 1) * batch_size
            some = slice(step * batch_size, last)
            yield self.batch(order[some], view[some], data_seed, epoch, step)

    def batch(self, rows: Tensor, view: Tensor, *keys: int) -> Batch:
        """The images at positions `rows` [B] in the views `view` [B]; what `augment` adds is a function of `keys`."""
        if self.augment == "crop":
            return Batch(self.augmented(rows, view), self.labels[rows], self.index[rows], view)
        images, shares = strong(self._cropped(rows, view), self.augment, *keys)
        soft = None
        if shares is not None:
            # Not a matrix product with one-hot labels, which reduced precision would round.
            soft = shares.new_zeros(len(rows), len(self.classes)).index_add_(1, self.labels[rows], shares)
            rows = rows[shares.argmax(1)]
        return Batch(images, self.labels[rows], self.index[rows], torch.full_like(view, -1), soft)

    def plan(self, *, data_seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The positions of the images in the order of an epoch, and the view of each: [N], [N]."""
        device, n = self.labels.device, len(self)
        order = torch.randperm(n, generator=runtime.generator(data_seed, "order", epoch)).to(device)
        rows_known = int(self.index.max()) + 1
        drawn = torch.randint(self.views, (rows_known,), generator=runtime.generator(data_seed, "view", epoch)).to(
            device
        )
        return order, drawn[self.index[order]]

    def partners(self, batch: Batch, *, data_seed: int, epoch: int, step: int) -> Batch:
        """For each image of a batch of these images, another one of its class, cropped and flipped at random.

        Where the class has one image only, it is that image. Draws are a function of (data_seed, epoch, step).

        Args:
            batch: B images of this split, found by their `index`.
        Returns:
            B images with the labels of the batch.
        """
        members, starts, sizes, places = self._classmates
        keys = runtime.generator(data_seed, "partner", epoch, step)
        drawn = torch.randint(2**40, (len(batch.index),), generator=keys).to(members.device)
        view = torch.randint(self.views, (len(batch.index),), generator=keys).to(members.device)
        place = places[batch.index]
        label = self.labels[members[place]]
        start, size = starts[label], sizes[label]
        ahead = 1 + drawn % (size - 1).clamp(min=1)  # going round the class, from the image itself
        rows = members[start + (place - start + ahead) % size]
        return Batch(self.augmented(rows, view), self.labels[rows], self.index[rows], view)

    @cached_property
    def _classmates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions sorted by class [N]; each class's start there and its size [C]; each data-set row's place there."""
        members = self.labels.argsort(stable=True)
        sizes = torch.bincount(self.labels, minlength=len(self.classes))
        places = torch.zeros(int(self.index.max()) + 1, dtype=torch.int64, device=members.device)
        places[self.index[members]] = torch.arange(len(members), device=members.device)
        return members, sizes.cumsum(0) - sizes, sizes, places


class Splits(NamedTuple):
    """Training, validation (empty unless asked for) and test images of one data set."""

    train: Images
    val: Images
    test: Images

    def to(self, device: torch.device | str) -> Splits:
        """The same splits on another device."""
        return Splits(*(images.to(device) for images in self))


def _listed(classes: tuple[str, ...]) -> str:
    names = ",".join(classes)
    return f"({names})" if len(names) <= 40 else f"({len(classes)} classes {runtime.fingerprint(list(classes))[:4]})"


def stratified(labels: Tensor, count: int, classes: tuple[str, ...], seed: int) -> Tensor:
    """Positions of `count` images, each class in proportion to its share (at least one); sorted; [count].

    Raises:
        InputError: `count` is below the number of classes or above the number of images.
    """
    labels = labels.cpu()
    sizes = torch.bincount(labels, minlength=len(classes))
    there = int((sizes > 0).sum())
    if not there <= count <= len(labels):
        raise InputError(f"cannot draw {count} of {len(labels)} images; {there} classes need one each")
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
