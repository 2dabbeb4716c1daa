"""Figures of training: curves and loss terms over the epochs, scores over the seeds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ickd_lib.plots.style import HATCHES, WIDTH, looks, mean_and_std, method_style, wrapped
from ickd_lib.runtime import InputError

Seeds = Sequence[Sequence[Mapping[str, Any]]]  # of a method: for each seed its records


def curves(runs: Mapping[str, Seeds], key: str = "test_accuracy") -> Figure:
    """One number over the epochs: a line a method, the mean over its seeds, in a band of ± one standard deviation.

    The left panel shows all epochs, the right one the last third on a scale of its own, where methods come apart.
    The legend is ordered by the last value, which it names.

    Args:
        runs: for each method, for each seed, its records (`History.epochs`). Epochs that some seed of the method
            has no `key` for are left out. Several of one method, as "kd, seed 0" and "kd, seed 1", share its colour.
        key: which number; an accuracy is shown in percent.
    Raises:
        InputError: a method has no such number.
    """
    scale, digits = (100, 1) if "accuracy" in key else (1, 3)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, max(3.8, _legend_height(runs))), layout="constrained")
    last: list[tuple[float, str, Line2D]] = []
    for (name, seeds), style in zip(runs.items(), looks(runs), strict=True):
        epochs, mean, spread = _over_seeds(seeds, key, scale)
        if not len(epochs):
            raise InputError(f"the records of {name!r} hold no {key!r} to draw; was it evaluated?")
        for axis, shown in zip(axes, (slice(None), epochs >= 2 * epochs[-1] / 3), strict=True):
            x, y, s = epochs[shown], mean[shown], spread[shown]
            (line,) = axis.plot(x, y, label=name, markevery=max(1, len(x) // 8), **style)
            axis.fill_between(x, y - s, y + s, color=style["color"], alpha=0.15, linewidth=0)
        last.append((mean[-1], f"{wrapped(name)}  {score(mean[-1], spread[-1], len(seeds), digits)}", line))
    last.sort(key=lambda entry: -entry[0])
    words = key.replace("_", " ")
    several = max(len(seeds) for seeds in runs.values())
    figure.legend(
        [line for _, _, line in last],
        [text for _, text, _ in last],
        loc="outside right upper",
        handlelength=3.6,
        title="last epoch" + (", %" if scale == 100 else ""),
        alignment="left",
    )
    for axis, title in zip(axes, ("All epochs", "The last third, enlarged"), strict=True):
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.grid(axis="y")
    axes[0].set_ylabel(
        (f"{words}, %" if scale == 100 else words) + (f"  (mean ± std, {several} seeds)" * (several > 1))
    )
    return figure


def losses(runs: Mapping[str, Seeds]) -> Figure:
    """The loss and its terms over the epochs: a panel each and in it a line a method, as in `curves`.

    A term that falls to a small part of itself is on a logarithmic scale.

    Args:
        runs: for each method, for each seed, its records with "loss" and terms such as "loss_kd" (`runs.records`). A
            method without a term is left out of its panel.
    Raises:
        InputError: no method has such numbers.
    """
    keys = (key for seeds in runs.values() for seed in seeds for record in seed for key in record)
    terms = dict.fromkeys(["loss", *(key for key in keys if key.startswith("loss_"))])
    drawn: dict[str, list[tuple[dict[str, Any], tuple[np.ndarray, ...]]]] = {}
    for seeds, look in zip(runs.values(), looks(runs), strict=True):
        for term in terms:
            if len((line := _over_seeds(seeds, term))[0]):
                drawn.setdefault(term, []).append((look, line))
    if not drawn:
        raise InputError(f"no records of {', '.join(runs)} hold a loss to draw; has an epoch ended?")
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    size = (WIDTH, max(0.6 + 2.4 * rows + (rows == 1), _legend_height(runs)))
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis, term in zip(axes.flat, (term for term in terms if term in drawn), strict=False):
        means = np.concatenate([mean for _, (_, mean, _) in drawn[term]])
        steep = means.min() > 0 and means.max() > 30 * means.min()
        for look, (epochs, mean, spread) in drawn[term]:
            axis.plot(epochs, mean, markevery=max(1, len(epochs) // 6), **look)
            low = np.maximum(mean - spread, mean / 10) if steep else mean - spread
            axis.fill_between(epochs, low, mean + spread, color=look["color"], alpha=0.15, linewidth=0)
        axis.set(
            title=term.removeprefix("loss_") + (" (log scale)" if steep else ""), yscale="log" if steep else "linear"
        )
        axis.minorticks_off()  # half of the drawing time
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.grid(axis="y")
    for at, axis in enumerate(axes.flat):
        axis.set_visible(at < len(drawn))
        if at + columns >= len(drawn):
            axis.set_xlabel("epoch")
    handles = [Line2D([], [], label=wrapped(name), **look) for name, look in zip(runs, looks(runs), strict=True)]
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.6)
    return figure


def finals(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Several final numbers beside each other: a panel a number, a row a method, drawn as in `scores`.

    Args:
        found: for each method, for each number a value a seed. Numbers with a "%" in their name are fractions, and
            shown in percent. A method without a number has an empty place there.
    """
    names = list(dict.fromkeys(number for numbers in found.values() for number in numbers))
    if not names:
        raise InputError("there are no final numbers to draw; choose runs that are finished")
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


