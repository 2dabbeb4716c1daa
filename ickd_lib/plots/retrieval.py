"""Figures of the memory bank: what is retrieved, how good it is, how long it takes, what it says together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ickd_lib.data import Images
from ickd_lib.memory import InContext
from ickd_lib.plots.style import HATCHES, LINES, MARKERS, PALETTE, WIDTH, array
from ickd_lib.runtime import InputError

SAME, OTHER = PALETTE[0], PALETTE[3]
COLUMNS = 8  # tiles a line


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
) -> Figure:
    """A query beside its in-context samples, most similar first, each with its class and cosine to the query.

    Args:
        query, query_row: the images and the data-set row of the query.
        rows: the images that the bank was built from.
        positives, negatives: what the bank returned for this one query, [1, k] each.
        weights: of the positives in the aggregate, [1, k]; written below them where given.
        most: of each kind that are shown.
    """
    shares = None if weights is None else array(weights)[0]
    groups = [("same class", positives, SAME, "-", shares), ("other classes", negatives, OTHER, "--", None)]
    shown = [(*group, array(group[1].mask)[0].nonzero()[0][:most]) for group in groups]
    lines = [max(1, -(-len(group[-1]) // COLUMNS)) for group in shown]
    # In tiles: the place of the first column, the step to the next, text below a line, text above a group.
    first, step, below, gap = 2.5, 1.14, 0.54 if shares is None else 0.72, 0.38
    width, height = first + COLUMNS * step, max(sum(lines) * (1 + below) + 2 * gap, 3.2)
    above = 0.35 if title else 0.05
    # Tiles and texts have fixed places, and all tiles are one picture: a layout engine and 40 pictures are slow.
    figure = plt.figure(figsize=(WIDTH, WIDTH * (height + above) / (width + 0.05)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.text(width / 2, -0.1, title, ha="center", fontsize=11)
    zoom = -(-96 // max(query.size))
    pixels = zoom * max(query.size)  # a side of a tile
    canvas = np.full((round(height * pixels), round(width * pixels), 3), 255, np.uint8)

    at = int((array(query.index) == query_row).nonzero()[0][0])
    _paste(canvas, query, at, 0, gap * pixels, 2 * zoom)
    text = f"query, row {query_row}\nclass {query.classes[int(query.labels[at])]}"
    _frame(axis, 0, gap, 2, "0.1", "-", text, 10)
    place = {int(row): i for i, row in enumerate(array(rows.index))}
    note, top = "cosine below each" + ("" if shares is None else ", then w, its share of the aggregate"), 0.0
    for (name, found, colour, line, share, chosen), count in zip(shown, lines, strict=True):
        axis.text(first, top + gap - 0.1, f"{name}, nearest first ({note})", fontsize=10, color=colour, weight="bold")
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


def samples(images: Images, *, classes: int = 10, each: int = 12) -> Figure:
    """The first images of the first classes, a line for each class.

    Args:
        images: of C classes.
        classes, each: at most so many classes, and images of each.
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
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    return figure


def _paste(canvas: np.ndarray, images: Images, at: int, x: float, y: float, zoom: int) -> None:
    """Draw an image, each pixel `zoom` wide; three equal channels, as of the digits, show as grey."""
    picture = array(images.images[at].permute(1, 2, 0)).repeat(zoom, 0).repeat(zoom, 1)
    left, top = round(x), round(y)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def _frame(axis: Axes, x: float, y: float, size: float, colour: Any, line: str, text: str, font: float) -> None:
    axis.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=colour, linewidth=1.8, linestyle=line))
    axis.text(x + size / 2, y + size + 0.06, text, ha="center", va="top", fontsize=font, linespacing=1.1)


