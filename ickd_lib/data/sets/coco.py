"""Data in the layout of COCO (Lin et al. 2014, arXiv 1405.0312), with boxes and optionally object masks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.dense import check_sizes
from ickd_lib.data.images import Splits
from ickd_lib.data.joint import RandomResize
from ickd_lib.data.objects import SplitObjects
from ickd_lib.data.pillow import image_files
from ickd_lib.data.sequences import Decoded
from ickd_lib.data.sets.annotated import Annotation, DenseDataSet, Part, check_apart, files, is_small, sizes_of
from ickd_lib.data.sets.base import register
from ickd_lib.data.sets.voc import LONGEST, SIZES
from ickd_lib.runtime import InputError


@register("coco")
class Coco(DenseDataSet):
    """Images in PATH/train2017/ and PATH/val2017/, annotations in PATH/annotations/instances_train2017.json and so on.

    The folders of images may also be in PATH/images/, and the names may end in another year or in none. The split val
    is the test split, unless there are annotations of a split test. Images without objects are kept. The classes are
    the categories in the order of their ids. With the annotations "instances", the objects have masks, which are
    decoded by pycocotools when they are needed.
    """

    options = frozenset({"path", "annotations", "image_size", "stream"})
    kinds = ("boxes", "instances")

    def read(self) -> Splits:
        if self.annotations == "instances":
            _pycocotools()
        paths = self._paths()
        contents = {split: _read(path) for split, path in paths.items()}
        categories = contents["train"].categories
        for split, path in paths.items():
            if contents[split].categories != categories:
                raise InputError(f"{path} has other categories than {paths['train']}; use the same in both")
        images = {split: self._images(path, contents[split]) for split, path in paths.items()}
        check_apart(images, published=True)
        classes = tuple(categories.values())
        sizes = {
            split: torch.tensor([(image["height"], image["width"]) for image in content.images]).view(-1, 2)
            for split, content in contents.items()
        }
        if self.stream or not is_small(list(sizes.values())):  # otherwise `dense` decodes and compares all images
            for split, given in images.items():
                check_sizes(sizes_of(given, split).tolist(), sizes[split].tolist(), given)
        parts = {
            split: Part(
                files(images[split]),
                sizes[split],
                objects=self._objects(split, content, sizes[split], classes, paths[split]),
            )
            for split, content in contents.items()
        }
        return self.dense(parts, classes, RandomResize(SIZES, LONGEST))

    def _paths(self) -> dict[str, Path]:
        """Return the file of annotations of each split."""
        folder = self.path / "annotations"
        found: dict[str, Path] = {}
        for split in ("train", "val", "test"):
            paths = sorted(folder.glob(f"instances_{split}*.json"))
            if len(paths) > 1:
                raise InputError(f"{folder} has {len(paths)} files instances_{split}*.json; leave one of them there")
            if paths:
                found[split] = paths[0]
        if "train" not in found or len(found) == 1:
            raise InputError(
                f"{folder} lacks instances_train*.json, or both instances_val*.json and instances_test*.json; add them"
            )
        if "test" not in found:
            found["test"] = found.pop("val")
        return found

    def _images(self, path: Path, content: _Content) -> list[Path]:
        name = path.stem.removeprefix("instances_")
        folder = next((f for f in (self.path / "images" / name, self.path / name) if f.is_dir()), None)
        if folder is None:
            raise InputError(f"{self.path} has no folder {name}/ or images/{name}/ for the images of {path}; add it")
        images = [folder / image["file_name"] for image in content.images]
        for image in images:
            if not image.exists():
                raise InputError(f"{path} has annotations of {image}, which does not exist; add the image")
        others = sorted(set(image_files(folder)) - set(images))
        if others:
            runtime.notice(f"{len(others)} images are not in {path} and are left out, such as {others[0]}")
        return images

    def _objects(
        self, split: str, content: _Content, sizes: Tensor, classes: Sequence[str], source: Path
    ) -> SplitObjects:
        label = {category: c for c, category in enumerate(content.categories)}
        position = {image["id"]: i for i, image in enumerate(content.images)}
        given = sorted(content.annotations, key=lambda one: position[one["image_id"]])
        annotations = []
        for one in given:
            x, y, width, height = one["bbox"]
            box = (x, y, x + width, y + height)
            annotations.append(
                Annotation(position[one["image_id"]], label[one["category_id"]], box, bool(one.get("iscrowd")))
            )
        objects, kept = self.objects(
            split, annotations, sizes, classes, source, lambda k: f"annotation {given[k]['id']}"
        )
        flat = replace(objects.flat, area=torch.tensor([_area(given[k]) for k in kept], dtype=torch.float64))
        if self.annotations == "boxes":
            return replace(objects, flat=flat)
        outlines = iter(given[k].get("segmentation") for k in kept)
        items = tuple(
            ([next(outlines) for _ in range(count)], size)
            for count, size in zip(objects.counts.tolist(), sizes.tolist(), strict=True)
        )
        return SplitObjects(flat, objects.counts, Decoded(_object_masks, items))


class _Content(NamedTuple):
    """A checked file: images in the order of their ids, annotations, and names of the categories by ascending id."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[int, str]


