"""Figures of the logit space: maps of samples, correlations of classes, and measures of class separation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ickd_lib.plots.style import (
    REST,
    WIDTH,
    array,
    by_superclass,
    class_colours,
    mean_and_std,
    mean_std_text,
    method_style,
)

COLUMNS = 5  # of the legend of maps

# The measures of `metrics.separation` that are drawn, and the direction that means a better separation.
MEASURES = {
    "within": "distance to own mean (lower is tighter)",
    "between": "distance of class means (higher is wider)",
    "ratio": "between / within (higher is better)",
    "silhouette": "silhouette (higher is better)",
    "margin": "margin to other means (higher is better)",
    "negative_margin": "nearer to a wrong mean, % (lower is better)",
}


def embeddings(
    panels: Mapping[str, Any],
    labels: Any,
    classes: Sequence[str],
    *,
    superclasses: Sequence[str] = (),
    superclass_of: Sequence[int] = (),
    highlight: Sequence[int] = (),
    how: str = "UMAP",
) -> Figure:
    """Draw maps of the same samples in the logit spaces of several networks, one panel for each network.

    Up to ten classes are coloured and labelled next to their points. With more classes, each superclass has a colour,
    or ten highlighted classes are coloured and all others are grey (see `class_colours`). A legend names the colours.

    Args:
        panels: for each network the coordinates of the N samples, [N, 2].
        labels: class of each sample, [N].
        classes, superclasses, superclass_of, highlight: as in `class_colours`.
        how: name of the map, such as "UMAP", for the axes.
    """
    names, group, looks = class_colours(classes, superclasses, superclass_of, highlight)
    labels = array(labels)
    groups = np.asarray(group)[labels]
    direct = len(names) <= 10
    across = min(len(panels), 4 if direct else 2)
    down = -(-len(panels) // across)
    side = WIDTH / across
    legend = 0.3 * -(-len(names) // COLUMNS)
    figure, axes = plt.subplots(
        down, across, figsize=(WIDTH, down * (side + 0.35) + legend), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    size = float(np.clip((6000 if direct else 20000) / len(labels), 3, 14))
    edge = 0.2 if size > 6 else 0.0  # an outline makes pale colours visible, but covers small dots
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=False):
        points = array(points)
        for g in sorted(range(len(names)), key=lambda g: looks[g] != REST):  # grey points first, below the others
            chosen = groups == g
            axis.scatter(
                *points[chosen].T, s=size, alpha=0.8, edgecolors="0.35", linewidths=edge, label=names[g], **looks[g]
            )
            if direct and chosen.any():
                x, y = (
                    np.median(points[chosen, 0]),
                    np.quantile(points[chosen, 1], 0.9),
                )  # above most of its points
                outline = [withStroke(linewidth=2.5, foreground="white")]
                axis.text(x, y, names[g], ha="center", va="bottom", weight="bold", path_effects=outline)
        axis.margins(0.08)
        axis.set(title=title, xticks=[], yticks=[], xlabel=f"{how} 1", box_aspect=1)
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("0.8")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{how} 2")
    marks = [Line2D([], [], linestyle="", markersize=6, **look) for look in looks]
    figure.legend(marks, names, loc="outside lower center", ncols=COLUMNS, fontsize=8, handletextpad=0.1)
    return figure


def class_correlation(
    matrices: Mapping[str, Any],
    classes: Sequence[str],
    *,
    superclasses: Sequence[str] = (),
    superclass_of: Sequence[int] = (),
) -> Figure:
    """Draw the correlation of the logits of each pair of classes, one panel for each network, on one colour scale.

    Entry (c, d) of a matrix is the mean Pearson correlation between the logit vectors of samples of class c and samples
    of class d. It equals ⟨m_c, m_d⟩, where z̃ is a logit vector minus its mean (which does not change the softmax) at
    unit length, and m_c is the mean of z̃ over class c. The diagonal is therefore not 1: it measures how similar the
    samples of one class are. The titles contain the mean of the diagonal and of the other entries.

    Args:
        matrices: for each network, a matrix of shape [C, C]; entries that are NaN are empty.
        classes: names of the C classes. More than 20 classes are ordered and labelled by superclass.
        superclasses, superclass_of: names of the superclasses, and the superclass of each class; empty for none.
    """
    many = len(classes) > 20
    order, blocks = by_superclass(classes, superclasses, superclass_of) if many else by_superclass(classes)
    across = min(len(matrices), 2 if many else 4)
    down = -(-len(matrices) // across)
    side = (WIDTH - (3.2 if many else 1.2)) / across
    size = (WIDTH, down * (side + (0.95 if many else 1.15)))
    figure, axes = plt.subplots(
        down, across, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for axis in axes.flat[len(matrices) :]:
        axis.set_visible(False)
    largest = max(float(np.nanmax(np.abs(array(matrix)))) for matrix in matrices.values())
    starts = np.cumsum([0] + [count for _, count in blocks])
    centres = (starts[:-1] + starts[1:] - 1) / 2
    apart = ~np.eye(len(classes), dtype=bool)
    for i, (axis, (name, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=False)):
        matrix = array(matrix)[np.ix_(order, order)]
        picture = axis.imshow(matrix, vmin=-largest, vmax=largest, cmap="PuOr_r", interpolation="nearest")
        own, others = (round(float(np.nanmean(part)), 2) + 0.0 for part in (np.diag(matrix), matrix[apart]))
        axis.set_title(f"{name}\nsame class {own:.2f}\nother classes {others:.2f}", fontsize=10)
        if many and superclasses:
            for start in starts[1:-1]:
                axis.axhline(start - 0.5, color="0.6", linewidth=0.3)
                axis.axvline(start - 0.5, color="0.6", linewidth=0.3)
        if many and not superclasses:
            axis.set(xlabel="class number", ylabel="class number" if i % across == 0 else "")
            continue
        names = [block for block, _ in blocks]
        long = max(map(len, names)) > 2
        axis.set_yticks(centres, names, fontsize=8 if many else 9)
        if many:  # only the rows are labelled, because the columns have no room for twenty names
            axis.set_xticks([])
            axis.set_xlabel("classes, in the order of the rows")
        else:
            axis.set_xticks(centres, names, rotation=90 if long else 0)
            axis.set_xlabel("class")
        axis.tick_params(length=0)
    label = "mean correlation of logits"
    figure.colorbar(picture, ax=axes, shrink=0.8 if down == 1 else 0.5, label=label, aspect=25)
    return figure


def separation(table: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the measures of `metrics.separation`: one panel for each measure, with one row for each network.

    Args:
        table: for each network, for each measure, its value or its values over seeds. The values of several seeds are
            drawn as markers with a bar at mean ± standard deviation. Only measures in MEASURES are drawn.
    """
    shown = [key for key in MEASURES if all(key in row for row in table.values())]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    size = (WIDTH, down * (0.75 + 0.3 * len(table)))
    figure, axes = plt.subplots(
        down,
        across,
        figsize=size,
        layout="constrained",
        sharey=True,
        squeeze=False,
        gridspec_kw={"wspace": 0.08},  # a gap between the values and the next panel, to which they do not belong
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, key in zip(axes.flat, shown, strict=False):
        scale, digits = (100, 1) if "%" in MEASURES[key] else (1, 2)
        for row, (name, numbers) in enumerate(table.items()):
            seeds = scale * np.atleast_1d(np.asarray(numbers[key], dtype=float))
            mean, spread = mean_and_std(seeds)
            look = method_style(name)
            axis.scatter(seeds, np.full(len(seeds), row), s=28, color=look["color"], marker=look["marker"], alpha=0.8)
            if len(seeds) > 1:
                axis.errorbar(mean, row, xerr=spread, color=look["color"], capsize=3, lw=1.4, alpha=0.7)
            text = mean_std_text(float(mean), float(spread), len(seeds), digits)
            axis.text(1.02, row, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
        axis.set_title(MEASURES[key], fontsize=9)
        axis.margins(x=0.12)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axis.grid(axis="x")
    axes[0, 0].set_yticks(range(len(table)), list(table))
    axes[0, 0].set_ylim(len(table) - 0.5, -0.5)
    return figure
