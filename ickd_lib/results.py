"""Tables from run folders: all runs with what became of them, mean ± std over seeds, differences paired by seed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ickd_lib import methods, runtime
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
Setting = tuple[Any, ...]  # values of SETTING, the augmentation, and the data that the teacher saw
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
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
    """The summaries of all finished runs at or below the folders, teachers left out.

    A JSON file of runs, as `python -m ickd_lib report --json` writes it, may be named too, or a folder that holds some.
    """
    found: list[dict[str, Any] | None] = []
    for folder in map(Path, folders):
        kept = _kept(folder)
        if not kept and not folder.is_dir():
            raise InputError(f"{folder} is no folder; name one that holds runs")
        found.extend(kept)
        if not kept:
            found.extend(run.summary for run in runtime.runs(folder) if run.folder.parent.name != "teachers")
    summaries = [summary for summary in found if summary]
    if not summaries:
        raise InputError(f"no finished run below {', '.join(map(str, folders))}; resume what was stopped")
    return summaries


def _kept(path: Path) -> list[dict[str, Any]]:
    """The summaries in a file of runs, or in those of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    values = [value for file in files for value in _listed(runtime.read_json(file))]
    runs = [one for one in values if isinstance(one, dict) and {"config", "epochs", "summary"} <= set(one)]
    return [one["summary"] for one in runs if one.get("role") != "teacher"]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def overview(folder: str | Path) -> list[dict[str, Any]]:
    """Every run at or below the folder, sorted by path, teachers and unfinished runs too: a flat row each.

    Returns:
        Rows that begin with "run" (the path below `folder`), "folder", "role" ("student" or "teacher"), "state"
        ("finished", "unfinished" or "damaged") and "epoch" (how many are done); then the settings, named as in a
        summary, and all numbers of the summary, fractions. An unfinished run has those that its records hold. A
        damaged one has only "problem", in words, after its state.
    Raises:
        InputError: there is no such folder, or no run in it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; name one that holds runs")
    return [_row(run, Path(folder)) for run in runtime.runs(folder)]


def _row(run: runtime.Run, top: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": run.folder.relative_to(top).as_posix(),
        "folder": str(run.folder),
        "role": "teacher" if run.folder.parent.name == "teachers" else "student",
    }
    try:
        settings, summary = run.config["settings"], run.summary
        recipe, data, teacher = settings["recipe"], settings["data"], settings["teacher"] or {}
        asked = {
            "method": _described(settings["method"]),
            "network": settings["student"]["network"],
            "seed": settings["seed"],
            "data_seed": settings["data_seed"],
            "dataset": data["name"].split("/")[0],
            "train_images": data["images"],
            "augment": data.get("augment", "crop"),
            **{key: recipe[key] for key in ("epochs", "batch_size", "lr", "schedule")},
            "teacher": teacher.get("name"),
            "teacher_saw": settings["teacher_saw"],
        }
        if "peers" in settings:
            asked |= {"peers": [peer["student"]["network"] for peer in settings["peers"]], "circle": settings["circle"]}
        if summary is not None:
            told = {key: value for key, value in summary.items() if value is not None}
            found = {"state": "finished", "epoch": recipe["epochs"], **asked, **told}
            found.pop("name", None)  # "run" says it
            return row | found
        done = run.metrics
        found = {"state": "unfinished", "epoch": done[-1]["epoch"] if done else 0, **asked}
        accuracies = [(record["test_accuracy"], record["epoch"]) for record in done if "test_accuracy" in record]
        if accuracies:
            best = max(accuracies, key=lambda pair: pair[0])
            found |= {"best_accuracy": best[0], "best_epoch": best[1], "accuracy": accuracies[-1][0]}
        return row | found
    except InputError as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        problem = f"{run.folder} is not as a run is written ({type(error).__name__}: {error}); restore or remove it"
    return row | {"state": "damaged", "problem": problem}


def _described(config: dict[str, Any]) -> str:
    """A method's configuration as `methods.create` reads it; only its name where this library knows another one."""
    arguments = {key: value for key, value in config.items() if key != "name"}
    if "parts" in config:
        return config["name"]
    try:
        return methods.describe(methods.create(config["name"], **arguments))
    except (InputError, TypeError):
        return config["name"]