def _read(path: Path) -> _Content:
    """Read a file of annotations.

    Raises:
        InputError: it is not JSON, something is missing in it or is no number, or an annotation has an unknown image or
            category.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); restore it") from None
    fields = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for part, names in fields.items():
        entries = content.get(part) if isinstance(content, Mapping) else None
        if not isinstance(entries, list):
            raise InputError(f"{path} has no list {part!r}; expected a file of COCO's instances")
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise InputError(f"{path}: an entry of {part!r} is {str(entry)[:80]}; expected a JSON object")
            missing = [name for name in names if name not in entry]
            if missing:
                raise InputError(f"{path}: an entry of {part!r} has no {missing[0]!r}: {str(entry)[:80]}; correct it")
        if entries and {type(entry["id"]) for entry in entries} not in ({int}, {str}):
            raise InputError(f"{path}: not all ids of {part!r} are numbers, or not all are texts; correct them")
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            raise InputError(f"{path}: image {image['id']} has the file_name {image['file_name']!r}; expected a text")
    for part in ("images", "categories"):
        often = Counter(entry["id"] for entry in content[part])
        if twice := [number for number, count in often.items() if count > 1]:
            raise InputError(f"{path}: several entries of {part!r} have the id {twice[0]}; correct it")
    for image in content["images"]:
        for side in ("height", "width"):
            length = image[side]
            if not isinstance(length, (int, float)) or not 0 < length < 2**31 or length != int(length):
                raise InputError(
                    f"{path}: image {image['id']} has the {side} {length!r}; expected a whole number above 0"
                )
            image[side] = int(length)
    categories = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
    images = {image["id"] for image in content["images"]}
    for one in content["annotations"]:
        for field, known in (("image_id", images), ("category_id", categories)):
            if not isinstance(one[field], (int, str)) or one[field] not in known:
                raise InputError(f"{path}: annotation {one['id']} has the unknown {field} {one[field]}; correct it")
        if not isinstance(one["bbox"], list) or [isinstance(x, (int, float)) for x in one["bbox"]] != [True] * 4:
            raise InputError(f"{path}: annotation {one['id']} has the bbox {one['bbox']}; expected four numbers")
        area = one.get("area")
        if area is not None and not (isinstance(area, (int, float)) and math.isfinite(area)):
            raise InputError(f"{path}: annotation {one['id']} has the area {area!r}; expected a number, or none")
    return _Content(sorted(content["images"], key=lambda image: image["id"]), content["annotations"], categories)


def _area(annotation: Mapping[str, Any]) -> float:
    """Return the area that an annotation states, which is that of the outline in COCO; without one, that of the box."""
    area = annotation.get("area")
    return annotation["bbox"][2] * annotation["bbox"][3] if area is None else area


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError("annotations='instances' needs pycocotools; run pip install pycocotools") from None
    return mask


def _object_masks(item: tuple[list[Any], list[int]]) -> Tensor:
    """Return the pixels of each object, bool [n, h, w], from n outlines: polygons, or run lengths."""
    outlines, (height, width) = item
    mask = _pycocotools()
    pixels = np.zeros((len(outlines), height, width), dtype=bool)
    for i, outline in enumerate(outlines):
        if outline and not isinstance(outline, Mapping):
            outline = mask.merge(mask.frPyObjects(outline, height, width))
        elif outline and isinstance(outline["counts"], list):
            outline = mask.frPyObjects(outline, height, width)
        if outline:
            pixels[i] = mask.decode(outline)
    return torch.from_numpy(pixels)
