"""Figures of online distillation, of self-distillation, and of the comparison of paradigms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ickd_lib.plots.comparison import score_row
from ickd_lib.plots.style import WIDTH, looks, mean_and_std, mean_std_text, method_style, wrapped
from ickd_lib.runtime import InputError

Records = Sequence[Mapping[str, Any]]


def banks(runs: Mapping[str, Records]) -> Figure:
    """Draw the state of banks that are updated during training: the age of rows and the distance to a rebuilt bank.

    Unless the augmentation mixes images, every row is updated once in each epoch, so the age of a full bank is almost
    constant. A text in the first panel describes how full the banks are. The drift is also low where all features are
    alike; the panel of neighbours shows whether retrieval is affected.

    Args:
        runs: for each student, named "method, description", its records (`History.epochs`). Only records of evaluated
            epochs contain "bank_drift", "bank_overlap" and "bank_agreement". Students of one method share its colour.
    Raises:
        InputError: a student has no such records.
    """
    panels = (
        ("bank_age", 1, "Age of rows, steps (thin: oldest row)"),
        ("bank_drift", 1, "Drift from a rebuilt bank, 1 − cosine"),
        ("bank_overlap", 100, "Neighbours as in a rebuilt bank, %"),
        ("bank_agreement", 100, "Predictions as in a rebuilt bank, %"),
    )
    keys = ("bank_fill", "bank_age_max", *(key for key, *_ in panels))
    series = [{key: _series(name, records, key) for key in keys} for name, records in runs.items()]
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.6), layout="constrained", sharex=True)
    handles = []
    for i, (name, found, look) in enumerate(zip(runs, series, looks(runs), strict=True)):
        for axis, (key, scale, _) in zip(axes.flat, panels, strict=True):
            epochs, values = found[key]
            every = (i % len(epochs), len(runs)) if key == "bank_age" else None  # markers of coinciding lines alternate
            axis.plot(epochs, scale * values, markevery=every, **look)
        axes[0, 0].plot(*found["bank_age_max"], color=look["color"], ls=look["linestyle"], lw=0.7)
        handles.append(Line2D([], [], label=wrapped(name), **look))
    for axis, (_, scale, title) in zip(axes.flat, panels, strict=True):
        axis.set_title(title)
        axis.grid(axis="y")
        axis.set_ylim(0, 105 if scale == 100 else 1.25 * max(line.get_ydata().max() for line in axis.lines) + 1e-9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    filled = _filled([found["bank_fill"] for found in series])
    axes[0, 0].text(0.02, 0.97, filled, transform=axes[0, 0].transAxes, va="top", fontsize=9)
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.6)
    return figure


def agreement(runs: Mapping[str, Sequence[Records]]) -> Figure:
    """Draw how often peers predict the same class, over the epochs and against their accuracy.

    The left panel shows the mean over seeds in a band of ± one standard deviation. The right panel shows one line for
    each method, with a marker at its last epoch. The correct predictions on which peers agree are at most those of one
    student, so the height above the diagonal is a lower bound on the wrong predictions on which they agree.

    Args:
        runs: for each method, the records of each seed (`History.epochs`) with "peer_agreement" and "train_accuracy".
            Epochs that are missing for a seed of the method are left out.
    Raises:
        InputError: a method has no such records, because its students have no peers.
    """
    paths = {name: _path(name, seeds) for name, seeds in runs.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.9), layout="constrained", sharey=True)
    right.plot([0, 100], [0, 100], color="0.6", lw=1)
    right.fill_between([0, 100], [0, 100], 100, color="0.94", lw=0)
    last: list[tuple[float, str, Line2D]] = []
    for name, (epochs, mean, spread) in paths.items():
        (agreed, accuracy), band = 100 * mean.T, 100 * spread[:, 0]
        look = method_style(name)
        (line,) = left.plot(epochs, agreed, markevery=max(1, len(epochs) // 8), **look)
        left.fill_between(epochs, agreed - band, agreed + band, color=look["color"], alpha=0.15, linewidth=0)
        right.plot(accuracy, agreed, color=look["color"], ls=look["linestyle"], lw=1.2)
        right.plot(accuracy[-1], agreed[-1], color=look["color"], marker=look["marker"], ms=9, mec="white", ls="none")
        last.append((agreed[-1], f"{wrapped(name)}\n{mean_std_text(agreed[-1], band[-1], len(runs[name]))}", line))
    last.sort(key=lambda entry: -entry[0])
    several = max(len(seeds) for seeds in runs.values())
    left.set(xlabel="epoch", title="Agreement of a student and its peer", ylim=(0, 102))
    left.set_ylabel("same predicted class, % of views" + f"\n(mean ± std, {several} seeds)" * (several > 1))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    left.grid(axis="y")
    shaded = "shaded: agreement exceeds accuracy, so peers\nagree on some wrong predictions"
    right.set(xlabel=f"training accuracy, %\n({shaded})", title="Agreement against accuracy", xlim=(0, 102))
    figure.legend(
        [line for *_, line in last],
        [text for _, text, _ in last],
        loc="outside right upper",
        handlelength=3.6,
        title="last epoch, %",
        alignment="left",
    )
    return figure


def paradigms(scores: Mapping[str, Mapping[str, Sequence[float]]], *, baseline: str = "") -> Figure:
    """Draw test accuracies grouped by paradigm: one row for each method, with its seeds and mean ± standard deviation.

    Args:
        scores: for each paradigm, such as "labels only" or "online", for each of its methods, one fraction per seed.
        baseline: a method of one of the groups; a thin line marks its mean.
    Raises:
        InputError: no group contains the baseline.
    """
    means = {name: 100 * float(np.mean(seeds)) for group in scores.values() for name, seeds in group.items()}
    if baseline and baseline not in means:
        raise InputError(f"no group contains the baseline {baseline!r}; choose one of {', '.join(means)}")
    rows = [(group, name) for group, found in scores.items() for name in ("", *found)]  # "": the heading
    figure, axis = plt.subplots(figsize=(WIDTH, 1 + 0.37 * len(rows)), layout="constrained")
    for row, (group, name) in enumerate(rows):
        if name:
            score_row(axis, row, name, 100 * np.asarray(scores[group][name], dtype=float))
        else:
            axis.axhspan(row - 0.4, row + 0.4, color="0.94", lw=0)
            axis.text(0.008, row, group, transform=axis.get_yaxis_transform(), va="center", weight="bold", fontsize=9)
    label = "test accuracy, %"
    if baseline:
        axis.axvline(means[baseline], color="0.3", lw=0.8, zorder=0.5)
        label += f"  (line: {baseline}, {means[baseline]:.1f})"
    axis.set_yticks(*zip(*[(row, wrapped(name)) for row, (_, name) in enumerate(rows) if name], strict=True))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    alone = all(len(seeds) == 1 for found in scores.values() for seeds in found.values())
    axis.set(xlabel=label, title="One seed each" if alone else "Each seed (markers), mean ± standard deviation (bars)")
    axis.grid(axis="x")
    axis.margins(x=0.05)
    return figure


def _series(name: str, records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs of the records that contain `key`, and the values of `key`, both of shape [E]."""
    found = [(record["epoch"], record[key]) for record in records if key in record]
    if not found:
        raise InputError(
            f"the records of {name!r} contain no {key!r}; it is recorded only for evaluated epochs with an updated bank"
        )
    epochs, values = zip(*found, strict=True)
    return np.array(epochs), np.array(values, dtype=float)


