"""Images with masks or objects that are resized once, when a data set is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.dense import IGNORED, DenseImages
from ickd_lib.data.joint import Geometry, RandomCrop, RandomResize, enlargement
from ickd_lib.data.sequences import Decoded


@dataclass(frozen=True)
class Resized:
    """Reads an image or a mask, and resizes it so that its shorter side has `shorter` pixels.

    read: makes the image [3, h, w] or the mask [h, w] from an item.
    """

    read: Callable[[Any], Tensor]
    shorter: int

    def __call__(self, item: Any) -> Tensor:
        tensor = self.read(item)
        return _resized(tensor, enlargement(tensor.shape[-2], tensor.shape[-1], self.shorter))

    def __repr__(self) -> str:
        return f"Resized({self.shorter})"


def resized(images: DenseImages, shorter: int) -> DenseImages:
    """Return a split whose images have a shorter side of `shorter` pixels, with their masks and objects.

    The sizes of the augmentation are multiplied by the median factor of the images. Objects of which less than a pixel
    is left in height or width are left out, and a note states their number.
    """
    if not len(images):
        return images
    geometries = [enlargement(height, width, shorter) for height, width in images.sizes.tolist()]
    objects = images.objects
    if objects is not None:
        if objects.flat.area is not None:
            factors = torch.tensor([g.size[0] * g.size[1] / (g.height * g.width) for g in geometries])
            area = objects.flat.area * factors.to(objects.flat.area).repeat_interleave(objects.counts)
            objects = replace(objects, flat=replace(objects.flat, area=area))
        before, objects = len(objects.flat), objects.moved(geometries)
        if dropped := before - len(objects.flat):
            runtime.notice(
                f"{images.name}: {dropped} of {before} objects are left out, because with image_size={shorter} less "
                "than a pixel of their height or width is left"
            )
    return replace(
        images,
        images=_all(images.images, geometries, shorter),
        sizes=torch.tensor([g.size for g in geometries]).view(-1, 2),
        masks=None if images.masks is None else _all(images.masks, geometries, shorter),
        objects=objects,
        transform=_scaled(images.transform, shorter, int(images.sizes.min(1).values.median())),
    )


def _all(
    tensors: tuple[Tensor, ...] | Decoded, geometries: Sequence[Geometry], shorter: int
) -> tuple[Tensor, ...] | Decoded:
    """Resize images or masks in memory; those of files when they are read."""
    if isinstance(tensors, Decoded):
        return Decoded(Resized(tensors.read, shorter), tensors.items)
    return tuple(map(_resized, tensors, geometries))


def _resized(tensor: Tensor, geometry: Geometry) -> Tensor:
    return geometry.pixels(tensor, (0, 0, 0)) if tensor.ndim == 3 else geometry.labels(tensor, IGNORED)


def _scaled(transform: RandomCrop | RandomResize, shorter: int, before: int) -> RandomCrop | RandomResize:
    """Return the augmentation for images whose shorter side was `before` and is `shorter`."""
    if isinstance(transform, RandomCrop):
        factor = shorter / before
        return replace(transform, size=(round(transform.size[0] * factor), round(transform.size[1] * factor)))
    factor = shorter / transform.sizes[len(transform.sizes) // 2]
    return replace(
        transform,
        sizes=tuple(round(one * factor) for one in transform.sizes),
        longest=round(transform.longest * factor),
    )
