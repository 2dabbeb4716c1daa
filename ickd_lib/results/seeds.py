"""Runs over seeds: which belong together, their mean and spread, differences paired by seed."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ickd_lib import runtime
from ickd_lib.runtime import InputError

SETTING = ("dataset", "train_images", "teacher", "network", "epochs", "batch_size", "lr", "schedule")
# Values of SETTING, the augmentation, the data that the teacher saw, and whether images of train were held out.
Setting = tuple[Any, ...]


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation with n - 1 (not a number for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The mean difference, paired by position (a seed), and half the width of its 95% interval (Student's t).

    Raises:
        InputError: there are not equally many, or fewer than two.
    """
    from scipy.stats import t

    if len(ours) != len(baseline) or len(ours) < 2:
        raise InputError(f"a paired difference needs two or more pairs; given {len(ours)} and {len(baseline)} values")
    mean, std = mean_std([a - b for a, b in zip(ours, baseline, strict=True)])
    return mean, float(t.ppf(0.975, len(ours) - 1)) * std / math.sqrt(len(ours))


def interval(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """`paired` as its mean and the low and high end of its 95% interval."""
    mean, half = paired(ours, baseline)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def grouped(summaries: Sequence[dict[str, Any]]) -> dict[Setting, dict[str, list[list[dict[str, Any]]]]]:
    """For each setting (data, teacher, student, epochs), for each method, for each seed the runs that count once.

    These are one run, or students of one network that learned from each other. A row whose "role" is "teacher" has that
    for its method.
    """
    found: dict[Setting, dict[str, dict[object, list[dict[str, Any]]]]] = {}
    for i, summary in enumerate(summaries):
        saw = (summary.get("teacher_saw") or {}).get("data", "").split("/")[0]
        setting = (*(summary[key] for key in SETTING), summary.get("augment", "crop"), saw, "val_accuracy" in summary)
        others = [peer for peer in summary.get("peers", ()) if peer != summary["network"]]
        own = "teacher" if summary.get("role") == "teacher" else summary["method"]
        method = own + (f" with {', '.join(others)}" if others else "")
        seed = (summary["data_seed"], summary["circle"]) if "circle" in summary else i
        found.setdefault(setting, {}).setdefault(method, {}).setdefault(seed, []).append(summary)
    return {
        setting: {method: list(seeds.values()) for method, seeds in by_method.items()}
        for setting, by_method in found.items()
    }


def named(rows: Sequence[dict[str, Any]], *, by_run: bool = False) -> dict[str, list[list[dict[str, Any]]]]:
    """Rows of `overview` under a name for a figure: the method, with what tells apart those of several settings.

    Args:
        by_run: a name each run, with its seed, instead of one for all seeds.
    Returns:
        For each name, for each seed the rows that count once (`grouped`).
    """
    groups = grouped(rows)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for setting, by_method in groups.items():
        for method, seeds in by_method.items():
            rivals = [other for other in groups if method in groups[other]]
            telling = [w for i, w in enumerate(_words(setting)) if len({str(other[i]) for other in rivals}) > 1]
            found[", ".join([method, *telling])] = seeds
    if not by_run:
        return found
    runs = [(f"{name}, seed {row['seed']}", row) for name, seeds in found.items() for alike in seeds for row in alike]
    count = Counter(name for name, _ in runs)
    marks = [re.search(r"-([0-9a-f]{6})$", row["run"]) for _, row in runs]  # of settings, as training names folders
    marked = [
        f"{name} ({mark[1] if mark else row['run']})" if count[name] > 1 else name
        for (name, row), mark in zip(runs, marks, strict=True)
    ]
    count = Counter(marked)
    return {
        (f"{runs[i][0]} ({row['run']})" if count[name] > 1 else name): [[row]]
        for i, (name, (_, row)) in enumerate(zip(marked, runs, strict=True))
    }


def _words(setting: Setting) -> list[str]:
    dataset, images, teacher, network, epochs, batch_size, lr, schedule, augment, saw, held = setting
    return [
        dataset,
        f"{images:,} images",
        f"from {teacher}" if teacher else "no teacher",
        network,
        f"{epochs} epochs",
        f"batch {batch_size}",
        f"learning rate {lr:g}",
        str(schedule),
        augment,
        f"teacher saw {saw or 'nothing'}",
        "on held-out images" if held else "on test images",
    ]


def score(alike: Sequence[dict[str, Any]]) -> float:
    """The accuracy to compare by, a fraction: on images held out of train where there are some, else on test images.

    Args:
        alike: the runs that count once (`grouped`); their mean is taken.
    """
    return statistics.fmean(one.get("val_accuracy", one["accuracy"]) for one in alike)


def differences(by_method: dict[str, list[list[dict[str, Any]]]], baseline: str) -> dict[str, dict[str, float]]:
    """For each other method its difference in `score` to the baseline, paired by seed, as `interval` gives it.

    Methods with fewer than two seeds in common with it are left out.

    Args:
        by_method: one setting of `grouped`.
    Raises:
        InputError: the baseline is not there.
    """
    scores = {method: {alike[0]["data_seed"]: score(alike) for alike in seeds} for method, seeds in by_method.items()}
    theirs = scores.pop(runtime.choose(baseline, list(scores), "baseline"))
    found = {}
    for method, ours in scores.items():
        if len(both := sorted(ours.keys() & theirs.keys())) > 1:
            found[method] = interval([ours[seed] for seed in both], [theirs[seed] for seed in both])
    return found
