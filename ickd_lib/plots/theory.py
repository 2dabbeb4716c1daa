"""Figures for `ickd_lib.theory`: learned label smoothing, the shares of other samples, the error of aggregation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from ickd_lib.plots.style import HATCHES, LINES, MARKERS, PALETTE, WIDTH


def _style(i: int) -> dict[str, Any]:
    return {"color": PALETTE[i], "linestyle": LINES[i], "marker": MARKERS[i], "markersize": 4}


def _powers(axis: Axis, least: float, most: float, base: int) -> None:
    """Set the ticks of a logarithmic axis to the powers of `base` from `least` to `most`, as plain numbers."""
    low, high = math.ceil(math.log(least, base) - 1e-9), math.floor(math.log(most, base) + 1e-9)
    ticks = [float(base) ** power for power in range(low, high + 1)]
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def learned_smoothing(
    image: np.ndarray,
    label: str,
    targets: Mapping[str, np.ndarray],
    classes: Sequence[str],
    temperatures: np.ndarray,
    gaps: np.ndarray,
    *,
    most: int = 10,
) -> Figure:
    """Draw an image, its targets, and the distance of distillation's gradient from that of logit matching.

    Args:
        image: the image, [H, W, 3], with values from 0 to 1.
        label: name of its class.
        targets: at most four distributions over the classes, [C] each, by name.
        classes: names of the C classes.
        temperatures: temperatures τ, [M].
        gaps: relative distance of the gradient from its limit at each temperature, [M].
        most: number of classes to show. Those with the largest probability in the last target are shown, in the order
            of `classes`.
    """
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(WIDTH, 3.3), layout="constrained", width_ratios=[1, 3.2, 2.2]
    )
    left.imshow(image, interpolation="nearest")
    left.set_title(f"label:\n{label}", fontsize="medium")
    left.set_axis_off()
    last = list(targets.values())[-1]
    shown = np.sort(np.argsort(-last)[:most])
    width = 0.8 / len(targets)
    for i, (name, target) in enumerate(targets.items()):
        middle.bar(
            np.arange(len(shown)) + (i - (len(targets) - 1) / 2) * width,
            target[shown],
            width,
            label=name,
            color=PALETTE[i],
            hatch=HATCHES[i],
            edgecolor="white",
            linewidth=0.3,
        )
    middle.set_xticks(range(len(shown)), [classes[c] for c in shown])
    if max(len(classes[c]) for c in shown) > 3:
        middle.tick_params("x", rotation=45)
        plt.setp(middle.get_xticklabels(), ha="right", rotation_mode="anchor")
    middle.set(xlabel="class", ylabel="target probability", title="Target of this image")
    middle.legend(fontsize="small")
    right.loglog(temperatures, gaps, label="measured", **_style(0))
    guide = gaps[-1] * temperatures[-1] / temperatures
    right.loglog(temperatures, guide, color="0.4", linestyle="--", label="slope −1")
    right.set(xlabel="temperature τ", ylabel="‖gradient − limit‖ / ‖limit‖", title="KD's gradient and its limit")
    right.minorticks_off()
    right.legend(fontsize="small")
    figure.get_layout_engine().set(w_pad=0.1)  # type: ignore[union-attr, call-arg]
    return figure


def first_order(
    steps: np.ndarray, errors: np.ndarray, share: np.ndarray, same_class: np.ndarray, *, bins: int = 8
) -> Figure:
    """Draw the error of the first-order prediction, and the share of one sample over its rank by similarity.

    Args:
        steps: learning rates, [M].
        errors: relative error of the predicted change at each learning rate, [M].
        share: shares of each query's other samples, the most similar first, [Q, N−1].
        same_class: true where this other sample has the query's class, [Q, N−1].
        bins: number of equal parts into which a query's samples of the same class, and those of other classes, are
            divided by rank.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    left.loglog(steps, errors, label="measured", **_style(0))
    left.loglog(steps, errors[0] * steps / steps[0], color="0.4", linestyle="--", label="slope 1")
    left.set(
        xlabel="learning rate η of the step",
        ylabel="‖predicted − actual‖ / ‖actual‖",
        title="First-order change of the logits",
    )
    left.minorticks_off()  # minor ticks take most of the time to draw a figure
    left.legend(fontsize="small")
    for i, (name, chosen) in enumerate({"same class": same_class, "another class": ~same_class}.items()):
        most = min(bins, chosen.sum(1).min())
        if most == 0:  # at least one query has no such sample
            continue
        # Ranks are within each query. Otherwise a query with similar samples and large shares only would look like an
        # effect of similarity.
        parts = [
            [part.mean() for part in np.array_split(row[keep], most)] for row, keep in zip(share, chosen, strict=True)
        ]
        mean, half = np.mean(parts, 0), 1.96 * np.std(parts, 0, ddof=1) / np.sqrt(len(parts))
        offset = (i - 0.5) * 0.01  # keeps the intervals of the two lines apart
        right.errorbar((np.arange(most) + 0.5) / most + offset, mean, half, label=name, capsize=2, **_style(i))
    right.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    right.set(
        xlabel="rank by similarity of the teacher's features, nearest first",
        ylabel="share of one sample (of ‖R‖²)",
        title="Share of one other sample",
    )
    right.legend(fontsize="small")
    return figure


