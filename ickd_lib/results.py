"""Tables from the summaries of finished runs: mean ± std over seeds, differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ickd_lib import runtime
from ickd_lib.runtime import InputError

SETTING = ("dataset", "train_images", "teacher", "network", "epochs", "batch_size", "lr", "schedule")
COLUMNS = {  # of a table: heading, key of the summary, scale and format
    "last, %": ("accuracy", 100, ".2f"),
    "best, %": ("best_accuracy", 100, ".2f"),
    "NLL": ("nll", 1, ".3f"),
    "ECE, %": ("ece", 100, ".2f"),
    "agrees with teacher, %": ("agreement", 100, ".2f"),
    "images/s": ("images_per_second", 1, ".0f"),
}


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


def finished(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The summaries of all finished runs at or below the folders, teachers left out."""
    found = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder; name one that holds runs")
        found += [run.summary for run in runtime.runs(folder) if run.folder.parent.name != "teachers"]
    summaries = [summary for summary in found if summary]
    if not summaries:
        raise InputError(f"no finished run below {', '.join(map(str, folders))}; resume what was stopped")
    return summaries


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each setting (data, teacher, student, epochs) a table with a row a method, over its seeds.

    Students of one network that learned from each other count as one, with their mean.
    """
    settings: dict[tuple, dict[str, list[dict]]] = {}
    for summary in summaries:
        saw = (summary.get("teacher_saw") or {}).get("data", "").split("/")[0]
        setting = (*(summary[key] for key in SETTING), summary.get("augment", "crop"), saw)
        others = [peer for peer in summary.get("peers", ()) if peer != summary["network"]]
        method = summary["method"] + (f" with {', '.join(others)}" if others else "")
        settings.setdefault(setting, {}).setdefault(method, []).append(summary)
    return "\n\n".join(_one(setting, methods) for setting, methods in settings.items()) + "\n"


def _one(setting: tuple, methods: dict[str, list[dict]]) -> str:
    dataset, images, teacher, network, epochs, batch_size, lr, schedule, augment, saw = setting
    arrow = f"{teacher}{f' of {saw}' if saw not in ('', dataset) else ''} → " if teacher else ""
    shown = {
        heading: column
        for heading, column in COLUMNS.items()
        if any(column[0] in summary for group in methods.values() for summary in group)
    }
    lines = [
        f"**{dataset}**, {images:,} training images: {arrow}{network}, {epochs} epochs at batch {batch_size}, "
        f"learning rate {lr:g} ({schedule})" + (f", {augment}" if augment != "crop" else ""),
        "",
        "| method | seeds | " + " | ".join(shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for method, group in methods.items():
        alike: dict[object, list[dict]] = {}  # peers of one network and method count once, as their mean
        for i, summary in enumerate(group):
            alike.setdefault((summary["data_seed"], summary["circle"]) if "circle" in summary else i, []).append(
                summary
            )
        cells = [method, str(len(alike))]
        for key, scale, form in shown.values():
            found = ([scale * summary[key] for summary in members if key in summary] for members in alike.values())
            values = [statistics.fmean(numbers) for numbers in found if numbers]
            mean, std = mean_std(values) if values else (math.nan, math.nan)
            spread = "" if math.isnan(std) else f" ± {std:{form}}"
            cells.append(f"{mean:{form}}{spread}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
