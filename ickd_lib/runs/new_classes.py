"""Results on new classes, incremental and few-shot, as sentences for a notebook to display."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ickd_lib.runs.findings import count, percent, points


def new_classes_summary(found: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
    """Summarise steps of incremental learning in a Markdown list: the old classes and all classes, by exemplars.

    Args:
        found: for each number of exemplars, what `training.generalised.learn_new_classes` returns.
    """
    lines = []
    for exemplars, by_method in found.items():
        lines.append(
            f"With {count(exemplars, 'exemplar')} of each old class: "
            + "; ".join(
                f"`{name}` reaches {percent(parts['old'])} on the old classes and {percent(parts['all'])} on all"
                for name, parts in by_method.items()
            )
            + "."
        )
    fewest, most = min(found), max(found)
    if fewest != most:
        mean = {n: [statistics.fmean(parts["all"]) for parts in found[n].values()] for n in (fewest, most)}
        gains = [after - before for before, after in zip(mean[fewest], mean[most], strict=True)]
        lines.append(
            f"From {fewest} to {count(most, 'exemplar')}, the mean accuracy on all classes changes by "
            f"{points(min(gains))} to {points(max(gains))} points, depending on the method. With "
            f"{count(most, 'exemplar')}, the best and the worst method are "
            f"{100 * (max(mean[most]) - min(mean[most])):.1f} points apart, with {fewest} they are "
            f"{100 * (max(mean[fewest]) - min(mean[fewest])):.1f} points apart."
        )
    return "\n".join(f"- {line}" for line in lines)


def few_shot_summary(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], *, ours: str = "teacher", other: str = "pixels"
) -> str:
    """Compare two kinds of features by few-shot accuracy in one sentence for each number of labelled images.

    Args:
        found: for each kind of features and each number of labelled images of a class, what `metrics.few_shot` returns.
        ours, other: names of the two kinds of features that are compared, by the accuracy of the nearest class mean.
    Returns:
        A Markdown list.
    """
    lines = []
    for shots in found[ours]:
        first, second = found[ours][shots], found[other][shots]
        gap, reach = first["ncm"] - second["ncm"], first["ncm_interval"] + second["ncm_interval"]
        verdict = "do not overlap" if abs(gap) > reach else "overlap, so no difference is established"
        lines.append(
            f"With {count(shots, 'labelled image')} of each new class, the nearest class mean is right on "
            f"{_with_half(first)} of the images with the features of the {ours}, and on {_with_half(second)} with "
            f"{other}. The two 95% intervals {verdict}."
        )
    return "\n".join(f"- {line}" for line in lines)


def _with_half(numbers: Mapping[str, float]) -> str:
    """Format the accuracy of the nearest class mean with half the width of its interval."""
    return f"{100 * numbers['ncm']:.1f} ± {100 * numbers['ncm_interval']:.1f}%"
