"""Metrics of detection: COCO's average precision, which pycocotools computes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ickd_lib.data import Objects
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.models import Detections

# Positions in the twelve numbers of pycocotools' summary.
SUMMARY = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "recall": 8}


def detection(found: Sequence[Detections], objects: Sequence[Objects], classes: Sequence[str]) -> dict[str, float]:
    """Compute COCO's average precision (AP; Lin et al. 2014, arXiv 1405.0312) of the boxes of N images.

    All numbers are those of pycocotools. In each image, only the 100 detections of each class with the highest scores
    are used. Objects in `crowd` are neither found nor missed: a detection that is matched to one is ignored. It is
    matched to a group by the share of its area that lies inside, and to one of Pascal VOC's difficult objects by the
    intersection over union, as to any other object. Any number of detections can be matched to either.

    Objects are sorted into sizes by their `area` or, where this is None, by the area of their box. The objects of
    `coco:PATH` have the areas of the annotations, which are those of the outlines. Detections that match no object are
    sorted by the area of their box.

    Args:
        found: the detections of each image.
        objects: the objects of each image, which may be none.
        classes: names of the C classes.
    Returns:
        ap: AP averaged over classes and over the IoU thresholds 0.5, 0.55, …, 0.95.
        ap50, ap75: the same for the threshold 0.5 or 0.75 alone.
        ap_small, ap_medium, ap_large: `ap` of objects of at most 32², of 32² to 96², and of more square pixels.
        recall: share of the objects that are found, averaged over classes and IoU thresholds.
        ap_NAME: `ap` of the class NAME, for each class with objects. A class whose name is small, medium or large has
            no number of its own.

        Sizes and classes without objects are left out.
    Raises:
        InputError: pycocotools is not installed; the numbers of images differ; a label is not one of the classes; or no
            image has an object that is not a crowd.
    """
    require_pycocotools()
    if len(found) != len(objects):
        raise InputError(
            f"there are detections of {len(found)} images and objects of {len(objects)}; give both of the same images"
        )
    _check_labels("detections", [x.labels for x in found], classes)
    _check_labels("objects", [x.labels for x in objects], classes)
    if all(bool(x.crowd.all()) for x in objects):
        raise InputError(f"none of the {len(objects)} images has an object to be found; give images with objects")

    annotated, predicted = [], []
    for image, (own, given) in enumerate(zip(objects, found, strict=True)):
        area = None if own.area is None else own.area.tolist()
        flags = own.crowd.tolist(), own.groups.tolist()
        for one, crowd, group in zip(_entries(image, own.boxes, own.labels, area), *flags, strict=True):
            annotated.append(one | {"iscrowd": int(crowd), "group": int(group)})
        for one, score in zip(_entries(image, given.boxes, given.labels), given.scores.tolist(), strict=True):
            predicted.append(one | {"score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(*(_coco(entries, len(objects), classes) for entries in (annotated, predicted)))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    # The dimensions are thresholds, recalls, classes, sizes (the first is for all) and largest numbers of detections
    # (the last is 100). The values of a class without objects are -1.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {f"ap_{name}": float(precision[:, :, c].mean()) for c, name in enumerate(classes)}
    overall = {name: float(evaluation.stats[position]) for name, position in SUMMARY.items()}
    present = {name: value for name, value in (per_class | overall).items() if value >= 0}
    return {name: present[name] for name in [*overall, *per_class] if name in present}


def require_pycocotools() -> None:
    """Raise an InputError if pycocotools is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise InputError("detection metrics need pycocotools; run pip install pycocotools") from None


def _evaluation(truth: Any, results: Any) -> Any:
    """Return pycocotools' evaluation of results, in which `group` states what is compared as a crowd.

    Entries with `iscrowd` are ignored, and several detections can be matched to one of them. For those that are no
    group, the intersection is divided by the union, as for objects that count.
    """
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):  # type: ignore[misc]
        def computeIoU(self, image: int, category: int) -> Any:
            entries = self._gts[image, category]
            given = [entry["iscrowd"] for entry in entries]
            for entry in entries:
                entry["iscrowd"] = entry["group"]
            overlaps = super().computeIoU(image, category)
            for entry, crowd in zip(entries, given, strict=True):
                entry["iscrowd"] = crowd
            return overlaps

    return Evaluation(truth, results, "bbox")


def _check_labels(what: str, labels: Sequence[Tensor], classes: Sequence[str]) -> None:
    every = torch.cat(list(labels)) if labels else torch.zeros(0)
    if len(every) and not 0 <= every.min() <= every.max() < len(classes):
        raise InputError(
            f"the labels of the {what} are from {every.min()} to {every.max()}; expected 0 to {len(classes) - 1}"
        )


def _entries(image: int, boxes: Tensor, labels: Tensor, area: list[float] | None = None) -> list[dict[str, Any]]:
    """Return boxes [n, 4] with labels [n] as COCO's annotations; without `area` it is that of the boxes."""
    boxes = boxes.double()  # as in COCO's files; differences of float32 values are exact in it
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = torch.cat([boxes[:, :2], sides], 1)
    return [
        {"image_id": image, "category_id": label, "bbox": box, "area": size}
        for label, box, size in zip(labels.tolist(), boxes.tolist(), area or sides.prod(1).tolist(), strict=True)
    ]


def _coco(entries: list[dict[str, Any]], images: int, classes: Sequence[str]) -> Any:
    """Return entries as pycocotools' COCO. Their ids count from 1, because it takes an id of 0 for no match."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "annotations": [entry | {"id": number} for number, entry in enumerate(entries, 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes)],
    }
    coco.createIndex()
    return coco
