"""Scenes of several handwritten digits, drawn from scikit-learn's digits, with class masks, boxes and object masks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ickd_lib.data.images import Images, Splits
from ickd_lib.data.joint import RandomCrop, RandomResize
from ickd_lib.data.objects import Objects, SplitObjects
from ickd_lib.data.sets.annotated import DenseDataSet, Part
from ickd_lib.data.sets.base import register
from ickd_lib.data.sets.digits import Digits
from ickd_lib.data.sets.drawing import SIDE, Random, scene

SCENES = {"train": 800, "val": 100, "test": 200}
HELD_OUT = 120  # training digits that only the validation scenes use
SCALE = (0.8, 1.25)  # of the training views; digits are not mirrored


@register("scenes")
class Scenes(DenseDataSet):
    """1,100 scenes of 96×96 pixels with one to six digits each, drawn from scikit-learn's digits.

    The digits vary in size, place, colour and slant, and may overlap. The splits share no digit: training and
    validation scenes use the training split of `digits`, test scenes its test split. With the annotations "masks", the
    images have class masks, and the classes are the background and the ten digits. With "boxes" and "instances", they
    have objects, with "instances" also a mask of each object, and the classes are the ten digits. The images are the
    same in all cases. A box encloses the visible pixels of a digit.
    """

    options = frozenset({"annotations"})
    kinds = ("masks", "boxes", "instances")

    def read(self) -> Splits:
        digits = Digits().read().train.classes
        parts = {}
        for split, drawn in _all_scenes().items():
            sizes = torch.full((len(drawn.images), 2), SIDE)
            counts = torch.tensor([int(owner.max()) for owner in drawn.owners])
            if self.annotations == "masks":
                masks = tuple(map(_class_mask, drawn.owners, drawn.labels.split(counts.tolist())))
                parts[split] = Part(drawn.images, sizes, masks)
            else:
                n = len(drawn.labels)
                flat = Objects(drawn.boxes, drawn.labels, torch.arange(n), torch.zeros(n, dtype=torch.bool))
                pixels = tuple(map(_object_masks, drawn.owners)) if self.annotations == "instances" else None
                parts[split] = Part(drawn.images, sizes, objects=SplitObjects(flat, counts, pixels))
        if self.annotations == "masks":
            return self.dense(parts, ("background", *digits), RandomCrop((SIDE, SIDE), SCALE, flip=False))
        return self.dense(parts, digits, RandomResize((80, 88, 96, 104, 112), 112, flip=False))


class _Drawn(NamedTuple):
    """The scenes of a split: images, the object at each pixel, and digit and box of each object in turn."""

    images: tuple[Tensor, ...]
    owners: tuple[Tensor, ...]
    labels: Tensor
    boxes: Tensor


@lru_cache
def _all_scenes() -> dict[str, _Drawn]:
    """Draw the scenes of all splits, once per process."""
    train, _, test = Digits().read()
    held_out = train.draw(HELD_OUT)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[held_out] = False
    used = {"train": train.subset(rest.nonzero().squeeze(1)), "val": train.subset(held_out), "test": test}
    return {split: _draw(digits, SCENES[split], 10_000 * n) for n, (split, digits) in enumerate(used.items())}


def _draw(digits: Images, count: int, seed: int) -> _Drawn:
    """Draw `count` scenes of the given digits; scene i is a function of the digits and `seed` + i."""
    levels = ((digits.images[:, 0].int() * 16 + 127) // 255).numpy()  # the 17 levels of scikit-learn's images
    images, owners, chosen, boxes = [], [], [], []
    for i in range(count):
        pixels, owner, positions = scene(levels, Random(seed + i))
        images.append(torch.from_numpy(pixels))
        owners.append(torch.from_numpy(owner))
        chosen += positions
        for number in range(1, len(positions) + 1):
            y, x = np.nonzero(owner == number)
            boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return _Drawn(
        tuple(images), tuple(owners), digits.labels[chosen], torch.from_numpy(np.array(boxes, dtype=np.float32))
    )


def _class_mask(owner: Tensor, labels: Tensor) -> Tensor:
    """Return the class of each pixel, uint8 [h, w]: 0 for the background, one more than `labels` [n] for an object."""
    return torch.cat([labels.new_zeros(1), labels + 1]).to(torch.uint8)[owner.long()]


def _object_masks(owner: Tensor) -> Tensor:
    """Return the pixels of each object, bool [n, h, w]."""
    return owner == torch.arange(1, int(owner.max()) + 1, dtype=torch.uint8)[:, None, None]