def distributions(
    predictions: Mapping[str, Any], classes: Sequence[str], *, label: int | None = None, most: int = 10, title: str = ""
) -> Figure:
    """What several predictors say of one query, side by side, on a common scale.

    Args:
        predictions: probabilities [C] by predictor, as "teacher", "aggregate" and "student".
        classes: C names.
        label: the true class, whose name is in bold and marked.
        most: classes shown: the most probable ones by any predictor, in the order of `classes`.
    """
    probabilities = {name: array(p) for name, p in predictions.items()}
    peak = np.max(list(probabilities.values()), 0)
    if label is not None:
        peak[label] = np.inf  # always shown
    shown = np.sort(np.argsort(-peak, kind="stable")[:most])
    longest = max(len(classes[c]) for c in shown)
    long = longest > 3
    # Margins by the names' length: an explorer draws this at every touch, and a layout engine draws twice.
    under = 0.5 + (0.065 * min(longest, 20) + 0.1 if long else 0.17)
    height = 2.8 + under + 0.3 * bool(title)
    figure, axes = plt.subplots(1, len(probabilities), figsize=(WIDTH, height), sharey=True, squeeze=False)
    top = 1 - (0.5 + 0.3 * bool(title)) / height
    highest = max(float(p.max()) for p in probabilities.values())
    figure.subplots_adjust(left=0.065, right=0.995, bottom=under / height, top=top, wspace=0.06)
    for i, (axis, (name, p)) in enumerate(zip(axes[0], probabilities.items(), strict=True)):
        axis.bar(range(len(shown)), p[shown], 0.75, color=PALETTE[i], hatch=HATCHES[i], edgecolor="white", linewidth=0)
        for x, c in enumerate(shown):
            if p[c] >= 0.1 * highest:  # written without the zero, or numbers of neighbouring bars touch
                axis.text(x, p[c], f"{p[c]:.2f}".removeprefix("0"), ha="center", va="bottom", fontsize=7.5)
        tick = " ✓" if long else "\n✓"
        names = [classes[c] + (tick if c == label else "") for c in shown]
        axis.set_xticks(range(len(shown)), names, rotation=60 if long else 0, ha="right" if long else "center")
        if long:
            plt.setp(axis.get_xticklabels(), rotation_mode="anchor")
        for c, text in zip(shown, axis.get_xticklabels(), strict=True):
            text.set_fontweight("bold" if c == label else "normal")
        axis.set(xlabel="class", title=f"{name}\nsays {classes[int(p.argmax())]}")
    axes[0, 0].set_ylabel("probability")
    axes[0, 0].set_ylim(0, 1.08 * highest)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.06 / height, va="top")
    return figure


def similarities(same: Any, other: Any, *, bins: int = 50) -> Figure:
    """How near each query's nearest row of its own class lies, beside its nearest row of another class.

    Args:
        same, other: cosine of each query to the two, [N] each.
    """
    same, other = array(same), array(other)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    edges = np.linspace(min(same.min(), other.min()), 1, bins + 1)
    left.hist(same, edges, color=SAME, alpha=0.65, label="of its own class")
    left.hist(other, edges, histtype="step", color=OTHER, linewidth=1.8, linestyle="--", label="of another class")
    left.set(xlabel="cosine to the query", ylabel="queries", title="The nearest row …")
    left.legend(loc="upper left")
    left.set_ylim(top=1.05 * left.get_ylim()[1])
    gap = same - other
    edges = np.linspace(gap.min(), gap.max(), bins + 1)
    edges = np.sort(np.append(edges[np.abs(edges) > 1e-9], 0.0))  # no bar across zero
    right.hist(gap[gap > 0], edges, color=SAME, alpha=0.65, label=f"own class nearer: {(gap > 0).mean():.1%}")
    right.hist(gap[gap <= 0], edges, color=OTHER, hatch="///", label=f"another class nearer: {(gap <= 0).mean():.1%}")
    right.axvline(0, color="0.2", linewidth=0.8, ymax=0.8)
    right.set_ylim(top=1.3 * right.get_ylim()[1])  # room for the legend
    right.set(xlabel="cosine to own class − cosine to another class", title="… and their difference, query by query")
    right.legend(loc="upper left")
    return figure