def context_shares(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], *, k: int) -> Figure:
    """Draw the shares of sets of nearest and of random samples, divided by the fraction of all samples in the set.

    Args:
        panels: from `theory.share_panels`: for each residual and choice of a set, the mean share and the half-width
            of its 95% interval for 1, 2, … samples, [N−1] each.
        k: number of samples to mark with a line. The smallest set shown has a quarter of it.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.8), layout="constrained", squeeze=False)
    for axis, (title, sets) in zip(axes[0], panels.items(), strict=True):
        for i, (name, (mean, half)) in enumerate(sets.items()):
            sizes = np.unique(np.geomspace(max(1, k // 4), len(mean), 18).round().astype(int))
            fraction = sizes / len(mean)
            m, h = mean[sizes - 1] / fraction, half[sizes - 1] / fraction
            axis.plot(sizes, m, label=name, **_style(i))
            axis.fill_between(sizes, m - h, m + h, color=PALETTE[i], alpha=0.2, linewidth=0)
        axis.axvline(k, color="0.6", linewidth=0.8, zorder=0)
        axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        axis.set(xscale="log", xlabel="samples in the set", title=title)
        _powers(axis.xaxis, sizes[0], sizes[-1], 2)
    axes[0, 0].set_ylabel("share of the set ÷ fraction of samples")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    return figure


def toy_teachers(x: np.ndarray, panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw points in the plane, coloured by the probability of one class, in one panel for each teacher.

    Args:
        x: points, [n, 2].
        panels: the probability of class 0 at each point, [n], by the title of the panel.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 2.9), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, (title, probability) in zip(axes[0], panels.items(), strict=True):
        dots = axis.scatter(x[:, 0], x[:, 1], c=probability, s=7, cmap="cividis", vmin=0, vmax=1, linewidths=0)
        axis.set(title=title, xlabel="x₁", aspect="equal")
    axes[0, 0].set_ylabel("x₂")
    figure.colorbar(dots, ax=axes[0].tolist(), label="probability of class 0", shrink=0.85)
    return figure


def aggregation_error(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the measured and predicted error of the aggregate over k, relative to that of the teacher's own target.

    Args:
        rows: from `theory.aggregation_errors`. Each teacher has a column of panels, each weighting a row of panels, and
            each choice of neighbours a line. Where `predicted` is None, only the measured error is drawn.
    """
    teachers, weightings, lines = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("teacher", "weighting", "neighbours")
    )
    figure, axes = plt.subplots(
        len(weightings),
        len(teachers),
        figsize=(WIDTH, 2.9 * len(weightings)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for r, weighting in enumerate(weightings):
        for c, teacher in enumerate(teachers):
            axis = axes[r, c]
            for i, line in enumerate(lines):
                key = (teacher, weighting, line)
                drawn = [w for w in rows if (w["teacher"], w["weighting"], w["neighbours"]) == key]
                axis.plot([w["k"] for w in drawn], [w["measured"] for w in drawn], label=line, **_style(i))
                predicted = [w for w in drawn if w["predicted"] is not None]
                axis.plot(
                    [w["k"] for w in predicted],
                    [w["predicted"] for w in predicted],
                    color="black",
                    linestyle="none",
                    marker="+x"[i % 2],
                    markersize=8,
                    label=f"predicted, {line}",
                )
            axis.axhline(1, color="0.5", linewidth=1, zorder=0, label="the teacher's own target")
            axis.set(xscale="log", yscale="log", title=f"{teacher}\n{weighting}")
            _powers(axis.xaxis, rows[0]["k"], max(row["k"] for row in rows), 4)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
    for axis in axes[-1]:
        axis.set_xlabel("neighbours k")
    for axis in axes[:, 0]:
        axis.set_ylabel("squared error ÷ that of own target")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    return figure
