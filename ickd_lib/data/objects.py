"""Objects: boxes, classes and numbers of the annotations of an image, and of all images of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ickd_lib.data.joint import Geometry, moved
from ickd_lib.data.sequences import Decoded, fetch, select


@dataclass(frozen=True, eq=False, repr=False)
class Objects:
    """The n objects of one image.

    boxes: left, top, right and bottom edge in pixels, float32, shape [n, 4]; right and bottom lie outside the object,
        so that a box that covers an image of W×H pixels is (0, 0, W, H).
    labels: class of each object, a position in the list of classes, int64, shape [n].
    key: number of each annotation, unique and ascending within the split, int64, shape [n].
    crowd: whether an object is left out of the training and ignored by the metrics, as COCO's crowds and Pascal VOC's
        difficult objects are; bool, shape [n].
    masks: pixels of each object, bool, shape [n, h, w]; None where there are none.
    area: area of each object in square pixels of the image without augmentation, as stated in the data set, float64,
        shape [n]; None where only the boxes are known. Detection metrics sort objects into sizes by it.
    difficult: which of the objects in `crowd` are single objects, as Pascal VOC's difficult ones are, and not groups,
        as COCO's crowds are; bool, shape [n]; None if there are none. A detection is ignored if its intersection over
        union with a difficult object, or the share of its area inside a group, is large enough.
    """

    boxes: Tensor
    labels: Tensor
    key: Tensor
    crowd: Tensor
    masks: Tensor | None = None
    area: Tensor | None = None
    difficult: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Tensor:
        """Whether each object is a group such as a crowd of COCO, bool, shape [n]."""
        return self.crowd if self.difficult is None else self.crowd & ~self.difficult

    def __repr__(self) -> str:
        return f"Objects({len(self)}{', with masks' if self.masks is not None else ''})"

    def select(self, chosen: Tensor | slice) -> Objects:
        """Return the objects at the positions, or with True in the mask, `chosen`."""
        return self._map(lambda values: values[chosen])

    def to(self, device: torch.device | str) -> Objects:
        """Return the same objects on another device."""
        return self._map(lambda values: values.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Objects:
        return replace(self, **{name: function(values) for name, values in vars(self).items() if values is not None})


@dataclass(frozen=True)
class Moved:
    """Reads the masks of an image's objects as they are after the augmentation of the image.

    read: makes the masks [n, h, w] from an item.
    """

    read: Callable[[Any], Tensor]

    def __call__(self, item: tuple[Any, Geometry, list[int]]) -> Tensor:
        """Return the masks of an item, moved by a geometry, of the objects at some positions."""
        given, geometry, kept = item
        return geometry.labels(self.read(given)[kept], False)

    def __repr__(self) -> str:
        return "Moved"


@dataclass(frozen=True, eq=False, repr=False)
class SplitObjects:
    """The objects of the N images of a split. `objects[i]` are those of image i.

    flat: all M objects, image after image, without masks.
    counts: number of objects of each image, int64 on the CPU, shape [N].
    masks: the masks of each image's objects, N tensors of shape [n, h, w]; None where there are none.
    """

    flat: Objects
    counts: Tensor
    masks: tuple[Tensor, ...] | Decoded | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, i: int) -> Objects:
        end = self._ends[i]
        objects = self.flat.select(slice(end - int(self.counts[i]), end))
        return objects if self.masks is None else replace(objects, masks=self.masks[i].to(objects.boxes.device))

    def moved(self, geometries: Sequence[Geometry]) -> SplitObjects:
        """Return the objects as they are after the augmentation of each image.

        Objects of which less than a pixel is left in height or width are dropped. Masks that are decoded when they are
        needed are moved then.
        """
        image = torch.arange(len(self)).repeat_interleave(self.counts)
        boxes = moved(self.flat.boxes, image.to(self.flat.boxes.device), geometries)
        left = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        masks: tuple[Tensor, ...] | Decoded | None = None
        kept = left.split(self.counts.tolist())
        if isinstance(self.masks, Decoded):
            of_each = (one.nonzero().flatten().tolist() for one in kept)
            masks = Decoded(Moved(self.masks.read), tuple(zip(self.masks.items, geometries, of_each, strict=True)))
        elif self.masks is not None:
            each = zip(geometries, self.masks, kept, strict=True)
            masks = tuple(geometry.labels(mask, False)[one] for geometry, mask, one in each)
        counts = torch.bincount(image[left.cpu()], minlength=len(self))
        return SplitObjects(replace(self.flat, boxes=boxes).select(left), counts, masks)

    def per_image(self) -> tuple[Objects, ...]:
        """Return the objects of each image."""
        counts = self.counts.tolist()
        fields = [x.split(counts) for x in (self.flat.boxes, self.flat.labels, self.flat.key, self.flat.crowd)]
        none = [None] * len(self)
        area, difficult = (
            none if values is None else values.split(counts) for values in (self.flat.area, self.flat.difficult)
        )
        return tuple(map(Objects, *fields, self.masks or none, area, difficult))

    def __repr__(self) -> str:
        return f"SplitObjects({len(self.flat)} objects in {len(self)} images)"

    @cached_property
    def _ends(self) -> list[int]:
        return self.counts.cumsum(0).tolist()

    def subset(self, rows: Tensor) -> SplitObjects:
        """Return the objects of the images at the positions `rows`."""
        rows = rows.cpu()
        counts = self.counts[rows]
        first = (self.counts.cumsum(0) - self.counts)[rows]
        inside = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        chosen = first.repeat_interleave(counts) + inside
        masks = None if self.masks is None else select(self.masks, rows.tolist())
        return SplitObjects(self.flat.select(chosen.to(self.flat.labels.device)), counts, masks)

    def decoded(self) -> SplitObjects:
        """Return the same objects with all masks in the memory of their device."""
        if self.masks is None:
            return self
        return replace(self, masks=tuple(x.to(self.flat.boxes.device) for x in fetch(self.masks, range(len(self)))))

    def to(self, device: torch.device | str) -> SplitObjects:
        """Return the same objects on another device."""
        masks = tuple(x.to(device) for x in self.masks) if isinstance(self.masks, tuple) else self.masks
        return SplitObjects(self.flat.to(device), self.counts, masks)

    @property
    def values(self) -> tuple[Any, ...]:
        """All tensors, for a fingerprint."""
        flat = self.flat
        given = tuple(values for values in (flat.area, flat.difficult) if values is not None)
        return flat.boxes, flat.labels, flat.key, flat.crowd, *given, self.counts
