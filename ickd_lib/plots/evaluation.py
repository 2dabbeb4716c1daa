"""Predictions of networks beside the labels: the confusion matrix, and probabilities beside accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ickd_lib.plots.style import WIDTH, array, looks, wrapped
from ickd_lib.runtime import InputError

NUMBERED = 12  # largest number of classes for which the cells contain numbers
NAMED = 40  # largest number of classes whose names are written at the axes


def confusion(counts: Any, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix as the share of each label's samples that is predicted as each class.

    Args:
        counts: number of samples with each label (rows) and each prediction (columns), shape [C, C].
        classes: names of the C classes.
    Raises:
        InputError: the numbers of rows and columns are not that of the names.
    """
    counts = array(counts).astype(float)
    if counts.shape != (len(classes), len(classes)):
        raise InputError(
            f"the counts have shape {list(counts.shape)}, but there are {len(classes)} names of classes; give one name "
            "for each row and column"
        )
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(7.5, 2.5 + 0.35 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    picture = axis.imshow(share, vmin=0, vmax=1, cmap="cividis")
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the label's samples")
    if len(classes) <= NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "black" if share[row, column] > 0.55 else "white"
                axis.text(column, row, f"{count:.0f}", ha="center", va="center", color=ink, fontsize=8)
    if len(classes) <= NAMED:
        names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
        size = 9 if len(classes) <= 20 else 6.5
        long = max(map(len, names)) > 2
        axis.set_xticks(range(len(names)), names, rotation=60 if long else 0, ha="right" if long else "center")
        if long:
            plt.setp(axis.get_xticklabels(), rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(labelsize=size)
    axis.set(xlabel="prediction", ylabel="label")
    return figure


def reliability(networks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the accuracy over the probability of the predicted class, and the number of samples in each bin.

    Args:
        networks: for each network the result of `metrics.reliability`. Bins without samples are left out.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.9), layout="constrained")
    left.plot([0, 100], [0, 100], color="0.5", linewidth=1, linestyle=":", label="accuracy = probability")
    for (name, bins), look in zip(networks.items(), looks(networks), strict=True):
        count = array(bins["count"])
        filled = count > 0
        confidence = 100 * array(bins["confidence"])[filled]
        left.plot(confidence, 100 * array(bins["accuracy"])[filled], label=wrapped(name), **look)
        edges = np.linspace(0, 100, len(count) + 1)
        right.stairs(
            100 * count / max(count.sum(), 1), edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.5
        )
    left.set(
        xlabel="probability of the predicted class, %", ylabel="accuracy, %", title="Below the diagonal: overconfident"
    )
    right.set(
        xlabel="probability of the predicted class, %", ylabel="share of the samples, %", title="Samples in each bin"
    )
    for axis in (left, right):
        axis.set_xlim(0, 100)
        axis.grid(axis="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", handlelength=3.6)
    return figure