def records(row: dict[str, Any]) -> list[dict[str, float]]:
    """The records of a row of `overview`, one an epoch: all its numbers, the loss term "kd" as "loss_kd".

    Raises:
        InputError: they cannot be read.
    """
    try:
        return [
            {"epoch": record["epoch"]}
            | {key: value for key, value in record.items() if key != "terms"}
            | {f"loss_{term}": value for term, value in record.get("terms", {}).items()}
            for record in runtime.Run(row["folder"]).metrics
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{row['folder']}/metrics.jsonl cannot be read ({type(error).__name__}: {error}); restore or leave it"
        ) from None


def averaged(members: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """The mean over several runs' records: the epochs that all have, and of each the numbers that all have."""
    by_epoch = [{record["epoch"]: record for record in one} for one in members]
    found = []
    for epoch in sorted(set.intersection(*map(set, by_epoch))):
        alike = [one[epoch] for one in by_epoch]
        found.append({key: statistics.fmean(r[key] for r in alike) for key in alike[0] if all(key in r for r in alike)})
    return found


def long(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of rows of `overview` in long form: run, method, seed, epoch, name and value."""
    return [
        {
            "run": row["run"],
            "method": row["method"],
            "seed": row["seed"],
            "epoch": record["epoch"],
            "name": k,
            "value": v,
        }
        for row in rows
        for record in records(row)
        for k, v in record.items()
        if k != "epoch"
    ]


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV: a column for each key of any row, in the order of their appearance. Lists and the like are JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for k, v in row.items()})
    return text.getvalue()


def grouped(summaries: Sequence[dict[str, Any]]) -> dict[Setting, dict[str, list[list[dict[str, Any]]]]]:
    """For each setting (data, teacher, student, epochs), for each method, for each seed the runs that count once.

    These are one run, or students of one network that learned from each other. A row whose "role" is "teacher" has that
    for its method.
    """
    found: dict[Setting, dict[str, dict[object, list[dict[str, Any]]]]] = {}
    for i, summary in enumerate(summaries):
        saw = (summary.get("teacher_saw") or {}).get("data", "").split("/")[0]
        setting = (*(summary[key] for key in SETTING), summary.get("augment", "crop"), saw)
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
    dataset, images, teacher, network, epochs, batch_size, lr, schedule, augment, saw = setting
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
    ]


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each setting (data, teacher, student, epochs) a table with a row a method, over its seeds.

    Students of one network that learned from each other count as one, with their mean.
    """
    parts = []
    for setting, by_method in grouped(summaries).items():
        (title, rest), (head, *rows) = _caption(setting), _cells(by_method)
        lines = [head, ["---"] * len(head), *rows]
        marks = ["| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(line) for line in lines]
        parts.append("\n".join([f"**{title}**{rest}", "", *marks]))
    return "\n\n".join(parts) + "\n"


def latex(summaries: Sequence[dict[str, Any]]) -> str:
    """`table` in LaTeX: for each setting a table environment, for a preamble with \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    for setting, by_method in grouped(summaries).items():
        head, *rows = [" & ".join(map(escaped, line)) + r" \\" for line in _cells(by_method)]
        columns = "lr" + "c" * (head.count(" & ") - 1)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{escaped(''.join(_caption(setting)))}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    head,
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _caption(setting: Setting) -> tuple[str, str]:
    """The data set, and the rest of what is alike in a table."""
    dataset, images, teacher, network, epochs, batch_size, lr, schedule, augment, saw = setting
    arrow = f"{teacher}{f' of {saw}' if saw not in ('', dataset) else ''} → " if teacher else ""
    return dataset, (
        f", {images:,} training images: {arrow}{network}, {epochs} epochs at batch {batch_size}, "
        f"learning rate {lr:g} ({schedule})" + (f", {augment}" if augment != "crop" else "")
    )


def _cells(by_method: dict[str, list[list[dict[str, Any]]]]) -> list[list[str]]:
    """A table's heading and rows: method, number of seeds, and mean ± std of whatever number some run has."""
    every = [summary for seeds in by_method.values() for alike in seeds for summary in alike]
    shown = {heading: column for heading, column in COLUMNS.items() if any(column[0] in one for one in every)}
    lines = [["method", "seeds", *shown]]
    for method, seeds in by_method.items():
        line = [method, str(len(seeds))]
        for key, scale, form in shown.values():
            found = ([scale * summary[key] for summary in alike if key in summary] for alike in seeds)
            values = [statistics.fmean(numbers) for numbers in found if numbers]
            mean, std = mean_std(values) if values else (math.nan, math.nan)
            spread = "" if math.isnan(std) else f" ± {std:{form}}"
            line.append(f"{mean:{form}}{spread}" if values else "")
        lines.append(line)
    return lines
