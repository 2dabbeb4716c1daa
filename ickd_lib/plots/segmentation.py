"""Pictures of segmentation: images beside the class of each pixel, as it is labelled and as it is predicted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from ickd_lib.plots.style import PALETTE, WIDTH, array

IGNORED = 255  # the class of ignored pixels
BACKGROUND, INDIGO = (0.25, 0.25, 0.25), (0.2, 0.13, 0.53)
COLOURS = [INDIGO if i == 7 else colour for i, colour in enumerate(PALETTE)]  # without the palette's grey
PALE = 0.72  # share of white in the colour of correct pixels
NAMED = 0.006  # smallest region in which the name of its class is written, as a share of the image
LONGEST = 3  # largest number of letters of a name that is written in a picture


def mask_colours(classes: Sequence[str]) -> np.ndarray:
    """Return a colour for each class: dark grey for a class named background, and shades from the eleventh colour on.

    Args:
        classes: names of the C classes.
    Returns:
        Red, green and blue in [0, 1], shape [C, 3].
    """
    found, number = [], 0
    for name in classes:
        if name == "background":
            found.append(BACKGROUND)
            continue
        colour, turn = np.array(COLOURS[number % 10]), number // 10
        found.append(tuple(colour if not turn else 0.5 * colour if turn % 2 else 0.5 + 0.5 * colour))
        number += 1
    return np.array(found)


def masks(images: Sequence[Any], masks: Sequence[Any], classes: Sequence[str]) -> Figure:
    """Draw images above their class masks.

    Args:
        images: N images, floats in [0, 1], shape [3, h, w].
        masks: the class of each pixel, shape [h, w]; 255 for pixels that are ignored, which are white.
        classes: names of the C classes.
    """
    ratio = array(images[0]).shape[1] / array(images[0]).shape[2]
    height = 2 * WIDTH / len(images) * ratio + 0.5
    figure, axes = plt.subplots(2, len(images), figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for above, below, image, mask in zip(*axes, images, masks, strict=True):
        above.imshow(array(image).transpose(1, 2, 0))
        _draw(below, array(mask), classes)
        _name_regions(below, array(mask), classes)
    for axis in axes.flat:
        _frame(axis)
    _legend(figure, classes, masks)
    return figure


def segmentations(
    images: Sequence[Any],
    masks: Sequence[Any],
    predicted: Mapping[str, Sequence[Any]],
    classes: Sequence[str],
    *,
    titles: Sequence[str] = (),
) -> Figure:
    """Draw a row for each image: the image, its class mask, and the prediction of each network.

    In a prediction, correctly classified pixels are pale, and wrong pixels have the full colour of the class that is
    predicted. The share of wrong pixels is written below each prediction.

    Args:
        images: N images, floats in [0, 1], shape [3, h, w].
        masks: the class of each pixel, shape [h, w]; 255 for pixels that are ignored, which are white.
        predicted: for each network, the predicted class of each pixel of the N images, shape [h, w] each.
        classes: names of the C classes.
        titles: a text for each row.
    """
    columns = 2 + len(predicted)
    ratio = array(images[0]).shape[1] / array(images[0]).shape[2]
    size = (WIDTH, len(images) * (WIDTH / columns * ratio + 0.22) + 1.0)
    figure, axes = plt.subplots(len(images), columns, figsize=size, layout="constrained", squeeze=False)
    for row, (line, image, mask) in enumerate(zip(axes, images, masks, strict=True)):
        truth = array(mask)
        line[0].imshow(array(image).transpose(1, 2, 0))
        _draw(line[1], truth, classes)
        _name_regions(line[1], truth, classes)
        for axis, found in zip(line[2:], predicted.values(), strict=True):
            guess = array(found[row])
            valid = truth != IGNORED
            wrong = valid & (guess != truth)
            _draw(axis, np.where(valid, guess, IGNORED), classes, pale=valid & ~wrong)
            _name_regions(axis, np.where(wrong, guess, IGNORED), classes)
            axis.set_xlabel(f"{wrong.sum() / max(1, valid.sum()):.1%} wrong", fontsize=8, labelpad=2)
        if titles:
            line[0].set_ylabel(textwrap.fill(titles[row], 20), fontsize=8)
    for axis, name in zip(axes[0], ["image", "labels", *predicted], strict=True):
        axis.set_title(textwrap.fill(name, 18), fontsize=8)
    for axis in axes.flat:
        _frame(axis)
    _legend(figure, classes, [*masks, *(one for found in predicted.values() for one in found)])
    return figure


def _draw(axis: Axes, mask: np.ndarray, classes: Sequence[str], pale: np.ndarray | None = None) -> None:
    """Draw a mask; pixels that are True in `pale` are mixed with white, and ignored ones are white."""
    table = np.ones((256, 3))
    table[: len(classes)] = mask_colours(classes)
    picture = table[mask.astype(int)]
    if pale is not None:
        picture[pale] = PALE + (1 - PALE) * picture[pale]
    axis.imshow(picture)


def _name_regions(axis: Axes, mask: np.ndarray, classes: Sequence[str]) -> None:
    """Write short names of classes into their larger connected regions, at the widest place of each."""
    from scipy import ndimage

    for c in np.unique(mask):
        if c == IGNORED or classes[c] == "background" or len(classes[c]) > LONGEST:
            continue
        parts, count = ndimage.label(mask == c)
        for part in range(1, count + 1):
            inside = np.pad(parts == part, 1)  # so that the border of the image counts as an edge
            if inside.sum() >= NAMED * mask.size:
                depth = ndimage.distance_transform_edt(inside)
                y, x = np.unravel_index(depth.argmax(), depth.shape)
                stroke = [withStroke(linewidth=1.5, foreground="0.1")]
                look: dict[str, Any] = {"color": "white", "fontsize": 8, "weight": "bold", "path_effects": stroke}
                axis.text(x - 1, y - 1, classes[c], ha="center", va="center", **look)


def _frame(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.6", linewidth=0.6)


def _legend(figure: Figure, classes: Sequence[str], masks: Sequence[Any]) -> None:
    """Add a legend of the classes that occur in some masks."""
    colours, present = mask_colours(classes), np.unique(np.concatenate([array(mask).ravel() for mask in masks]))
    patches = [Patch(color=colours[c], label=classes[c]) for c in present if c != IGNORED]
    if IGNORED in present:
        patches.append(Patch(facecolor="white", edgecolor="0.6", label="ignored"))
    figure.legend(handles=patches, loc="outside lower center", ncols=12, fontsize=8, handlelength=1, columnspacing=1.2)
