"""Final numbers of several methods compared: over seeds, to a baseline, to published numbers, and to their cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ickd_lib.plots.style import HATCHES, WIDTH, looks, mean_and_std, mean_std_text, method_style, wrapped
from ickd_lib.runtime import InputError


def scores(scores: Mapping[str, Sequence[float]], *, xlabel: str = "test accuracy, %") -> Figure:
    """Draw one row for each method: a dot for each seed, and mean ± standard deviation as a bar and as text.

    Args:
        scores: for each method one number per seed. The rows are in this order.
        xlabel: name of the number. If it contains "%", the numbers are fractions and are shown in percent.
    """
    scale, digits = (100, 1) if "%" in xlabel else (1, 3)
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.42 * len(scores)), layout="constrained")
    for row, (name, numbers) in enumerate(scores.items()):
        score_row(axis, row, name, scale * np.asarray(numbers, dtype=float), digits)
    axis.set_yticks(range(len(scores)), list(map(wrapped, scores)))
    axis.set_ylim(len(scores) - 0.5, -0.5)
    alone = all(len(numbers) == 1 for numbers in scores.values())
    axis.set(xlabel=xlabel, title="One seed each" if alone else "Each seed (markers), mean ± standard deviation (bars)")
    axis.grid(axis="x")
    axis.margins(x=0.05)
    return figure


def score_row(
    axis: Axes, row: float, name: str, seeds: np.ndarray, digits: int = 1, look: Mapping[str, Any] | None = None
) -> None:
    """Draw one row of `scores`: a method's numbers for each seed, and their mean ± standard deviation.

    Args:
        axis: the axis to draw on.
        row: height of the row on the axis.
        name: name of the method, which determines its style.
        seeds: one number for each seed, shape [S].
        digits: number of decimal places in the text.
        look: a style from `looks`; by default that of `method_style`.
    """
    mean, spread = map(float, mean_and_std(seeds))
    style = look or method_style(name)
    colour, marker = style["color"], style["marker"]
    several = len(seeds) > 1  # then the seeds are drawn a little above their mean, so that neither hides the other
    equal = np.array([(seeds[:i] == seed).sum() for i, seed in enumerate(seeds)])  # equal numbers lie above each other
    axis.scatter(seeds, row - 0.17 * several - 0.1 * equal, s=30, color=colour, marker=marker, alpha=0.8, lw=0)
    if several:
        axis.errorbar(mean, row + 0.12, xerr=spread, color=colour, marker="|", ms=13, mew=2.2, capsize=3, lw=1.6)
    text = mean_std_text(mean, spread, len(seeds), digits)
    axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)


def class_scores(scores: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str) -> Figure:
    """Draw a fraction of each class for several networks: a row for each class, a marker at the mean of each network.

    Small dots are the seeds.

    Args:
        scores: for each network, for each class, one fraction per seed.
        xlabel: label of the axis of fractions, which are drawn in percent.
    """
    classes = list(dict.fromkeys(name for found in scores.values() for name in found))
    space = 0.76 / len(scores)
    size = (WIDTH, 1.0 + len(classes) * (0.16 + 0.085 * len(scores)))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for row in range(0, len(classes), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="0.96", lw=0, zorder=0)
    for i, ((name, found), look) in enumerate(zip(scores.items(), looks(scores), strict=True)):
        colour, marker = look["color"], look["marker"]
        for row, one in enumerate(classes):
            if seeds := [100 * value for value in found.get(one, ())]:
                height = row + (i - (len(scores) - 1) / 2) * space
                if len(seeds) > 1:
                    axis.hlines(height, min(seeds), max(seeds), color=colour, lw=1, alpha=0.6)
                    axis.scatter(seeds, [height] * len(seeds), s=9, color=colour, alpha=0.7, lw=0)
                axis.scatter(np.mean(seeds), height, s=34, color=colour, marker=marker, lw=0, zorder=3)
        axis.scatter([], [], s=34, color=colour, marker=marker, lw=0, label=wrapped(name))
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel=xlabel, ylim=(len(classes) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    figure.legend(loc="outside right upper")
    return figure


def finals(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw several final numbers side by side: one panel for each number, with one row for each method as in `scores`.

    Args:
        found: for each method, for each number, one value per seed. Numbers with a "%" in their name are fractions and
            are shown in percent. A method without a number has an empty row in its panel.
    Raises:
        InputError: there are no numbers.
    """
    names = list(dict.fromkeys(number for numbers in found.values() for number in numbers))
    if not names:
        raise InputError("these runs have no final numbers; choose runs that are finished")
    size = (WIDTH, 1.2 + 0.34 * sum(1 + 0.5 * wrapped(name).count("\n") for name in found))
    figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, number in zip(axes[0], names, strict=True):
        scale, digits = (100, 1) if "%" in number else (1, 3)
        for row, ((name, numbers), look) in enumerate(zip(found.items(), looks(found), strict=True)):
            if numbers.get(number):
                score_row(axis, row, name, scale * np.asarray(numbers[number], dtype=float), digits, look)
        axis.set(title=number)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=3))
        axis.grid(axis="x")
        axis.margins(x=0.1)
    axes[0, 0].set_yticks(range(len(found)), list(map(wrapped, found)))
    axes[0, 0].set_ylim(len(found) - 0.5, -0.5)
    return figure


