"""Pictures of samples: the images of each class, and queries beside their in-context samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ickd_lib.data import Images
from ickd_lib.memory import InContext
from ickd_lib.plots.style import OTHER, SAME, WIDTH, array

COLUMNS = 8  # tiles in a row


def neighbours(
    query: Images,
    query_row: int,
    rows: Images,
    positives: InContext,
    negatives: InContext,
    *,
    weights: Any = None,
    most: int = 16,
    title: str = "",
    name: str = "",
    image: Any = None,
    headings: tuple[str, str] = ("same class", "other classes"),
) -> Figure:
    """Draw a query beside its in-context samples, most similar first, each with its class and cosine to the query.

    Args:
        query: images that contain the query.
        query_row: data-set row of the query (its `index`).
        rows: images that contain all in-context samples. They are found by their data-set row.
        positives, negatives: in-context samples that were retrieved for this one query, [1, k] each.
        weights: weight of each positive in the aggregate, [1, k]; written below the positives.
        most: largest number of positives and of negatives that are drawn.
        title: text above the picture.
        name: text that identifies the query; its row by default.
        image: a picture of the whole image of the query, uint8, shape [3, h, w], drawn below the query; None for none.
        headings: texts above the positives and above the negatives.
    """
    shares = None if weights is None else array(weights)[0]
    groups = [(headings[0], positives, SAME, "-", shares), (headings[1], negatives, OTHER, "--", None)]
    shown = [(*group, array(group[1].mask)[0].nonzero()[0][:most]) for group in groups]
    lines = [max(1, -(-len(group[-1]) // COLUMNS)) for group in shown]
    # Lengths in tiles: left end of the first column, step between columns, text below a row, text above a group.
    first, step, below, gap = 2.5, 1.14, 0.54 if shares is None else 0.72, 0.38
    width, height = first + COLUMNS * step, max(sum(lines) * (1 + below) + 2 * gap, 3.2 if image is None else 5.6)
    above = 0.35 if title else 0.05
    # A layout engine and 40 pictures would be slow, so all tiles form one picture, and they and the texts have fixed
    # positions.
    figure = plt.figure(figsize=(WIDTH, WIDTH * (height + above) / (width + 0.05)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.text(width / 2, -0.1, title, ha="center", fontsize=11)
    zoom = -(-96 // max(query.size))
    pixels = zoom * max(query.size)  # a side of a tile
    canvas = np.full((round(height * pixels), round(width * pixels), 3), 255, np.uint8)

    at = int((array(query.index) == query_row).nonzero()[0][0])
    _paste(canvas, query, at, 0, gap * pixels, 2 * zoom)
    text = f"query, {name or f'row {query_row}'}\nclass {query.classes[int(query.labels[at])]}"
    _frame(axis, 0, gap, 2, "0.1", "-", text, 10)
    if image is not None:
        picture = array(image).transpose(1, 2, 0)
        down, across = (2 * side / max(picture.shape[:2]) for side in picture.shape[:2])
        upper = gap + 2.85
        axis.imshow(picture, extent=(0, across, upper + down, upper), interpolation="nearest", zorder=3)
        axis.text(across / 2, upper + down + 0.06, "its image", ha="center", va="top", fontsize=10)
    place = {int(row): i for i, row in enumerate(array(rows.index))}
    note, top = "cosine below each" + ("" if shares is None else ", then its weight w in the aggregate"), 0.0
    for (kind, found, colour, line, share, chosen), count in zip(shown, lines, strict=True):
        axis.text(first, top + gap - 0.1, f"{kind}, nearest first ({note})", fontsize=10, color=colour, weight="bold")
        for i, j in enumerate(chosen):
            at = place[int(found.index[0, j])]
            text = f"{rows.classes[int(rows.labels[at])]}\n{float(found.similarity[0, j]):.3f}"
            text += f"\nw {share[j]:.0%}" if share is not None else ""
            x, y = first + i % COLUMNS * step, top + gap + i // COLUMNS * (1 + below)
            _paste(canvas, rows, at, x * pixels, y * pixels, zoom)
            _frame(axis, x, y, 1, colour, line, text, 8)
        top, note = top + count * (1 + below) + gap, "cosine below each"
    axis.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest")
    axis.set(xlim=(-0.05, width), ylim=(height, -above), aspect="equal")
    axis.set_axis_off()
    return figure


def retrieved(pictures: Any, texts: Sequence[Sequence[str]], *, positives: int) -> Figure:
    """Draw a line for each query: the query, its positives and its negatives, each with a text below it.

    Args:
        pictures: of each query, its positives and its negatives, uint8, shape [Q, 1 + k, 3, h, w].
        texts: for each query the text below each picture; a picture without a text is left out.
        positives: number of positives.
    """
    pictures = array(pictures)
    negatives = pictures.shape[1] - 1 - positives
    step, gap, line = 1.08, 0.3, 1.45  # in sides of a picture
    starts = (0.0, step + gap, step * (1 + positives) + 2 * gap)
    width, height = starts[2] + negatives * step, 0.4 + len(pictures) * line
    figure = plt.figure(figsize=(WIDTH, WIDTH * height / width))
    axis = figure.add_axes((0, 0, 1, 1))
    colours = ["0.1", *[SAME] * positives, *[OTHER] * negatives]
    heads = ("query", "same class, nearest first", "other classes, nearest first")
    for x, head, colour in zip(starts, heads, ("0.1", SAME, OTHER), strict=True):
        axis.text(x, 0.2, head, color=colour, fontsize=10, weight="bold", va="center")
    columns = [
        0.0,
        *(starts[1] + i * step for i in range(positives)),
        *(starts[2] + i * step for i in range(negatives)),
    ]
    for row, (line_pictures, line_texts) in enumerate(zip(pictures, texts, strict=True)):
        for picture, text, x, colour in zip(line_pictures, line_texts, columns, colours, strict=True):
            if text:
                tile(axis, picture, x, 0.4 + row * line, colour, text)
    axis.set(xlim=(-0.05, width), ylim=(height, 0), aspect="equal")
    axis.set_axis_off()
    return figure


def tile(axis: Axes, picture: np.ndarray, x: float, y: float, colour: Any, text: str) -> None:
    """Draw a picture with a frame on the unit square whose upper left corner is (x, y), and a text below it.

    Args:
        axis: an axis whose y values grow downwards.
        picture: uint8, shape [3, h, w].
        x, y: the corner.
        colour: of frame and text.
        text: the text.
    """
    axis.imshow(picture.transpose(1, 2, 0), extent=(x, x + 1, y + 1, y), interpolation="nearest")
    axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=2))
    axis.text(x + 0.5, y + 1.05, text, color=colour, fontsize=8, ha="center", va="top", linespacing=1.1)


def samples(images: Images, *, classes: int = 10, each: int = 12) -> Figure:
    """Draw the first images of the first classes, one row for each class, and state if there are more classes.

    Args:
        images: the images to choose from.
        classes: largest number of classes.
        each: largest number of images of each class.
    """
    labels = array(images.labels)
    lines = [(name, (labels == c).nonzero()[0][:each]) for c, name in enumerate(images.classes[:classes])]
    across, zoom = max(1, *(len(found) for _, found in lines)), -(-64 // max(images.size))
    side = zoom * max(images.size)
    canvas = np.full((round(len(lines) * 1.1 * side), round(across * 1.1 * side), 3), 255, np.uint8)
    for i, (_, found) in enumerate(lines):
        for j, at in enumerate(found):
            _paste(canvas, images, int(at), j * 1.1 * side, i * 1.1 * side, zoom)
    figure, axis = plt.subplots(figsize=(0.45 * across + 1.2, 0.45 * len(lines)), layout="constrained")
    axis.imshow(canvas, extent=(0, across * 1.1, len(lines) * 1.1, 0), interpolation="nearest")
    axis.set_yticks([1.1 * i + 0.5 for i in range(len(lines))], [name for name, _ in lines])
    axis.set_xticks([])
    if len(images.classes) > len(lines):
        axis.set_xlabel(f"the first {len(lines)} of {len(images.classes)} classes")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    return figure


def _paste(canvas: np.ndarray, images: Images, at: int, x: float, y: float, zoom: int) -> None:
    """Copy an image to the position (x, y) of the canvas, enlarged by the factor `zoom`."""
    picture = array(images.shown(slice(at, at + 1))[0].permute(1, 2, 0)).repeat(zoom, 0).repeat(zoom, 1)
    left, top = round(x), round(y)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def _frame(axis: Axes, x: float, y: float, size: float, colour: Any, line: str, text: str, font: float) -> None:
    axis.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=colour, linewidth=1.8, linestyle=line))
    axis.text(x + size / 2, y + size + 0.06, text, ha="center", va="top", fontsize=font, linespacing=1.1)
