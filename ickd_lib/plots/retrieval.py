"""Measurements of retrieval from a memory bank: similarity, precision, weights and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ickd_lib.plots.style import LINES, MARKERS, OTHER, PALETTE, SAME, WIDTH, array
from ickd_lib.runtime import InputError


def similarities(same: Any, other: Any, *, bins: int = 50) -> Figure:
    """Draw the distribution of each query's cosine to its nearest row of its own class and of another class.

    Args:
        same, other: cosine of each query to the nearest row of its own class and of another class, [N] each.
        bins: number of bins of each histogram.
    """
    same, other = (np.minimum(array(values), 1) for values in (same, other))  # rounding can exceed 1
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    edges = np.linspace(min(same.min(), other.min()), 1, bins + 1)
    left.hist(same, edges, color=SAME, alpha=0.65, label="of its own class")
    left.hist(other, edges, histtype="step", color=OTHER, linewidth=1.8, linestyle="--", label="of another class")
    left.set(xlabel="cosine to the query", ylabel="queries", title="Cosine to the nearest row")
    left.legend(loc="upper left")
    left.set_ylim(top=1.05 * left.get_ylim()[1])
    gap = same - other
    edges = np.linspace(gap.min(), gap.max(), bins + 1)
    edges = np.sort(np.append(edges[np.abs(edges) > 1e-9], 0.0))  # an edge at 0 separates the signs
    right.hist(gap[gap > 0], edges, color=SAME, alpha=0.65, label=f"own class nearer: {(gap > 0).mean():.1%}")
    right.hist(gap[gap <= 0], edges, color=OTHER, hatch="///", label=f"another class nearer: {(gap <= 0).mean():.1%}")
    right.axvline(0, color="0.2", linewidth=0.8, ymax=0.8)
    right.set_ylim(top=1.3 * right.get_ylim()[1])  # room for the legend
    right.set(xlabel="cosine to own class − cosine to another class", title="Difference of the two, for each query")
    right.legend(loc="upper left")
    return figure


def precision(ks: Sequence[int], curves: Mapping[str, Any], chance: Mapping[str, float]) -> Figure:
    """Draw precision@k over k: which fraction of the k nearest rows, searched without labels, has the query's class.

    Args:
        ks: numbers of neighbours, [M].
        curves: for each bank or kind of query, the precision for each k, a fraction, [M].
        chance: precision of randomly drawn neighbours, by kind ("same class", "same superclass").
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.0), layout="constrained")
    for i, (name, values) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        for axis in axes:
            axis.plot(ks, 100 * array(values), label=name, **style)
    for (name, share), grey in zip(chance.items(), ("0.1", "0.5"), strict=False):
        axes[0].axhline(100 * share, color=grey, linestyle=":", linewidth=1.2, label=f"chance, {name}: {share:.1%}")
    for axis, title in zip(axes, ("Neighbours of the query's class", "The same, enlarged"), strict=True):
        axis.set(xscale="log", xlabel="number k of retrieved neighbours", title=title)
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
    """Draw a fraction for each class, highest on top.

    Up to 20 classes have a row each. More classes are grouped into one row for each superclass, with a dot for each
    class, a bar at their mean, and the name of the lowest class. More than 20 classes without superclasses are reduced
    to the ten highest and the ten lowest.

    Args:
        values: fractions, [C]; NaN for a class without a value.
        classes: names of the C classes.
        superclasses, superclass_of: names of the superclasses, and the superclass of each class; empty for none.
        chance: the fraction for random retrieval, marked by a line.
        xlabel: label of the axis of fractions, which are drawn in percent.
    Raises:
        InputError: every value is NaN.
    """
    values = 100 * array(values).astype(float)
    valid = np.flatnonzero(~np.isnan(values)).tolist()
    if not valid:
        raise InputError("there is nothing to draw, because the value of every class is NaN")
    if superclasses and len(classes) > 20:
        members = {name: [c for c in valid if superclass_of[c] == s] for s, name in enumerate(superclasses)}
        members = {name: group for name, group in members.items() if group}
    else:
        ranked = sorted(valid, key=lambda c: -values[c])
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
    axis.set(xlabel=xlabel, xlim=(0, _top(values[valid].max() / 100)), ylim=(len(order) - 0.4, -0.6))
    axis.set_title(f"By {kind}, highest on top", loc="left")
    return figure


def _top(largest: float) -> float:
    """Return the end of an axis in percent: 100 and a margin, or less where the largest fraction is small."""
    return 103 if largest > 0.6 else 115 * largest


def aggregation(temperatures: Any, k_eff: Any, weights: Mapping[float, Any], *, mark: float | None = None) -> Figure:
    """Draw how the weights of the positives depend on the aggregation temperature.

    Args:
        temperatures: aggregation temperatures, [M].
        k_eff: effective number of positives 1 / Σ w² of each query at each temperature, [M, N].
        weights: for a few temperatures, the mean weight of the positive at each rank, [k].
        mark: the temperature in use, marked by a line.
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
    left.set_title("Effective number of positives")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.legend(loc="lower right")
    for i, (temperature, mean) in enumerate(weights.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        right.plot(range(1, k + 1), 100 * array(mean), label=f"τₐ = {temperature:g}", **style)
    right.set(xlabel="rank of the positive", ylabel="mean weight, %", ylim=(0, None), title="Weight of each positive")
    right.set_xticks(range(1, k + 1, max(1, k // 8)))
    right.legend(loc="upper right", handlelength=3)
    return figure


def retrieval_time(rows: Sequence[int], seconds: Mapping[str, Any]) -> Figure:
    """Draw the time of a retrieval over the size of the bank, both on logarithmic scales.

    Args:
        rows: numbers of rows of the bank, [M].
        seconds: for each kind of search, the seconds per query at each size, [M].
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for i, (name, values) in enumerate(seconds.items()):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        axis.plot(rows, 1e3 * array(values), label=name, **style)
    axis.set(xscale="log", yscale="log", xlabel="rows of the bank", ylabel="milliseconds per query")
    axis.set_title("Time of a retrieval")
    axis.set_xticks(rows, [f"{count:,}" for count in rows])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.grid(axis="y")
    axis.legend(loc="best", handlelength=3)
    return figure