def differences(intervals: Mapping[str, Mapping[str, float]], *, baseline: str, of: str = "test accuracy") -> Figure:
    """Draw one row for each method: its mean difference to a baseline in percentage points, with its 95% interval.

    An interval that includes 0 is drawn hollow and pale, because these seeds do not establish a difference. An interval
    much wider than the differences is cut off at the edge of the axis; its ends are written beside the row.

    Args:
        intervals: for each method the fractions "mean", "low" and "high" (`runs.interval`).
        baseline: name of the baseline, for the axis.
        of: name of the compared quantity, for the axis.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.34 * len(intervals)), layout="constrained")
    axis.axvline(0, color="0.4", lw=1)
    for row, (name, found) in enumerate(intervals.items()):
        style = method_style(name)
        mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
        excludes_zero = low > 0 or high < 0
        axis.plot(
            [low, high],
            [row, row],
            color=style["color"],
            alpha=1 if excludes_zero else 0.45,
            lw=2.2 if excludes_zero else 1.4,
        )
        face = style["color"] if excludes_zero else "white"
        axis.plot(mean, row, marker=style["marker"], color=style["color"], mfc=face, ms=7, ls="none")
        text = f"{mean:+.1f}  ({low:+.1f} to {high:+.1f})" + ("" if excludes_zero else "  includes 0")
        axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    reach = 3 + 2 * max(abs(100 * found["mean"]) for found in intervals.values())
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -reach), min(high, reach))
    axis.set_yticks(range(len(intervals)), list(map(wrapped, intervals)))
    axis.set_ylim(len(intervals) - 0.5, -0.5)
    axis.set(
        xlabel=f"difference to {baseline}, percentage points of {of}",
        title="Paired by seed: mean and 95% interval (hollow: includes 0)",
    )
    axis.grid(axis="x")
    return figure


def published(
    panels: Mapping[str, tuple[Mapping[str, Sequence[float]], Mapping[str, float]]], *, of: str = "accuracy"
) -> Figure:
    """Draw measured accuracies beside published ones: one panel for each setting, one row for each method, best on top.

    Filled markers are measured seeds, drawn with mean ± standard deviation. Hollow diamonds are published accuracies.

    Args:
        panels: for each title the result of `runs.beside_published`: for each measured method one fraction per seed,
            and for each published method one fraction.
        of: name of the number.
    """
    rows = {title: _in_descending_order(*both) for title, both in panels.items()}
    heights = [len(names) + 2 for names in rows.values()]
    size = (WIDTH, 0.6 + 0.3 * sum(heights))
    ratios = {"height_ratios": heights}
    figure, axes = plt.subplots(len(rows), 1, figsize=size, layout="constrained", squeeze=False, gridspec_kw=ratios)
    for axis, (title, (measured, reference)) in zip(axes[:, 0], panels.items(), strict=True):
        notes: list[tuple[float, str]] = [(-0.9, "publ.")] if reference else []
        for row, name in enumerate(rows[title]):
            if name in measured:
                score_row(axis, row, name, 100 * np.asarray(measured[name], dtype=float), 2)
            if name in reference:
                axis.plot(100 * reference[name], row, "D", color="0.35", mfc="white", ms=6, ls="none")
                notes.append((row, f"{100 * reference[name]:.2f}"))
        for at, text in notes:
            axis.text(1.19, at, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color="0.35")
        axis.set_yticks(range(len(rows[title])), list(map(wrapped, rows[title])))
        axis.set_ylim(len(rows[title]) - 0.5, -0.5)
        axis.set_title("\n".join(textwrap.wrap(title, 90)), loc="left")
        axis.grid(axis="x")
    hollow = "; hollow: published" if any(reference for _, reference in panels.values()) else ""
    axes[-1, 0].set_xlabel(f"{of} of the last epoch, %  (markers: seeds; bars: mean ± std{hollow})")
    return figure


def _in_descending_order(measured: Mapping[str, Sequence[float]], reference: Mapping[str, float]) -> list[str]:
    accuracy = {**reference, **{name: float(np.mean(seeds)) for name, seeds in measured.items()}}
    return sorted(accuracy, key=accuracy.__getitem__, reverse=True)


def cost(scores: Mapping[str, Sequence[float]], seconds: Mapping[str, float]) -> Figure:
    """Draw each method's mean accuracy over the time of its training step, with one marker for each method.

    Args:
        scores: for each method one test accuracy per seed, as a fraction.
        seconds: for each method the seconds of a training step (`training.step_seconds`).
    """
    figure, axis = plt.subplots(figsize=(WIDTH, max(4.8, 0.3 * len(scores))), layout="constrained")
    short = [name.partition("(")[0] for name in scores]
    for name, base, numbers in zip(scores, short, scores.values(), strict=True):
        mean, spread = mean_and_std(100 * np.asarray(numbers, dtype=float))
        style = method_style(name)
        x = 1000 * seconds[name]
        error = float(spread) if len(numbers) > 1 else None
        label = base if short.count(base) == 1 else name  # a method's arguments only where two methods share a name
        look = {"color": style["color"], "marker": style["marker"], "ms": 7, "lw": 1, "ls": "none"}
        axis.errorbar(x, mean, yerr=error, label=label, **look)
    axis.set(xlabel="time of a training step, ms", ylabel="test accuracy, %", title="Accuracy and training cost")
    axis.grid()
    axis.margins(x=0.12, y=0.1)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the axis: labels of many methods would overlap
    return figure


def bars(scores: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str, title: str) -> Figure:
    """Draw groups of bars: one group for each part of the data, one bar for each method's mean ± standard deviation.

    Args:
        scores: for each method, for each part (such as old, new and all classes), one fraction per seed.
        ylabel: label of the axis of fractions, which are drawn in percent.
        title: title of the figure.
    """
    parts = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for i, (name, found) in enumerate(scores.items()):
        look = method_style(name)
        means, spreads = zip(*(mean_and_std(100 * np.asarray(found[part], dtype=float)) for part in parts), strict=True)
        x = np.arange(len(parts)) + (i - (len(scores) - 1) / 2) * width
        several = len(found[parts[0]]) > 1
        axis.bar(
            x,
            means,
            width * 0.92,
            yerr=spreads if several else None,
            color=look["color"],
            hatch=HATCHES[i % len(HATCHES)],
            edgecolor="white",
            ecolor="0.2",
            capsize=3,
            label=wrapped(name),
        )
        for at, mean, spread in zip(x, means, spreads, strict=True):
            axis.text(at, mean + (spread if several else 0) + 1, f"{mean:.1f}", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(range(len(parts)), parts)
    axis.set(ylabel=ylabel, title=title)
    axis.margins(y=0.1)
    figure.legend(loc="outside right upper")
    return figure


def few_shot(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Figure:
    """Draw few-shot accuracy over the number of labelled images per class, for two classifiers on top of the features.

    Args:
        found: for each network, for each number of labelled images per class, the result of `metrics.few_shot`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4), layout="constrained", sharey=True)
    for axis, key, title in zip(axes, ("ncm", "linear"), ("Nearest class mean", "Linear classifier"), strict=True):
        for name, by_shots in found.items():
            mean = [100 * numbers[key] for numbers in by_shots.values()]
            half = [100 * numbers[f"{key}_interval"] for numbers in by_shots.values()]
            axis.errorbar(range(len(mean)), mean, yerr=half, capsize=3, label=wrapped(name), **method_style(name))
        axis.set_xticks(range(len(by_shots)), [str(n) for n in by_shots])
        axis.set(xlabel="labelled images per class", title=title)
        axis.grid(axis="y")
    axes[0].set_ylabel("accuracy on new classes, %  (95% interval)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", handlelength=3.6)
    return figure
