"""Run folders read back: summaries, rows of all runs, their records."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ickd_lib import methods, runtime
from ickd_lib.runtime import InputError


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
            students = [run for run in runtime.runs(folder) if run.folder.parent.name != "teachers"]
            found.extend(run.summary and _named(run.summary, run.config) for run in students)
    summaries = [summary for summary in found if summary]
    if not summaries:
        raise InputError(f"no finished run below {', '.join(map(str, folders))}; resume what was stopped")
    return summaries


def _kept(path: Path) -> list[dict[str, Any]]:
    """The summaries in a file of runs, or in those of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    values = [value for file in files for value in _listed(runtime.read_json(file))]
    runs = [one for one in values if isinstance(one, dict) and {"config", "epochs", "summary"} <= set(one)]
    return [_named(one["summary"], one["config"]) for one in runs if one.get("role") != "teacher"]


def _named(summary: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run with its method's name as it is today: a default may have been another one then."""
    return summary | {"method": _described(config["settings"]["method"], summary["method"])}


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
            "method": _described(settings["method"], settings["method"]["name"]),
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
            found |= _named(found, run.config)
            found.pop("name", None)  # "run" says it
            return row | found
        done = run.metrics
        found = {"state": "unfinished", "epoch": done[-1]["epoch"] if done else 0, **asked}
        accuracies = [(record["test_accuracy"], record["epoch"]) for record in done if "test_accuracy" in record]
        if accuracies:
            best = max(accuracies, key=lambda pair: pair[0])
            found |= {"best_accuracy": best[0], "best_epoch": best[1], "accuracy": accuracies[-1][0]}
        if held := [record["val_accuracy"] for record in done if "val_accuracy" in record]:
            found["val_accuracy"] = held[-1]
        return row | found
    except InputError as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        problem = f"{run.folder} is not as a run is written ({type(error).__name__}: {error}); restore or remove it"
    return row | {"state": "damaged", "problem": problem}


def _described(config: dict[str, Any], otherwise: str) -> str:
    """A method's configuration as `methods.create` reads it, or `otherwise` where this library knows another one."""

    def made(one: dict[str, Any]) -> methods.Method:
        return methods.create(one["name"], **{key: value for key, value in one.items() if key != "name"})

    try:
        parts = [made(part) for part in config.get("parts", ())]
        return methods.describe(methods.Combined(parts=parts) if parts else made(config))
    except (InputError, TypeError):
        return otherwise


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
