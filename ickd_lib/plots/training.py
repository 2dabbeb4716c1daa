"""Numbers over the epochs of training: accuracies, losses and their terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ickd_lib.plots.style import WIDTH, looks, mean_and_std, mean_std_text, wrapped
from ickd_lib.runtime import InputError

Seeds = Sequence[Sequence[Mapping[str, Any]]]  # the records of one method: one sequence of records for each seed


def curves(runs: Mapping[str, Seeds], key: str = "test_accuracy") -> Figure:
    """Draw one number over the epochs: for each method the mean over its seeds, in a band of ± one standard deviation.

    The left panel shows all epochs. The right panel enlarges the last third, in which differences between methods are
    easier to see. The legend contains the last value of each method and is in descending order of it. It names the
    epoch of this value for methods that were trained for fewer epochs than others, or of which a seed was.

    Args:
        runs: for each method, the records of each seed (`History.epochs`). Epochs in which the record of a seed of the
            method has no `key` are left out. Several entries of one method, such as "kd, seed 0" and "kd, seed 1",
            share its colour.
        key: name of the number. An accuracy is shown in percent.
    Raises:
        InputError: a method has no epoch with this number in all seeds.
    """
    scale, digits = (100, 1) if "accuracy" in key else (1, 3)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, max(3.8, _legend_height(runs))), layout="constrained")
    last: list[tuple[float, str, Line2D]] = []
    found = {name: _over_seeds(seeds, key, scale) for name, seeds in runs.items()}
    longest = max((epochs[-1] for epochs, _, _ in found.values() if len(epochs)), default=0)
    for (name, seeds), style in zip(runs.items(), looks(runs), strict=True):
        epochs, mean, spread = found[name]
        if not len(epochs):
            raise InputError(f"the records of {name!r} contain no {key!r}; check that it was evaluated during training")
        for axis, shown in zip(axes, (slice(None), epochs >= 2 * epochs[-1] / 3), strict=True):
            x, y, s = epochs[shown], mean[shown], spread[shown]
            (line,) = axis.plot(x, y, label=name, markevery=max(1, len(x) // 8), **style)
            axis.fill_between(x, y - s, y + s, color=style["color"], alpha=0.15, linewidth=0)
        text = f"{wrapped(name)}  {mean_std_text(mean[-1], spread[-1], len(seeds), digits)}"
        last.append((mean[-1], text + (f" (epoch {epochs[-1]:g})" if epochs[-1] < longest else ""), line))
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
    """Draw the loss and its terms over the epochs: one panel for each, with one line for each method as in `curves`.

    A panel has a logarithmic scale where its largest value is more than 30 times its smallest one.

    Args:
        runs: for each method, the records of each seed, with "loss" and terms such as "loss_kd" (`runs.records`). A
            method without a term has no line in that term's panel.
    Raises:
        InputError: no record contains a loss.
    """
    keys = (key for seeds in runs.values() for seed in seeds for record in seed for key in record)
    terms = dict.fromkeys(["loss", *(key for key in keys if key.startswith("loss_"))])
    drawn: dict[str, list[tuple[dict[str, Any], tuple[np.ndarray, ...]]]] = {}
    for seeds, look in zip(runs.values(), looks(runs), strict=True):
        for term in terms:
            if len((line := _over_seeds(seeds, term))[0]):
                drawn.setdefault(term, []).append((look, line))
    if not drawn:
        raise InputError(f"the records of {', '.join(runs)} contain no loss; it is recorded at the end of each epoch")
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
        axis.minorticks_off()  # minor ticks take half of the drawing time
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.grid(axis="y")
    for at, axis in enumerate(axes.flat):
        axis.set_visible(at < len(drawn))
        if at + columns >= len(drawn):
            axis.set_xlabel("epoch")
    handles = [Line2D([], [], label=wrapped(name), **look) for name, look in zip(runs, looks(runs), strict=True)]
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.6)
    return figure


def _over_seeds(seeds: Seeds, key: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the epochs [E] in which every seed has `key`, and mean and standard deviation over the seeds [E]."""
    found = [{record["epoch"]: scale * record[key] for record in seed if key in record} for seed in seeds]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    return np.array(epochs), *mean_and_std([[seed[epoch] for epoch in epochs] for seed in found])


def _legend_height(names: Iterable[str]) -> float:
    """Return the height in inches of a legend with these names."""
    return 0.8 + 0.21 * sum(1 + wrapped(name).count("\n") for name in names)
