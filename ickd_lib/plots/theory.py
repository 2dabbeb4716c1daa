"""Figures of notebook 01: learned label smoothing, the influence of other samples, the error of aggregation."""

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
    """Ticks at the powers of `base` between `least` and `most`, as plain numbers, on a logarithmic axis."""
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
    """One image, the targets that it is given, and how distillation's gradient nears logit matching.

    Args:
        image: [H,W,3] in [0, 1].
        label: its class.
        targets: for each kind a distribution [C], four kinds at most.
        classes: C names.
        temperatures, gaps: the relative distance of the gradient to its limit, [M] each.
        most: classes shown, those with the largest targets of the last kind, in the order of `classes`.
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
    middle.set(xlabel="class", ylabel="target probability", title="What the image's target says")
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
    """Whether the kernel predicts a real step, and how the share of one sample goes with its similarity.

    Args:
        steps, errors: learning rates and relative errors of the predicted change, [M] each.
        share: of the other samples of each query, the most similar first, [Q,N−1].
        same_class: whether they have the query's class, [Q,N−1], boolean.
        bins: parts, equally large, into which a query's samples of the same and of other classes are divided.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    left.loglog(steps, errors, label="measured", **_style(0))
    left.loglog(steps, errors[0] * steps / steps[0], color="0.4", linestyle="--", label="slope 1")
    left.set(
        xlabel="learning rate η of the step",
        ylabel="‖predicted − real‖ / ‖real‖",
        title="First-order change of the logits",
    )
    left.minorticks_off()  # a figure's time goes into its ticks
    left.legend(fontsize="small")
    for i, (name, chosen) in enumerate({"same class": same_class, "another class": ~same_class}.items()):
        most = min(bins, chosen.sum(1).min())
        if most == 0:  # a query that is alone in its class
            continue
        # Query by query, else one with similar neighbours and large shares would pass for an effect of similarity.
        parts = [
            [part.mean() for part in np.array_split(row[keep], most)] for row, keep in zip(share, chosen, strict=True)
        ]
        mean, half = np.mean(parts, 0), 1.96 * np.std(parts, 0, ddof=1) / np.sqrt(len(parts))
        beside = (i - 0.5) * 0.01  # so that two intervals do not hide each other
        right.errorbar((np.arange(most) + 0.5) / most + beside, mean, half, label=name, capsize=2, **_style(i))
    right.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    right.set(
        xlabel="rank by the teacher's features, nearest to farthest",
        ylabel="share of one sample (of ‖R‖²)",
        title="What one other sample carries",
    )
    right.legend(fontsize="small")
    return figure


def context_shares(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], *, k: int) -> Figure:
    """The share of the k nearest samples beside that of random sets, relative to the number of samples.

    Args:
        panels: for each residual and each way to choose a set, its mean share and the half-width of the
            95% interval for 1, 2, … samples, [N−1] each.
        k: a number of samples to mark; sets of a quarter of it and more are shown.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.8), layout="constrained", squeeze=False)
    for axis, (title, sets) in zip(axes[0], panels.items(), strict=True):
        for i, (name, (mean, half)) in enumerate(sets.items()):
            sizes = np.unique(np.geomspace(max(1, k // 4), len(mean), 18).round().astype(int))
            part = sizes / len(mean)
            m, h = mean[sizes - 1] / part, half[sizes - 1] / part
            axis.plot(sizes, m, label=name, **_style(i))
            axis.fill_between(sizes, m - h, m + h, color=PALETTE[i], alpha=0.2, linewidth=0)
        axis.axvline(k, color="0.6", linewidth=0.8, zorder=0)
        axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        axis.set(xscale="log", xlabel="samples in the set", title=title)
        _powers(axis.xaxis, sizes[0], sizes[-1], 2)
    axes[0, 0].set_ylabel("share of the set ÷ its part of all samples")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    return figure


def toy_teachers(x: np.ndarray, panels: Mapping[str, np.ndarray]) -> Figure:
    """Points in the plane, coloured by the probability that each teacher gives to one class.

    Args:
        x: [n,2].
        panels: for each title the probabilities [n].
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
    """Measured and predicted error of the aggregated target over k, in units of the teacher's own error.

    Args:
        rows: each with teacher (a column), weighting (a row of panels), neighbours (a line), k, measured and
            predicted (None where no prediction holds).
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
                asked = (teacher, weighting, line)
                some = [w for w in rows if (w["teacher"], w["weighting"], w["neighbours"]) == asked]
                axis.plot([w["k"] for w in some], [w["measured"] for w in some], label=line, **_style(i))
                told = [w for w in some if w["predicted"] is not None]
                axis.plot(
                    [w["k"] for w in told],
                    [w["predicted"] for w in told],
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
        axis.set_ylabel("squared error / own target's")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    return figure
