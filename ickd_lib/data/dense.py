"""Storage of a data set whose images have class masks or objects, and the batches that are made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import strong
from ickd_lib.data.joint import Geometry, RandomCrop, RandomResize
from ickd_lib.data.objects import Objects, SplitObjects
from ickd_lib.data.sequences import Decoded, extent, fetch, marks, select
from ickd_lib.data.split import ImageSplit
from ickd_lib.runtime import InputError

IGNORED = 255
VIEWS = 2**31
Windows = tuple[list[Tensor], list[Tensor] | None, list[Geometry]]  # images, masks and geometries of a batch


@dataclass(frozen=True, eq=False, repr=False)
class DenseBatch:
    """The images and annotations of one step.

    images: float in [0, 1]. Images of one size after a crop: shape [B, 3, H, W], in channels-last memory format.
        Otherwise B tensors of shape [3, h, w]. Networks normalise them themselves.
    index: row of each image in the data set, shape [B].
    view: view number of each image, shape [B]; -1 without augmentation, and for a strong view.
    masks: class of each pixel, uint8, shape [B, H, W] or B tensors of shape [h, w]; None where there are none.
    objects: the objects of each image; empty where there are none.
    num_classes: number of classes of masks and objects, C.
    resized: the longest of the sides to one of which the shorter side of each image was resized at random (the largest
        of `RandomResize.sizes`); 0 if the images were not resized so.
    """

    images: Tensor | tuple[Tensor, ...]
    index: Tensor
    view: Tensor
    masks: Tensor | tuple[Tensor, ...] | None = None
    objects: tuple[Objects, ...] = ()
    num_classes: int = 0
    resized: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kinds = [kind for kind, given in (("masks", self.masks is not None), ("objects", self.objects)) if given]
        sizes = torch.tensor([x.shape[-2:] for x in self.images])
        return f"DenseBatch({len(self)} {extent(sizes)}, {' and '.join(kinds)}, {self.index.device})"


@dataclass(frozen=True, eq=False, repr=False)
class DenseImages(ImageSplit):
    """One split of a data set with class masks, with objects, or with both.

    Args:
        images: N images, uint8, shape [3, h, w], whose sizes may differ: tensors, or files that are decoded when they
            are needed.
        sizes: height and width of each image in pixels, int64 on the CPU, shape [N, 2].
        index: row of each image in the whole split, int64, shape [N]; a subset keeps the rows of its images.
        classes: names of the C classes: of the values in `masks` and of the labels of `objects`.
        mean, std: mean and standard deviation of each channel over the training split, scaled to [0, 1].
        name: data set and split, such as "scenes/train".
        transform: augmentation of the training batches.
        masks: the class of each pixel of each image, uint8, shape [h, w], from 0 to C - 1, or `ignored`.
        objects: the objects of each image.
        views: the number of view numbers from which a `Sampler` draws. With the default each epoch has new views; with
            a small number the outputs of a teacher for all views can be stored.
        workers: number of processes in which a `Loader` decodes files; 0 decodes them in the process that trains, None
            means `loader.usual_workers`.
        ignored: the value of ignored pixels in `masks`, 255; it is not an argument.
    """

    images: tuple[Tensor, ...] | Decoded
    sizes: Tensor
    index: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    transform: RandomCrop | RandomResize
    masks: tuple[Tensor, ...] | Decoded | None = None
    objects: SplitObjects | None = None
    views: int = VIEWS
    workers: int | None = 0
    ignored: int = field(default=IGNORED, init=False)

    def __repr__(self) -> str:
        kinds = [kind for kind, given in (("masks", self.masks), ("objects", self.objects)) if given is not None]
        where = "decoded when needed" if isinstance(self.images, Decoded) else "in memory"
        return (
            f"DenseImages({self.name!r}, {len(self)} {self.extent}, {len(self.classes)} classes, "
            f"{' and '.join(kinds)}, {where}, {self.index.device})"
        )

    @property
    def streamed(self) -> bool:
        """Whether the images are files that are decoded when they are needed."""
        return isinstance(self.images, Decoded)

    @property
    def augment(self) -> str:
        """The augmentation of the training batches as text, for the record of a run."""
        return repr(self.transform)

    @property
    def extent(self) -> str:
        """The sizes of the images as text."""
        return extent(self.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width for which the shapes of a network's maps are computed: those of the crop with `RandomCrop`.

        With `RandomResize` they are those of an image of median height and width, resized to the smallest of `sizes`.
        """
        if isinstance(self.transform, RandomCrop):
            return self.transform.size
        height, width = self.sizes.median(0).values.tolist()
        return self.transform.resized(height, width, min(self.transform.sizes))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any annotation, row or class name, and any pixel of images in memory.

        Of files that are decoded when they are needed, it depends on the names and the sizes in bytes.
        """
        objects: tuple[Any, ...] = ()
        if self.objects is not None:
            objects = (*self.objects.values, *marks(self.objects.masks))
        return runtime.fingerprint(*marks(self.images), *marks(self.masks), *objects, self.index, list(self.classes))

    def subset(self, rows: Tensor) -> DenseImages:
        """Return the images at the positions `rows`, which keep their data-set rows in `index`."""
        chosen = rows.tolist()
        return replace(
            self,
            images=select(self.images, chosen),
            sizes=self.sizes[rows.cpu()],
            index=self.index[rows.to(self.index.device)],
            masks=None if self.masks is None else select(self.masks, chosen),
            objects=None if self.objects is None else self.objects.subset(rows),
        )

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Return the positions of `count` random images, sorted, shape [count]; a function of both arguments.

        They are not stratified, because an image has several classes.

        Raises:
            InputError: there are fewer images.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"cannot draw {count} of {len(self)} images; give a number from 1 to {len(self)}")
        return torch.randperm(len(self), generator=runtime.generator(seed, "few", count))[:count].sort().values

    def to(self, device: torch.device | str) -> DenseImages:
        """Return the same split on another device; the split itself if it is on that device already.

        Files are decoded on the CPU, and their batches moved.
        """
        if self.index.device == runtime.device(device):
            return self

        def moved(given: Any) -> Any:
            return tuple(x.to(device) for x in given) if isinstance(given, tuple) else given

        return replace(
            self,
            images=moved(self.images),
            index=self.index.to(device),
            masks=moved(self.masks),
            objects=None if self.objects is None else self.objects.to(device),
        )

    def batch(self, rows: Tensor, view: Tensor | None = None, *keys: int, made: Windows | None = None) -> DenseBatch:
        """Return a batch. Images and annotations are functions of the data-set row and the view number.

        Args:
            rows: positions of the images in the split, shape [B].
            view: view number of each image, shape [B]; None for images without augmentation.
            keys: not used; other data sets draw random numbers with them.
            made: what `windows` returns for these rows and views, if it is known already.
        """
        device = self.index.device
        index = self.index[rows.to(device)]
        images, masks, geometries = made or self.windows(rows.tolist(), None if view is None else view.tolist())
        objects = None if self.objects is None else self.objects.subset(rows).decoded()
        if objects is not None and view is not None:
            objects = objects.moved(geometries)
        return DenseBatch(
            self._together([x.to(device, non_blocking=True) for x in images]),
            index,
            torch.full_like(index, -1) if view is None else view.to(device),
            None if masks is None else self._together([x.to(device, non_blocking=True) for x in masks]),
            () if objects is None else objects.per_image(),
            len(self.classes),
            max(self.transform.sizes) if isinstance(self.transform, RandomResize) and view is not None else 0,
        )

    def windows(self, rows: Sequence[int], view: Sequence[int] | None) -> Windows:
        """Return the images and masks of a batch, decoded and augmented, as uint8.

        Args:
            rows: positions of B images in the split.
            view: view number of each image; None for images without augmentation.
        """
        images = fetch(self.images, rows)
        if isinstance(self.images, Decoded):
            sizes = [image.shape[1:] for image in images]
            check_sizes(sizes, self.sizes[list(rows)].tolist(), [self.images.items[i] for i in rows])
        masks = None if self.masks is None else fetch(self.masks, rows)
        if view is None:
            return images, masks, []
        geometries = [
            self.transform.draw(image.shape[1], image.shape[2], runtime.generator("dense view", row, number))
            for image, row, number in zip(images, self.index[list(rows)].tolist(), view, strict=True)
        ]
        # Outside the image, pixels have the mean colour, which is 0 after normalisation, and are ignored in masks.
        colour = [round(255 * m) for m in self.mean]
        images = [geometry.pixels(x, colour) for geometry, x in zip(geometries, images, strict=True)]
        if masks is not None:
            masks = [geometry.labels(x, self.ignored) for geometry, x in zip(geometries, masks, strict=True)]
        return images, masks, geometries

    @cached_property
    def decoder(self) -> DenseDecoder:
        """The part of the split that worker processes use."""
        return DenseDecoder(replace(self.to("cpu"), objects=None))

    def strong_numbers(self, rows: Tensor, *keys: int) -> Tensor:
        """Return the view number of a second view of each image, shape [B], as a function of its row and `keys`."""
        index = self.index[rows.to(self.index.device)].tolist()
        return torch.tensor([runtime.seed_of("second view", *keys, row) % self.views for row in index])

    def strong_view(self, rows: Tensor, view: Tensor, *keys: int, made: Windows | None = None) -> DenseBatch:
        """Return another view of some images, whose colours and sharpness are then changed; see `strong.recoloured`.

        The annotations follow the new crop and flip. All draws are a function of the data-set row and `keys`.

        Args:
            rows: positions of the images in the split, shape [B].
            view: their `strong_numbers`.
            keys: integers that select the random numbers.
            made: as for `batch`.
        Returns:
            A batch whose `view` is -1.
        """
        batch = self.batch(rows, view, made=made)
        changed = [
            strong.recoloured(image, runtime.generator("colours", *keys, row))
            for image, row in zip(batch.images, batch.index.tolist(), strict=True)
        ]
        together = isinstance(batch.images, Tensor)
        images = torch.stack(changed).contiguous(memory_format=torch.channels_last) if together else tuple(changed)
        return replace(batch, images=images, view=torch.full_like(batch.view, -1))

    def _together(self, pixels: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Return images as floats in [0, 1], or masks: as one tensor if they are crops of one size, else as a tuple."""
        one = not isinstance(self.transform, RandomResize) and len({x.shape for x in pixels}) == 1
        if pixels[0].ndim == 2:
            return torch.stack(pixels) if one else tuple(pixels)
        if one:
            return torch.stack(pixels).to(torch.float32, memory_format=torch.channels_last).div_(255)
        return tuple(x.float().div_(255) for x in pixels)


@dataclass(frozen=True, eq=False)
class DenseDecoder:
    """Makes the images and masks of a batch in a worker process; see `DenseImages.windows`."""

    images: DenseImages

    @property
    def index(self) -> Tensor:
        """Row of each image in the data set, on the CPU."""
        return self.images.index

    def __call__(self, rows: Sequence[int], view: Sequence[int] | None = None) -> tuple[Windows, list[int]]:
        """Return the windows of a batch, and no replaced images."""
        return self.images.windows(rows, view), []


def check_sizes(found: Sequence[Sequence[int]], stated: Sequence[Sequence[int]], items: Sequence[Any]) -> None:
    """Raise an InputError that names the first of N images whose size is not that in its annotation.

    Args:
        found: height and width of each image.
        stated: height and width in its annotation.
        items: the files of the images.
    """
    for size, (height, width), item in zip(found, stated, items, strict=True):
        if tuple(size) != (height, width):
            raise InputError(
                f"{item} has {size[1]}×{size[0]} pixels, but its annotation is of {width}×{height}; "
                "restore the image or correct the annotation"
            )
