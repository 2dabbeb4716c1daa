"""The section of a page about segmentation or detection: the images with the most mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import plots, training
from ickd_lib.data import DenseImages, Splits
from ickd_lib.explore import detection, segmentation
from ickd_lib.pages.html import Markup, figure, plain, section
from ickd_lib.pages.networks import Row, images_of
from ickd_lib.runs.seeds import method_of, task_of
from ickd_lib.runtime import InputError

SHOWN = 4  # number of images
SEARCHED = 200  # number of images among which they are chosen
NETWORKS = 2  # largest number of networks


def mistakes(chosen: dict[str, Row], splits: Splits, baseline: str = "", *, precision: str = "auto") -> Markup:
    """Return the section with the images on which the best network makes most mistakes.

    They are validation images if the runs held these out of train, otherwise test images.

    Each image is shown with its labels, and with the predictions of the best network and of another one.

    Args:
        chosen: the runs, from `networks.fitting`, all with run folders.
        splits: their data.
        baseline: the method of the other network; by default the second best.
        precision: "auto", "fp32" or "bf16".
    Raises:
        InputError: a network cannot be loaded, or its classes are not those of the data.
    """
    best, *others = chosen
    others = [name for name in others if method_of(chosen[name]) == baseline] or others
    task, every = task_of(chosen[best]), images_of(chosen[best], splits)
    task.check(every)
    images: DenseImages = every.subset(torch.arange(min(SEARCHED, len(every))))  # type: ignore[assignment]
    networks = {}
    for name in [best, *others][:NETWORKS]:
        networks[name] = training.load(chosen[name]["folder"], device=str(images.index.device))
        if networks[name].classes not in ((), images.classes):
            raise InputError(
                f"{images.name} has other classes than {chosen[name]['folder']}; give the data of this run, and the "
                "same options, such as --ignore"
            )
    find: Any = segmentation.predicted_masks if task.name == "segmentation" else detection.detected
    found = {best: find(networks[best], images, precision=precision)}
    if task.name == "segmentation":
        errors, of = segmentation.wrong_shares(found[best], images), "the largest share of wrong pixels"
    else:
        errors, of = detection.error_counts(found[best]), "most wrong detections and missed objects"
    rows = errors.argsort(descending=True, stable=True)[:SHOWN]
    some = images.subset(rows)
    found[best] = [found[best][row] for row in rows.tolist()]
    found |= {name: find(network, some, precision=precision) for name, network in networks.items() if name != best}
    drawn = _segmentations(some, found) if task.name == "segmentation" else _detections(some, found)
    text = f"Of {len(images):,} images of {images.name}, those on which {best} has {of}. " + (
        "Correct pixels are pale." if task.name == "segmentation" else "Detections have a score of 0.5 or more."
    )
    description = f"Images with labels, and the predictions of {', '.join(found)}"
    return section("Mistakes", text, figure(drawn, description, photographs=True))


def _segmentations(images: DenseImages, found: dict[str, Sequence[Tensor]]) -> Callable[[], Figure]:
    batches = [images.batch(torch.tensor([at])) for at in range(len(images))]
    masks = [batch.masks[0] for batch in batches if batch.masks is not None]
    pixels = [batch.images[0] for batch in batches]
    return partial(
        plots.segmentation.segmentations, pixels, masks, _by_name(found), plain(images.classes), titles=_rows(images)
    )


def _detections(images: DenseImages, found: dict[str, Sequence[detection.Found]]) -> Callable[[], Figure]:
    batch = images.batch(torch.arange(len(images)))
    pixels, objects = list(batch.images), batch.objects
    return partial(
        plots.detection.detections, pixels, objects, _by_name(found), plain(images.classes), titles=_rows(images)
    )


def _by_name(found: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(plain(list(found)), found.values(), strict=True))


def _rows(images: DenseImages) -> list[str]:
    return [f"row {row}" for row in images.index.tolist()]