def _over_seeds(seeds: Seeds, key: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs [E] in which every seed has `key`; mean and spread over seeds [E]."""
    found = [{record["epoch"]: scale * record[key] for record in seed if key in record} for seed in seeds]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    return np.array(epochs), *mean_and_std([[seed[epoch] for epoch in epochs] for seed in found])


def _legend_height(names: Iterable[str]) -> float:
    """Inches that a legend of these names takes."""
    return 0.8 + 0.21 * sum(1 + wrapped(name).count("\n") for name in names)


def scores(scores: Mapping[str, Sequence[float]], *, xlabel: str = "test accuracy, %") -> Figure:
    """One row a method in the given order: a dot a seed, and mean ± standard deviation, drawn and written.

    Args:
        scores: for each method a number a seed.
        xlabel: with a "%" in it, the numbers are fractions and shown in percent.
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
    """Draw a method's seeds [S] in a row of `scores` and write mean ± standard deviation beside it."""
    mean, spread = map(float, mean_and_std(seeds))
    style = look or method_style(name)
    colour, marker = style["color"], style["marker"]
    several = len(seeds) > 1  # then the seeds lie a little above their mean, so that neither hides the other
    axis.scatter(seeds, np.full(len(seeds), row - 0.17 * several), s=30, color=colour, marker=marker, alpha=0.8, lw=0)
    if several:
        axis.errorbar(mean, row + 0.12, xerr=spread, color=colour, marker="|", ms=13, mew=2.2, capsize=3, lw=1.6)
    text = score(mean, spread, len(seeds), digits)
    axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)


def score(mean: float, spread: float, count: int, digits: int = 1) -> str:
    """ "94.1 ± 0.5"; only the number where there is one seed."""
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if count > 1 else "")