def _filled(fills: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Describe the fill of the emptiest bank after the first epoch, and after the last one or when all are full."""
    lowest: dict[int, float] = {}
    for epoch, value in (pair for fill in fills for pair in zip(*fill, strict=True)):
        lowest[int(epoch)] = min(value, lowest.get(int(epoch), 1.0))
    first, last = min(lowest), max(lowest)
    full = next((epoch for epoch in sorted(lowest) if lowest[epoch] == 1), None)
    if full == first:
        return f"all banks full from epoch {first} on"
    then = f"{100 * lowest[last]:.0f}% after epoch {last}" if full is None else f"full from epoch {full} on"
    return f"emptiest bank: {100 * lowest[first]:.0f}% after epoch {first},\n{then}"


def _path(name: str, seeds: Sequence[Records]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the epochs [E] of all seeds, and the mean and standard deviation of agreement and accuracy [E, 2]."""
    pair = ("peer_agreement", "train_accuracy")
    found = [{r["epoch"]: [r[key] for key in pair] for r in records if pair[0] in r} for records in seeds]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    if not epochs:
        raise InputError(f"the records of {name!r} contain no {pair[0]!r}; it is recorded only for students with peers")
    return epochs, *mean_and_std([[seed[epoch] for epoch in epochs] for seed in found])
