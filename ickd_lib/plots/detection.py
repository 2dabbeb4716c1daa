"""Pictures of detection: annotated boxes, proposals with their in-context samples, and detections."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ickd_lib.plots.pictures import tile
from ickd_lib.plots.style import OTHER, SAME, WIDTH, array

if TYPE_CHECKING:
    from ickd_lib.explore.detection import Found

CROWDED = 8  # smallest number of objects whose class names would cover too much of a small image
TRUTH, CHOSEN = "#fbe04b", "#d684bd"  # frames of annotated boxes, and of the proposal that is shown in detail


def boxes(images: Sequence[Any], objects: Sequence[Any], classes: Sequence[str]) -> Figure:
    """Draw images with their annotated boxes and the class of each box.

    Args:
        images: N images, floats in [0, 1], shape [3, h, w].
        objects: the objects of each image (`boxes` [n, 4] and `labels` [n]).
        classes: names of the C classes.
    """
    ratio = max(image.shape[1] / image.shape[2] for image in images)
    size = (WIDTH, WIDTH / len(images) * ratio + 0.1)
    figure, axes = plt.subplots(1, len(images), figsize=size, layout="constrained", squeeze=False)
    for axis, image, own in zip(axes[0], images, objects, strict=True):
        _image(axis, image)
        for box, label in zip(array(own.boxes), array(own.labels), strict=True):
            _box(axis, box, TRUTH, text=classes[label])
    return figure


def detections(
    images: Sequence[Any],
    objects: Sequence[Any],
    found: Mapping[str, Sequence[Found]],
    classes: Sequence[str],
    *,
    titles: Sequence[str] = (),
) -> Figure:
    """Draw a row for each image: the image with its annotated boxes, and the detections of each network.

    Solid blue frames are correct detections, dashed orange frames are wrong ones, and dotted yellow frames are objects
    that were not found. The class is written at the frame of a detection, but in an image with many objects only if the
    detection is wrong. The numbers of each kind are written below the image.

    Args:
        images: N images, floats in [0, 1], shape [3, h, w].
        objects: the objects of each image.
        found: for each network, the detections in each image (`explore.detection.compared`).
        classes: names of the C classes.
        titles: a text for each row.
    """
    columns = 1 + len(found)
    ratio = max(image.shape[1] / image.shape[2] for image in images)
    size = (WIDTH, len(images) * (WIDTH / columns * ratio + 0.3) + 0.8)
    figure, axes = plt.subplots(len(images), columns, figsize=size, layout="constrained", squeeze=False)
    for row, (line, image, own) in enumerate(zip(axes, images, objects, strict=True)):
        _image(line[0], image)
        crowded = len(own.boxes) >= CROWDED
        for box, label in zip(array(own.boxes), array(own.labels), strict=True):
            _box(line[0], box, TRUTH, text="" if crowded else classes[label])
        for axis, detected in zip(line[1:], found.values(), strict=True):
            _image(axis, image)
            one = detected[row]
            for box in array(one.missed):
                _box(axis, box, TRUTH, line=":")
            for box, label, correct in zip(*map(array, (one.boxes, one.labels, one.correct)), strict=True):
                text = "" if crowded and correct else classes[label]
                _box(axis, box, SAME if correct else OTHER, line="-" if correct else "--", text=text)
            right, wrong, missed = int(one.correct.sum()), int((~one.correct).sum()), len(one.missed)
            axis.set_xlabel(f"{right} right, {wrong} wrong,\n{missed} missed", fontsize=7.5, labelpad=2)
        if titles:
            line[0].set_ylabel(textwrap.fill(titles[row], 24), fontsize=8)
    for axis, name in zip(axes[0], ["annotated", *found], strict=True):
        axis.set_title(textwrap.fill(name, 20), fontsize=8)
    looks = ((TRUTH, "-", "annotated"), (SAME, "-", "correct"), (OTHER, "--", "wrong"), (TRUTH, ":", "missed"))
    lines = [Line2D([], [], color=colour, ls=style, lw=2, label=label) for colour, style, label in looks]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, handlelength=2.5)
    return figure


def proposals(
    image: Any, boxes: Any, labels: Any, chosen: int, pictures: Any, texts: Sequence[str], *, positives: int
) -> Figure:
    """Draw an image with a student's proposals, and the boxes that are retrieved for one of them.

    Proposals on an object have blue frames. Those on the background have thin frames, which are white, or black on a
    bright image.

    Args:
        image: floats in [0, 1], shape [3, h, w].
        boxes: the proposals, shape [n, 4].
        labels: target of each proposal, 0 for the background, shape [n].
        chosen: position of the proposal that is shown in detail.
        pictures: the chosen proposal's annotated box, its positives and its negatives, uint8, shape [m, 3, h, w].
        texts: a text below each picture.
        positives: number of positives.
    """
    boxes, labels, pictures = array(boxes), array(labels), array(pictures)
    figure = plt.figure(figsize=(WIDTH, 4.4))
    left, rows = figure.add_axes((0.01, 0.02, 0.39, 0.88)), figure.add_axes((0.42, 0, 0.58, 1))
    _image(left, image)
    count = int((labels > 0).sum())
    left.set_title(f"{len(boxes)} proposals, {count} of them on an object (blue)", fontsize=10)
    thin = "black" if array(image).mean() > 0.5 else "white"
    for box in boxes[labels == 0]:
        _box(left, box, thin, width=0.5)
    for box in boxes[labels > 0]:
        _box(left, box, SAME, width=1.8)
    _box(left, boxes[chosen], CHOSEN, width=3)
    across, step, line = 4, 1.1, 1.4  # in sides of a picture
    tile(rows, pictures[0], 0, 0.95, CHOSEN, texts[0])
    top = 0.35
    for name, kind, colour in (
        ("positives: annotated boxes of its class, nearest first", range(1, 1 + positives), SAME),
        ("negatives: boxes of other classes, nearest first", range(1 + positives, len(pictures)), OTHER),
    ):
        rows.text(1.35, top - 0.08, name, color=colour, fontsize=10, weight="bold")
        for i, j in enumerate(list(kind)[:across]):
            tile(rows, pictures[j], 1.35 + i * step, top, colour, texts[j])
        top += line + 0.25
    rows.text(0, 0.87, "its object", color=CHOSEN, fontsize=10, weight="bold")
    rows.set(xlim=(-0.05, 1.35 + across * step), ylim=(top + 0.1, -0.1), aspect="equal")
    rows.set_axis_off()
    return figure


def _image(axis: Axes, image: Any) -> None:
    pixels = array(image).transpose(1, 2, 0)
    axis.imshow(pixels)
    axis.set(xticks=[], yticks=[], xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))
    axis.spines[:].set(visible=True, color="0.6", linewidth=0.6)


def _box(axis: Axes, box: Any, colour: Any, *, line: str = "-", width: float = 1.6, text: str = "") -> None:
    """Draw a box, given by its edges, and a text at its upper left corner."""
    left, top, right, bottom = (float(edge) - 0.5 for edge in box)  # the first pixel reaches from -0.5 to 0.5
    look: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": width, "linestyle": line}
    if colour == TRUTH:
        look["path_effects"] = [withStroke(linewidth=width + 1.2, foreground="0.25")]  # to be seen on bright images
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, **look))
    if text:
        face = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
        ink = "black" if colour == TRUTH else "white"
        top = max(top, 0.04 * axis.get_ylim()[0])  # so that the text is inside the image
        axis.text(left, top, text, color=ink, fontsize=6.5, va="center", ha="left", bbox=face, clip_on=True)