def precision(ks: Sequence[int], curves: Mapping[str, Any], chance: Mapping[str, float]) -> Figure:
    """Precision@k over k: the share of the k nearest rows, searched without labels, that are of the query's class.

    Args:
        ks: the numbers of neighbours, [M].
        curves: for each bank or kind of query a fraction for each k, [M].
        chance: what random neighbours would have, by kind ("same class", "same superclass").
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.0), layout="constrained")
    for i, (name, values) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        for axis in axes:
            axis.plot(ks, 100 * array(values), label=name, **style)
    for (name, share), grey in zip(chance.items(), ("0.1", "0.5"), strict=False):
        axes[0].axhline(100 * share, color=grey, linestyle=":", linewidth=1.2, label=f"chance, {name}: {share:.1%}")
    for axis, title in zip(axes, ("How often a neighbour is of the query's kind", "The same, enlarged"), strict=True):
        axis.set(xscale="log", xlabel="k, neighbours retrieved", title=title)
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.get_major_formatter().set_useOffset(False)
        axis.grid(axis="y")
    axes[0].set(ylabel="precision@k, %", ylim=(0, _top(max(float(array(values).max()) for values in curves.values()))))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3.6)
    return figure


def by_class(
    values: Any,
    classes: Sequence[str],
    superclasses: Sequence[str] = (),
    superclass_of: Sequence[int] = (),
    *,
    chance: float | None = None,
    xlabel: str = "precision, %",
) -> Figure:
    """A fraction for each class, best class or superclass on top; up to 20 classes a row each, else by superclass.

    With more than 20 classes a row is a superclass: a dot a class, a bar at their mean, the worst class named.
    Without superclasses, only the ten best and the ten worst classes are shown.

    Args:
        values: fractions, [C]; NaN for a class without a value.
        chance: marked by a line.
    """
    values = 100 * array(values).astype(float)
    known = np.flatnonzero(~np.isnan(values)).tolist()
    if not known:
        raise InputError("no class has a value to draw; every one is NaN")
    if superclasses and len(classes) > 20:
        members = {name: [c for c in known if superclass_of[c] == s] for s, name in enumerate(superclasses)}
        members = {name: group for name, group in members.items() if group}
    else:
        ranked = sorted(known, key=lambda c: -values[c])
        kept = ranked if len(ranked) <= 20 else ranked[:10] + ranked[-10:]
        members = {classes[c]: [c] for c in kept}
    order = sorted(members, key=lambda name: -values[members[name]].mean())
    figure, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.26 * len(order)), layout="constrained")
    for row, name in enumerate(order):
        group = members[name]
        axis.hlines(row, 0, values[group].mean(), color="0.88", linewidth=7, zorder=0)
        axis.scatter(values[group], [row] * len(group), s=26, color=PALETTE[0], alpha=0.8, linewidths=0)
        worst = group[int(values[group].argmin())]
        label = f"{values[worst]:.1f}" if len(group) == 1 else f"lowest: {classes[worst]} {values[worst]:.1f}"
        axis.text(1.01, row, label, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5)
    if chance is not None:
        axis.axvline(100 * chance, color="0.3", linestyle=":", linewidth=1.2, label=f"chance: {chance:.1%}")
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0.1)
    axis.set_yticks(range(len(order)), order)
    kind = "superclass (bar: mean; dots: its classes)" if superclasses and len(classes) > 20 else "class"
    axis.set(xlabel=xlabel, xlim=(0, _top(values[known].max() / 100)), ylim=(len(order) - 0.4, -0.6))
    axis.set_title(f"By {kind}, best on top", loc="left")
    return figure


def _top(largest: float) -> float:
    """The end of an axis of percent: all of it, unless the largest fraction leaves most of it empty."""
    return 103 if largest > 0.6 else 115 * largest


def aggregation(temperatures: Any, k_eff: Any, weights: Mapping[float, Any], *, mark: float | None = None) -> Figure:
    """How the aggregation temperature spreads the weight over the positives.

    Args:
        temperatures: [M].
        k_eff: the effective number of positives 1 / Σ w² of each query at each temperature, [M, N].
        weights: for a few temperatures, the mean weight by rank, [k].
        mark: the temperature in use.
    """
    temperatures, k_eff = array(temperatures), array(k_eff)
    k = len(next(iter(weights.values())))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    low, middle, high = np.quantile(k_eff, [0.1, 0.5, 0.9], axis=1)
    left.plot(temperatures, middle, color=PALETTE[0], label="median query")
    left.fill_between(
        temperatures, low, high, color=PALETTE[0], alpha=0.2, linewidth=0, label="10th to 90th percentile"
    )
    left.axhline(k, color="0.4", linestyle=":", label=f"uniform weights: {k}")
    if mark is not None:
        left.axvline(mark, color="0.2", linestyle="--", linewidth=1, label=f"in use: {mark:g}")
    left.set(
        xscale="log", ylim=(0.8, k * 1.08), xlabel="aggregation temperature τₐ", ylabel="effective positives 1 / Σ w²"
    )
    left.set_title("How many positives count")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.legend(loc="lower right")
    for i, (temperature, mean) in enumerate(weights.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        right.plot(range(1, k + 1), 100 * array(mean), label=f"τₐ = {temperature:g}", **style)
    right.set(xlabel="rank of the positive", ylabel="mean weight, %", ylim=(0, None), title="How much each one counts")
    right.set_xticks(range(1, k + 1, max(1, k // 8)))
    right.legend(loc="upper right", handlelength=3)
    return figure


def retrieval_time(rows: Sequence[int], seconds: Mapping[str, Any]) -> Figure:
    """Time of a retrieval over the size of the bank, both on logarithmic scales.

    Args:
        rows: rows of the bank, [M].
        seconds: for each way to search, seconds a query for each size, [M].
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for i, (name, values) in enumerate(seconds.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        axis.plot(rows, 1e3 * array(values), label=name, **style)
    axis.set(xscale="log", yscale="log", xlabel="rows of the bank", ylabel="milliseconds a query")
    axis.set_title("How long a retrieval takes")
    axis.set_xticks(rows, [f"{count:,}" for count in rows])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.grid(axis="y")
    axis.legend(loc="best", handlelength=3)
    return figure
