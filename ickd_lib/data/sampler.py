"""The order of the images in an epoch, and its batches, which are functions of data seed, epoch and images alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import strong
from ickd_lib.data.dense import DenseImages
from ickd_lib.data.labelled import Batch, LabelledImages
from ickd_lib.runtime import InputError


class Sampler:
    """Draws the training batches of one split.

    The order of an epoch is a function of (data_seed, epoch), the view of an image of (data_seed, epoch, row in the
    data set), and the random numbers of strong augmentation of (data_seed, epoch, step). A sampler holds no state, so
    an epoch can start at any step.

    Args:
        images: the split to draw from; its `augment` selects the augmentation. The batches of `DenseImages` are
            of the type `DenseBatch`, and partners are not defined for these.
    """

    def __init__(self, images: LabelledImages | DenseImages) -> None:
        self.images: Any = images

    def __repr__(self) -> str:
        return f"Sampler({self.images!r})"

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch, a smaller last one included.

        A last batch of a single image is joined to the batch before it, because batch normalisation cannot train on one
        image.
        """
        full, rest = divmod(len(self.images), batch_size)
        return max(full + (rest > 1 or (rest == 1 and full == 0)), 1)

    def batches(self, batch_size: int, *, data_seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the augmented batches of one epoch.

        Args:
            batch_size: images in a batch.
            data_seed, epoch: select the order, the views and the random numbers of strong augmentation.
            first: the step to begin with; the batches from there on equal those of the whole epoch.
        """
        order, view = self.plan(data_seed=data_seed, epoch=epoch)
        steps = self.steps(batch_size)
        ends = [*range(batch_size, steps * batch_size, batch_size), len(self.images)]
        parts = [(step, slice(step * batch_size, ends[step])) for step in range(first, steps)]
        if self.images.streamed:
            from ickd_lib.data.loader import Loader

            order, view = order.cpu(), view.cpu()
            planned = ((step, order[part], view[part]) for step, part in parts)
            loaded = Loader(self.images, len(parts)).steps(planned, data_seed=data_seed, epoch=epoch)
            yield from (one.batch for one in loaded)
            return
        for step, part in parts:
            yield self.batch(order[part], view[part], data_seed, epoch, step)

    def plan(self, *, data_seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the positions of all images in the order of an epoch, shape [N], and the view of each, shape [N]."""
        images = self.images
        device = images.index.device
        if images.unlabelled_share and 0 < images.unlabelled < len(images):
            return self._mixed(data_seed, epoch)
        order = torch.randperm(len(images), generator=runtime.generator(data_seed, "order", epoch)).to(device)
        # A view is drawn for every row up to the largest one, so that an image has the same view in every subset.
        rows = int(images.index.max()) + 1
        drawn = torch.randint(images.views, (rows,), generator=runtime.generator(data_seed, "view", epoch)).to(device)
        return order, drawn[images.index[order]]

    def _mixed(self, data_seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return order and views as `plan` does; each batch has the share `unlabelled_share` of unlabelled images.

        The order has as many places as there are images. Images of both kinds come in shuffled rounds, each in another
        view.
        """
        images, labels = self.images, self.images.labels.cpu()
        place = torch.arange(len(labels) + 1, dtype=torch.double) * images.unlabelled_share
        without = place[1:].floor() > place[:-1].floor()
        order = torch.empty(len(labels), dtype=torch.long)
        for kind, (places, members) in enumerate(((without, labels < 0), (~without, labels >= 0))):
            rows, generator = members.nonzero().squeeze(1), runtime.generator(data_seed, "order", epoch, kind)
            rounds = -(-int(places.sum()) // len(rows))
            drawn = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)]
            order[places] = torch.cat([*drawn, rows[:0]])[: int(places.sum())]
        view = torch.randint(images.views, (len(labels),), generator=runtime.generator(data_seed, "view", epoch))
        return order.to(images.index.device), view.to(images.index.device)

    def batch(self, rows: Tensor, view: Tensor, *keys: int) -> Batch:
        """Return one augmented batch.

        Args:
            rows: positions of the images in the split, shape [B].
            view: view number of each image, shape [B].
            keys: integers; the random numbers of strong augmentation are a function of them.
        """
        return self.images.batch(rows, view, *keys)

    def strong_view(self, rows: Tensor, *, data_seed: int, epoch: int, step: int, made: Any = None) -> Any:
        """Return a strongly augmented view of some images; see `strong.distorted` and `DenseImages.strong_view`.

        Crop and flip are drawn anew. The draws are a function of (data_seed, epoch, step), for `DenseImages` also of
        the row of each image.

        Args:
            rows: positions of the images in the split, shape [B].
            data_seed, epoch, step: select the random numbers.
            made: the images of the rows in the views `strong_numbers`, if they were decoded already (see `Loader`).
        Returns:
            B images with the labels, or the annotations, and the indices of the rows; their `view` is -1.
        """
        images, keys = self.images, (data_seed, epoch, step)
        view = self.strong_numbers(rows, data_seed=data_seed, epoch=epoch, step=step)
        if isinstance(images, DenseImages):
            return images.strong_view(rows, view, *keys, made=made)
        pixels = strong.distorted(images.cropped(rows, view) if made is None else made, *keys)
        return Batch(pixels, images.labels[rows], images.index[rows], torch.full_like(view, -1))

    def strong_numbers(self, rows: Tensor, *, data_seed: int, epoch: int, step: int) -> Tensor:
        """Return the view number of the second crop and flip of each image, shape [B].

        The arguments are those of `strong_view`.
        """
        images = self.images
        if isinstance(images, DenseImages):
            return images.strong_numbers(rows, data_seed, epoch, step)
        generator = runtime.generator(data_seed, "second view", epoch, step)
        return torch.randint(images.views, (len(rows),), generator=generator).to(rows.device)

    def partners(self, batch: Batch, *, data_seed: int, epoch: int, step: int, made: Tensor | None = None) -> Batch:
        """Draw, for each image of a batch, a random image of its class, which may be itself, in a random view.

        The draws are a function of (data_seed, epoch, step).

        Args:
            batch: B images of this split.
            data_seed, epoch, step: select the random numbers.
            made: the images of the `partner_numbers`, uint8, shape [B, 3, H, W], if they were decoded already.
        Returns:
            B images, cropped and flipped, with the labels of `batch`.
        Raises:
            InputError: the images have masks or objects, and so not one class each.
        """
        if isinstance(self.images, DenseImages):
            raise InputError(
                f"{self.images.name} has no partners of the same class, because an image with masks or objects may "
                "have several classes; choose a method without partners"
            )
        images, device = self.images, batch.index.device
        rows, view = self.partner_numbers(batch.labels, data_seed=data_seed, epoch=epoch, step=step)
        rows, view = rows.to(device), view.to(device)
        pixels = images.augmented(rows, view) if made is None else made.float().div_(255)
        return Batch(pixels, images.labels[rows], images.index[rows], view)

    def partner_numbers(self, labels: Tensor, *, data_seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return position and view number of a random image of each class in `labels` [B]; both have shape [B]."""
        members, starts, sizes = self._by_class
        generator = runtime.generator(data_seed, "partner", epoch, step)
        drawn = torch.randint(2**40, (len(labels),), generator=generator).to(members.device)
        view = torch.randint(self.images.views, (len(labels),), generator=generator).to(members.device)
        labels = labels.to(members.device)
        return members[starts[labels] + drawn % sizes[labels]], view

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """The images in the order of their classes.

        Returns:
            members: positions of the images, sorted by class, shape [N].
            starts, sizes: first place in `members` and number of images of each class, shape [C].
        """
        # The batches of a streamed split are planned on the CPU.
        labels = self.images.decoder.labels if self.images.streamed else self.images.labels
        members = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=len(self.images.classes))
        return members, sizes.cumsum(0) - sizes, sizes
