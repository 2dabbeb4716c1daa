"""Storage of a data set whose images have class masks or objects, and the batches that are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.decoded import Decoded, extent, fetch, marks, select
from ickd_lib.data.joint import RandomCrop, RandomResize
from ickd_lib.data.objects import Objects, SplitObjects
from ickd_lib.runtime import InputError

IGNORED = 255
VIEWS = 2**31


@dataclass(frozen=True, eq=False, repr=False)
class DenseBatch:
    """The images and annotations of one step.

    images: float in [0, 1]. Images of one size after a crop: shape [B, 3, H, W], in channels-last memory format.
        Otherwise B tensors of shape [3, h, w]. Networks normalise them themselves.
    index: row of each image in the data set, shape [B].
    view: view number of each image, shape [B]; -1 without augmentation.
    masks: class of each pixel, uint8, shape [B, H, W] or B tensors of shape [h, w]; None where there are none.
    objects: the objects of each image; empty where there are none.
    num_classes: number of classes of masks and objects, C.
    """

    images: Tensor | tuple[Tensor, ...]
    index: Tensor
    view: Tensor
    masks: Tensor | tuple[Tensor, ...] | None = None
    objects: tuple[Objects, ...] = ()
    num_classes: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kinds = [kind for kind, given in (("masks", self.masks is not None), ("objects", self.objects)) if given]
        sizes = torch.tensor([x.shape[-2:] for x in self.images])
        return f"DenseBatch({len(self)} {extent(sizes)}, {' and '.join(kinds)}, {self.index.device})"


@dataclass(frozen=True, eq=False, repr=False)
class DenseImages:
    """One split of a data set with class masks, with objects, or with both.

    Args:
        images: N images, uint8, shape [3, h, w], of possibly different sizes: tensors, or files that are decoded when
            they are needed.
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
    ignored: int = field(default=IGNORED, init=False)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        kinds = [kind for kind, given in (("masks", self.masks), ("objects", self.objects)) if given is not None]
        where = "decoded when needed" if isinstance(self.images, Decoded) else "in memory"
        return (
            f"DenseImages({self.name!r}, {len(self)} {self.extent}, {len(self.classes)} classes, "
            f"{' and '.join(kinds)}, {where}, {self.index.device})"
        )

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments of `models.create` that depend on the data: num_classes, mean and std."""
        return {"num_classes": len(self.classes), "mean": self.mean, "std": self.std}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images; of images that are resized at random, those of the first image."""
        height, width = self.sizes[0].tolist()
        return self.transform.size if isinstance(self.transform, RandomCrop) else (height, width)

    @property
    def augment(self) -> str:
        """The augmentation of the training batches as text, for the record of a run."""
        return repr(self.transform)

    @property
    def extent(self) -> str:
        """The sizes of the images as text."""
        return extent(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any annotation, row, class name, and pixel of images in memory.

        Of files that are decoded when needed, the names and the sizes in bytes count.
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

        Raises:
            InputError: there are fewer images.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"cannot draw {count} of {len(self)} images; give a number from 1 to {len(self)}")
        return torch.randperm(len(self), generator=runtime.generator(seed, "few", count))[:count].sort().values

    def few(self, count: int, seed: int = 0) -> DenseImages:
        """Return a random subset of `count` images, which is not stratified: an image has several classes."""
        return self.subset(self.draw(count, seed))

    def to(self, device: torch.device | str) -> DenseImages:
        """Return the same split on another device. Files are decoded on the CPU, and their batches moved."""

        def moved(given: Any) -> Any:
            return tuple(x.to(device) for x in given) if isinstance(given, tuple) else given

        return replace(
            self,
            images=moved(self.images),
            index=self.index.to(device),
            masks=moved(self.masks),
            objects=None if self.objects is None else self.objects.to(device),
        )

    def batch(self, rows: Tensor, view: Tensor | None = None, *keys: int) -> DenseBatch:
        """Return a batch. Images and annotations are functions of the data-set row and the view number.

        Args:
            rows: positions of the images in the split, shape [B].
            view: view number of each image, shape [B]; None for images without augmentation.
            keys: without effect here.
        """
        from torchvision import tv_tensors

        positions, device = rows.tolist(), self.index.device
        index = self.index[rows.to(device)]
        views = [-1] * len(positions) if view is None else view.tolist()
        pixels = fetch(self.images, positions)
        masks = fetch(self.masks, positions) if self.masks is not None else [None] * len(positions)
        results, objects = [], []
        for position, row, number, image, mask in zip(positions, index.tolist(), views, pixels, masks, strict=True):
            self._check_size(position, image)
            parts: dict[str, Tensor] = {"image": tv_tensors.Image(image)}
            if mask is not None:
                parts["mask"] = tv_tensors.Mask(mask)
            own = self.objects[position] if self.objects is not None else None
            if own is not None:
                size = (image.shape[1], image.shape[2])
                parts["boxes"] = tv_tensors.BoundingBoxes(own.boxes.to(image.device), format="XYXY", canvas_size=size)
                if own.masks is not None:
                    parts["objects"] = tv_tensors.Mask(own.masks)
            if view is not None:
                parts = self.transform(parts, self._fill, runtime.generator("dense view", row, number))
            parts = {name: part.as_subclass(Tensor).to(device) for name, part in parts.items()}
            results.append(parts)
            if own is not None:
                changed = replace(own, boxes=parts["boxes"], masks=parts.get("objects"))
                sides = changed.boxes[:, 2:] - changed.boxes[:, :2]
                # An object that the crop cut off, or that became smaller than a pixel, is no longer in the image.
                objects.append(changed if view is None else changed.select((sides >= 1).all(1)))
        return DenseBatch(
            _together([parts["image"].float().div_(255) for parts in results], self.transform),
            index,
            torch.full_like(index, -1) if view is None else view.to(device),
            _together([parts["mask"] for parts in results], self.transform) if self.masks is not None else None,
            tuple(objects),
            len(self.classes),
        )

    @property
    def _fill(self) -> dict[str, Any]:
        """Values of pixels outside the image: the mean colour, which is 0 after the normalisation, and `ignored`."""
        return {"image": [round(255 * m) for m in self.mean], "mask": self.ignored}

    def _check_size(self, position: int, image: Tensor) -> None:
        height, width = self.sizes[position].tolist()
        if image.shape[1:] != (height, width):
            item = self.images.items[position] if isinstance(self.images, Decoded) else f"image {position}"
            raise InputError(
                f"{item} has {image.shape[2]}×{image.shape[1]} pixels, but its annotation is of {width}×{height}; "
                "restore the image or correct the annotation"
            )


def _together(tensors: list[Tensor], transform: RandomCrop | RandomResize) -> Tensor | tuple[Tensor, ...]:
    """Stack the images or masks of a batch for segmentation if they have one size."""
    if isinstance(transform, RandomResize) or len({x.shape for x in tensors}) != 1:
        return tuple(tensors)
    stacked = torch.stack(tensors)
    return stacked.contiguous(memory_format=torch.channels_last) if stacked.ndim == 4 else stacked
