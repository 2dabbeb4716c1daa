"""Runs over seeds: their groups, mean and standard deviation, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ickd_lib import runtime, tasks
from ickd_lib.runs.difference import distinctions
from ickd_lib.runtime import InputError


class Setting(NamedTuple):
    """What runs have in common that are compared with each other in a table.

    dataset, train_images, teacher, network, epochs, batch_size, lr, schedule: entries of a summary.
    task: name of the task.
    augment: the augmentation.
    saw: name of the data set that the teacher was trained on; "" if that is not known.
    recipe: the other settings of the recipe that are not the defaults, as text.
    origin: what distinguishes runs that are no repetitions of each other (`_origins`), as text.
    held_out: whether images were held out of train, on which the runs are compared.
    """

    dataset: str
    train_images: int
    teacher: str | None
    network: str
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    task: str
    augment: str
    saw: str
    recipe: str
    origin: str
    held_out: bool


SETTING = Setting._fields[:8]  # the entries of a summary
RECORDED = ("test images", "validation images", "architecture", "wrapping")  # compared among the runs that record them


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation, with n - 1 in the denominator; the latter is NaN for one value.

    Both are NaN if a value is not finite.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired(ours: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean of the differences, paired by position, and half the width of its interval (Student's t).

    Args:
        ours: n values.
        baseline: n values, which are subtracted.
        level: confidence level of the interval.
    Raises:
        InputError: the numbers of values differ, or there are fewer than two.
    """
    from scipy.stats import t

    if len(ours) != len(baseline) or len(ours) < 2:
        raise InputError(f"a paired difference needs two or more pairs; given {len(ours)} and {len(baseline)} values")
    mean, std = mean_std([a - b for a, b in zip(ours, baseline, strict=True)])
    return mean, float(t.ppf((1 + level) / 2, len(ours) - 1)) * std / math.sqrt(len(ours))


