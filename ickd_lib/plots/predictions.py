"""Predicted probabilities of several predictors for one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ickd_lib.plots.style import HATCHES, PALETTE, WIDTH, array


def distributions(
    predictions: Mapping[str, Any], classes: Sequence[str], *, label: int | None = None, most: int = 10, title: str = ""
) -> Figure:
    """Draw the probabilities that several predictors output for one query, side by side, on a common scale.

    Args:
        predictions: probabilities [C] of each predictor, such as "teacher", "aggregate" and "student".
        classes: names of the C classes.
        label: the true class. It is always shown, in bold and with a tick mark.
        most: number of classes shown: those with the highest probability from any predictor, in the order of `classes`.
        title: text above the panels.
    """
    probabilities = {name: array(p) for name, p in predictions.items()}
    peak = np.max(list(probabilities.values()), 0)
    if label is not None:
        peak[label] = np.inf
    shown = np.sort(np.argsort(-peak, kind="stable")[:most])
    longest = max(len(classes[c]) for c in shown)
    long = longest > 3
    # The margins are computed from the length of the names, because explorers draw this figure often and a layout
    # engine is slow.
    under = 0.5 + (0.065 * min(longest, 20) + 0.1 if long else 0.17)
    height = 2.8 + under + 0.3 * bool(title)
    figure, axes = plt.subplots(1, len(probabilities), figsize=(WIDTH, height), sharey=True, squeeze=False)
    top = 1 - (0.5 + 0.3 * bool(title)) / height
    highest = max(float(p.max()) for p in probabilities.values())
    figure.subplots_adjust(left=0.065, right=0.995, bottom=under / height, top=top, wspace=0.06)
    for i, (axis, (name, p)) in enumerate(zip(axes[0], probabilities.items(), strict=True)):
        axis.bar(range(len(shown)), p[shown], 0.75, color=PALETTE[i], hatch=HATCHES[i], edgecolor="white", linewidth=0)
        for x, c in enumerate(shown):
            if p[c] >= 0.1 * highest:  # without the leading 0, because numbers of adjacent bars would touch
                axis.text(x, p[c], f"{p[c]:.2f}".removeprefix("0"), ha="center", va="bottom", fontsize=7.5)
        tick = " ✓" if long else "\n✓"
        names = [classes[c] + (tick if c == label else "") for c in shown]
        axis.set_xticks(range(len(shown)), names, rotation=60 if long else 0, ha="right" if long else "center")
        if long:
            plt.setp(axis.get_xticklabels(), rotation_mode="anchor")
        for c, text in zip(shown, axis.get_xticklabels(), strict=True):
            text.set_fontweight("bold" if c == label else "normal")
        axis.set(xlabel="class", title=f"{name}\npredicts {classes[int(p.argmax())]}")
    axes[0, 0].set_ylabel("probability")
    axes[0, 0].set_ylim(0, 1.08 * highest)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.06 / height, va="top")
    return figure