def differences(intervals: Mapping[str, Mapping[str, float]], *, baseline: str, of: str = "test accuracy") -> Figure:
    """One row a method: its mean difference to the baseline in points and its 95% interval, beside a line at 0.

    An interval that includes 0 is drawn hollow and pale: a difference that these seeds do not show. One much wider than
    the differences is cut off; its ends are written beside it.

    Args:
        intervals: for each method "mean", "low" and "high", fractions (`runs.interval`).
        baseline, of: its name and that of the quantity, for the axis.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.34 * len(intervals)), layout="constrained")
    axis.axvline(0, color="0.4", lw=1)
    for row, (name, found) in enumerate(intervals.items()):
        style = method_style(name)
        mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
        shown = low > 0 or high < 0
        axis.plot([low, high], [row, row], color=style["color"], alpha=1 if shown else 0.45, lw=2.2 if shown else 1.4)
        face = style["color"] if shown else "white"
        axis.plot(mean, row, marker=style["marker"], color=style["color"], mfc=face, ms=7, ls="none")
        text = f"{mean:+.1f}  ({low:+.1f} to {high:+.1f})" + ("" if shown else "  not shown")
        axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    reach = 3 + 2 * max(abs(100 * found["mean"]) for found in intervals.values())
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -reach), min(high, reach))
    axis.set_yticks(range(len(intervals)), list(map(wrapped, intervals)))
    axis.set_ylim(len(intervals) - 0.5, -0.5)
    axis.set(
        xlabel=f"difference to {baseline}, points of {of}",
        title="Paired by seed: mean and 95% interval (hollow: includes 0)",
    )
    axis.grid(axis="x")
    return figure


def published(panels: Mapping[str, tuple[Mapping[str, Sequence[float]], Mapping[str, float]]]) -> Figure:
    """Accuracies measured here beside the published ones: a panel a setting, in it a row a method, the best on top.

    Filled markers are seeds measured here, with mean ± standard deviation; hollow diamonds are what was published.

    Args:
        panels: for each title what `results.beside_published` gives: for each method a fraction a seed, and for each
            published method a fraction.
    """
    rows = {title: _by_height(*both) for title, both in panels.items()}
    heights = [len(names) + 2 for names in rows.values()]
    size = (WIDTH, 0.6 + 0.3 * sum(heights))
    ratios = {"height_ratios": heights}
    figure, axes = plt.subplots(len(rows), 1, figsize=size, layout="constrained", squeeze=False, gridspec_kw=ratios)
    for axis, (title, (ours, theirs)) in zip(axes[:, 0], panels.items(), strict=True):
        words: list[tuple[float, str]] = [(-0.9, "publ.")] if theirs else []
        for row, name in enumerate(rows[title]):
            if name in ours:
                score_row(axis, row, name, 100 * np.asarray(ours[name], dtype=float), 2)
            if name in theirs:
                axis.plot(100 * theirs[name], row, "D", color="0.35", mfc="white", ms=6, ls="none")
                words.append((row, f"{100 * theirs[name]:.2f}"))
        for at, text in words:
            axis.text(1.19, at, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color="0.35")
        axis.set_yticks(range(len(rows[title])), list(map(wrapped, rows[title])))
        axis.set_ylim(len(rows[title]) - 0.5, -0.5)
        axis.set_title("\n".join(textwrap.wrap(title, 90)), loc="left")
        axis.grid(axis="x")
    hollow = "; hollow: published" if any(theirs for _, theirs in panels.values()) else ""
    axes[-1, 0].set_xlabel(f"accuracy of the last epoch, %  (markers: seeds; bars: mean ± std{hollow})")
    return figure


def _by_height(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, float]) -> list[str]:
    height = {**theirs, **{name: float(np.mean(seeds)) for name, seeds in ours.items()}}
    return sorted(height, key=height.__getitem__, reverse=True)


def cost(scores: Mapping[str, Sequence[float]], seconds: Mapping[str, float]) -> Figure:
    """What each method's accuracy costs: mean accuracy over the time of a training step, a marker a method.

    Args:
        scores: for each method a test accuracy a seed, as a fraction.
        seconds: for each method the time of a step (`training.step_seconds`).
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.8), layout="constrained")
    short = [name.partition("(")[0] for name in scores]
    for name, base, numbers in zip(scores, short, scores.values(), strict=True):
        mean, spread = mean_and_std(100 * np.asarray(numbers, dtype=float))
        style = method_style(name)
        x = 1000 * seconds[name]
        error = float(spread) if len(numbers) > 1 else None
        axis.errorbar(x, mean, yerr=error, color=style["color"], marker=style["marker"], ms=7, lw=1, ls="none")
        label = base if short.count(base) == 1 else name  # arguments only where they tell two apart
        axis.annotate(label, (x, float(mean)), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axis.set(xlabel="time of a training step, ms", ylabel="test accuracy, %", title="Accuracy and its price")
    axis.grid()
    axis.margins(x=0.12, y=0.1)
    return figure


def bars(scores: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str, title: str) -> Figure:
    """Groups of bars, one group a part and in it a bar a method: the mean over seeds, its spread and the value.

    Args:
        scores: for each method, for each part (such as old, new and all classes), a fraction a seed.
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
    """Few-shot accuracy over the number of labelled images a class: nearest class mean left, linear classifier right.

    Args:
        found: for each network, for each number of shots, what `metrics.few_shot` returns.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4), layout="constrained", sharey=True)
    for axis, key, title in zip(axes, ("ncm", "linear"), ("Nearest class mean", "Linear classifier"), strict=True):
        for name, by_shots in found.items():
            mean = [100 * numbers[key] for numbers in by_shots.values()]
            half = [100 * numbers[f"{key}_interval"] for numbers in by_shots.values()]
            axis.errorbar(range(len(mean)), mean, yerr=half, capsize=3, label=wrapped(name), **method_style(name))
        axis.set_xticks(range(len(by_shots)), [str(n) for n in by_shots])
        axis.set(xlabel="labelled images a class", title=title)
        axis.grid(axis="y")
    axes[0].set_ylabel("accuracy on new classes, %  (95% interval)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", handlelength=3.6)
    return figure