def interval(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Return the result of `paired` as a dictionary: mean, low and high end of the 95% interval."""
    mean, half = paired(ours, baseline)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def grouped(summaries: Sequence[dict[str, Any]]) -> dict[Setting, dict[str, list[list[dict[str, Any]]]]]:
    """Group summaries by setting (data, teacher, student, epochs), by method, and by seed.

    For each seed there is a list of the runs that together count once: one run, or the peers of the same network that
    were trained together. Runs of one setting and method that are no repetition of each other, although the names of
    their teachers and data are the same, are in different settings (`_origins`).
    """
    alike: dict[Setting, list[tuple[str, object, dict[str, Any]]]] = {}
    found: dict[Setting, dict[str, dict[object, list[dict[str, Any]]]]] = {}
    for i, summary in enumerate(summaries):
        saw = (summary.get("teacher_saw") or {}).get("data", "").split("/")[0]
        task = task_of(summary)
        held_out = f"val_{task.primary}" in summary or "held_out" in summary
        others = task.name, summary.get("augment", "crop"), saw, summary.get("recipe", "")
        setting = Setting._make([*(summary[key] for key in SETTING), *others, "", held_out])
        seed = (summary["data_seed"], summary["peer_group"]) if "peer_group" in summary else i
        alike.setdefault(setting, []).append((method_of(summary), seed, summary))
    for setting, runs in alike.items():
        for (method, key, summary), origin in zip(runs, _origins(runs), strict=True):
            apart = setting._replace(origin=origin)
            found.setdefault(apart, {}).setdefault(method, {}).setdefault(key, []).append(summary)
    return {
        setting: {method: list(seeds.values()) for method, seeds in by_method.items()}
        for setting, by_method in found.items()
    }


def method_of(summary: dict[str, Any]) -> str:
    """Return the name of a run's method in tables: with its peers, unlabelled images, bank and search.

    It is "teacher" for a row whose "role" is "teacher".
    """
    peers = [peer for peer in summary.get("peers", ()) if peer != summary["network"]]
    method = "teacher" if summary.get("role") == "teacher" else summary["method"]
    method += f" with {', '.join(peers)}" if peers else ""
    method += f" with {summary['unlabelled']:,} unlabelled images" if "unlabelled" in summary else ""
    method += f" with a bank of {summary['bank_rows']:,} rows" if "bank_rows" in summary else ""
    return method + (f" with negatives by {summary['search']}" if "search" in summary else "")


def chosen_baseline(summaries: Sequence[dict[str, Any]], baseline: str) -> str:
    """Return the name in tables of the method that equals `baseline`, ignoring case; "" for "".

    Raises:
        InputError: no run has this method.
    """
    return runtime.choose(baseline, sorted({*map(method_of, summaries)}), "baseline") if baseline else ""


def _origins(runs: Sequence[tuple[str, object, dict[str, Any]]]) -> list[str]:
    """Return what distinguishes each of the runs of a setting from those of the same method that it does not repeat.

    Repetitions have the same data set, the same test images, the same architecture and wrapping of an own network, a
    teacher that was trained on the same images, and other seeds. Those that were trained on the same images also have
    the same validation images. What a run of an earlier version does not record of these counts as the same. Runs with
    the same seeds are no repetitions: they differ in their teachers, in their images, which may be drawn by the seed,
    or else in other settings. The result contains the first digits of as many fingerprints as are necessary; it is ""
    for all if none is. Teachers of one name that each have seeds of their own are not distinguished but counted.
    """
    marks = [""] * len(runs)
    identities = [summary.get("identities", {}) for *_, summary in runs]
    seeds = [(summary.get("seed"), summary.get("data_seed"), summary["network"]) for *_, summary in runs]
    trained_on = [known.get("images", "") for known in identities]
    for what in ("data", *RECORDED, "teacher", "images", "settings"):
        alike = [(method, mark) for (method, *_), mark in zip(runs, marks, strict=True)]
        saw = [str(summary.get("teacher_saw")) for *_, summary in runs] if what == "teacher" else []
        of_each = [known.get(what, "") for known in identities]
        groups: dict[str, Sequence[object]] = {
            "data": alike,
            "test images": marks,  # of all methods, which are compared with each other
            "architecture": marks,
            "wrapping": marks,
            "validation images": list(zip(marks, trained_on, strict=True)),  # they may be drawn by the seed
        }
        pairs = list(zip(groups.get(what, list(zip(alike, seeds, strict=True))), of_each, strict=True))
        if what in RECORDED:
            pairs = [pair for pair in pairs if pair[1]]
        if _several(pairs) or (saw and _several(list(zip(alike, saw, strict=True)))):
            texts = [f"{what} {mark[:6] or 'not recorded'}" for mark in of_each]
            marks = [f"{m}, {text}" if m else text for m, text in zip(marks, texts, strict=True)]
    teachers: dict[str, set[str]] = {}
    for mark, known in zip(marks, identities, strict=True):
        teachers.setdefault(mark, set()).add(known.get("teacher", ""))
    counts = {mark: f"{len(some)} teachers of this name" for mark, some in teachers.items() if len(some) > 1}
    return [", ".join(filter(None, [mark, counts.get(mark, "")])) for mark in marks]


def _several(pairs: Sequence[tuple[object, str]]) -> bool:
    """Return whether some pairs of one group and a value have the same group and different values."""
    return len(set(pairs)) > len({group for group, _ in pairs})


def named(rows: Sequence[dict[str, Any]], *, by_run: bool = False) -> dict[str, list[list[dict[str, Any]]]]:
    """Group rows of `overview` by a name for figures: the method, and what distinguishes several settings of it.

    Args:
        rows: rows of `overview`.
        by_run: give each run a name with its seed, instead of one name for all seeds. Where names would be equal,
            they contain the settings that differ, or the path of the run.
    Returns:
        For each name and each seed, the rows that together count once (`grouped`).
    """
    groups = grouped(rows)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for setting, by_method in groups.items():
        for method, seeds in by_method.items():
            rivals = [other for other in groups if method in groups[other]]
            differing = [w for i, w in enumerate(words(setting)) if len({str(other[i]) for other in rivals}) > 1]
            found[", ".join([method, *differing])] = seeds
    if not by_run:
        return found
    runs = [(f"{name}, seed {row['seed']}", row) for name, seeds in found.items() for alike in seeds for row in alike]
    count = Counter(name for name, _ in runs)
    alike: dict[str, list[dict[str, Any]]] = {}
    for name, row in runs:
        alike.setdefault(name, []).append(row)
    marks = {
        row["run"]: text
        for rows in alike.values()
        if len(rows) > 1
        for row, text in zip(rows, distinctions(rows), strict=True)
    }
    marked = [f"{name} ({marks[row['run']] or row['run']})" if count[name] > 1 else name for name, row in runs]
    count = Counter(marked)
    return {
        (f"{runs[i][0]} ({row['run']})" if count[name] > 1 else name): [[row]]
        for i, (name, (_, row)) in enumerate(zip(marked, runs, strict=True))
    }


def behind_labels(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each method that is worse than labels alone, the method "ce", in the same setting.

    A method is worse if it is behind with each seed that both have, and by more than a point in the mean.
    """
    found = []
    for by_method in grouped(summaries).values():
        scores = _by_seed(by_method)
        labels = scores.pop("ce", {})
        for method, ours in scores.items():
            behind = [labels[seed] - value for seed, value in ours.items() if seed in labels]
            if behind and min(behind) > 0 and (mean := statistics.fmean(behind)) > 0.01:
                found.append(
                    f"{method} is {100 * mean:.1f} points below ce, labels alone; check the teacher and the weights"
                )
    return found


def without_teacher(summaries: Sequence[dict[str, Any]], baseline: str) -> list[str]:
    """Return a sentence for each setting whose baseline is in another table because it was trained without a teacher.

    Args:
        summaries: summaries of finished runs.
        baseline: a method by its name in tables; "" for none.
    """
    groups = grouped(summaries)

    def data_and_training(setting: Setting) -> Setting:
        return setting._replace(teacher=None, saw="", origin="")

    alone = {data_and_training(one) for one, found in groups.items() if baseline in found and not one.teacher}
    return [
        f"{', '.join(found)} cannot be compared with {baseline}: their runs have the teacher {setting.teacher}, and "
        f"those of {baseline} have none, so they are in separate tables; train {baseline} with the same teacher given, "
        "which it does not use"
        for setting, found in groups.items()
        if setting.teacher and baseline not in found and data_and_training(setting) in alone
    ]


def words(setting: Setting) -> list[str]:
    """Describe each entry of a setting."""
    return [
        setting.dataset,
        f"{setting.train_images:,} images",
        f"from {setting.teacher}" if setting.teacher else "no teacher",
        setting.network,
        f"{setting.epochs} epoch{'s' * (setting.epochs != 1)}",
        f"batch {setting.batch_size}",
        f"learning rate {setting.lr:g}",
        str(setting.schedule),
        setting.task,
        setting.augment,
        f"teacher trained on {setting.saw}" if setting.saw else "no known teacher data",
        setting.recipe or "other settings as by default",
        setting.origin,
        "on held-out images" if setting.held_out else "on test images",
    ]


def score(alike: Sequence[dict[str, Any]]) -> float:
    """Return the number by which runs are compared: the task's primary metric.

    It is measured on the images held out of train if there are some, else on the test images.

    Args:
        alike: the runs that together count once (`grouped`), over which the mean is computed.
    """
    primary = task_of(alike[0]).primary
    return statistics.fmean(one.get(f"val_{primary}", one[primary]) for one in alike)


def task_of(summary: dict[str, Any]) -> tasks.Task:
    """Return the task of a run; it is classification if the summary, of an earlier version, has none."""
    return tasks.create(summary.get("task", "classification"))


def _by_seed(by_method: dict[str, list[list[dict[str, Any]]]]) -> dict[str, dict[Any, float]]:
    """Return the scores of each method by what pairs them with those of other methods.

    That is the seed of the data, or, where a method has several runs with the same one, the two seeds of a run; of
    peers, those of the one with the smallest seed. The score of runs in which both are equal is their mean.
    """

    def keys(*entries: str) -> dict[str, list[Any]]:
        return {
            name: [min(tuple(one[entry] for entry in entries) for one in alike) for alike in seeds]
            for name, seeds in by_method.items()
        }

    found = keys("data_seed")
    if any(len(set(of_method)) < len(of_method) for of_method in found.values()):
        found = keys("data_seed", "seed")
    scores: dict[str, dict[Any, list[float]]] = {name: {} for name in by_method}
    for name, seeds in by_method.items():
        for key, alike in zip(found[name], seeds, strict=True):
            scores[name].setdefault(key, []).append(score(alike))
    return {name: {key: statistics.fmean(some) for key, some in of.items()} for name, of in scores.items()}


def differences(by_method: dict[str, list[list[dict[str, Any]]]], baseline: str) -> dict[str, dict[str, float]]:
    """Return the difference in `score` of each other method to a baseline, paired by seed, as `interval` returns it.

    Methods with fewer than two seeds in common with the baseline are left out.

    Args:
        by_method: one setting of `grouped`.
        baseline: name of a method.
    Raises:
        InputError: there is no such method.
    """
    scores = _by_seed(by_method)
    reference = scores.pop(runtime.choose(baseline, list(scores), "baseline"))
    found = {}
    for method, ours in scores.items():
        if len(both := sorted(ours.keys() & reference.keys())) > 1:
            found[method] = interval([ours[seed] for seed in both], [reference[seed] for seed in both])
    return found
