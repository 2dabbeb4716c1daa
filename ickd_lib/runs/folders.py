"""Summaries, overview and records of the runs in a folder."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ickd_lib import methods, runtime, tasks
from ickd_lib.runtime import InputError
from ickd_lib.training.records import described


def finished(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the summaries of all finished runs at or below some folders, without those of teachers.

    Args:
        folders: folders of runs; or JSON files of runs as `ickd report --json` writes them, or folders with such files.
    Raises:
        InputError: a folder does not exist or contains no run, or no run is finished.
    """
    found: list[dict[str, Any] | None] = []
    for folder in map(Path, folders):
        kept = _kept(folder)
        if not kept and not folder.is_dir():
            raise InputError(f"{folder} is not a folder; name one that contains runs")
        found.extend(kept)
        if not kept:
            students = [run for run in runtime.runs(folder) if run.folder.parent.name != "teachers"]
            found.extend(run.summary and _named(run.summary, run.config) for run in students)
    summaries = [summary for summary in found if summary]
    if not summaries:
        raise InputError(f"no finished run below {', '.join(map(str, folders))}; resume the runs that were stopped")
    return summaries


def diverged(folders: Iterable[str | Path]) -> dict[str, int]:
    """Return for each method the number of students below some folders that diverged and were not trained again.

    Peers that were trained together count as one student.
    """
    found = set()
    for folder in map(Path, folders):
        for run in runtime.runs(folder) if folder.is_dir() else ():
            if run.folder.parent.name != "teachers" and not run.summary and (run.folder / "diverged.json").is_file():
                row = _row(run, folder)
                group = row.get("peer_group")
                found.add((row["method"], run.folder.parent, group or run.folder.name))
    return dict(Counter(method for method, *_ in sorted(found)))


def _kept(path: Path) -> list[dict[str, Any]]:
    """Return the summaries in a JSON file of runs, or in the JSON files of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    values = [value for file in files for value in _listed(runtime.read_json(file))]
    runs = [one for one in values if isinstance(one, dict) and {"config", "epochs", "summary"} <= set(one)]
    return [_named(one["summary"], one["config"]) for one in runs if one.get("role") != "teacher"]


def _named(summary: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a run with the present name of its method, because defaults may have changed since."""
    summary = summary | {"method": _described(config["settings"]["method"], summary["method"])}
    if "circle" in summary:  # key of the peer group in earlier versions
        summary["peer_group"] = summary.pop("circle")
    return summary


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def overview(folder: str | Path) -> list[dict[str, Any]]:
    """Return a flat row for every run at or below a folder, sorted by path, teachers and unfinished runs included.

    Returns:
        Rows that begin with "run" (the path below `folder`), "folder", "role" ("student" or "teacher"), "state"
        ("finished", "unfinished" or "damaged") and "epoch" (number of epochs that are done). Then follow the
        settings, with the keys of a summary, and all numbers of the summary, as fractions. An unfinished run has the
        numbers of its last records. A damaged run has only "problem", a description, after its state.
    Raises:
        InputError: the folder does not exist, or contains no run.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; name one that contains runs")
    return [_row(run, Path(folder)) for run in runtime.runs(folder)]


def _row(run: runtime.Run, top: Path) -> dict[str, Any]:
    """Return the row of one run in `overview`."""
    row: dict[str, Any] = {
        "run": run.folder.relative_to(top).as_posix(),
        "folder": str(run.folder),
        "role": "teacher" if run.folder.parent.name == "teachers" else "student",
    }
    try:
        settings, summary = run.settings, run.summary
        found = described(settings) | {"method": _described(settings["method"], settings["method"]["name"])}
        primary = tasks.create(found["task"]).primary
        if summary is not None:
            numbers = {key: value for key, value in summary.items() if value is not None}
            found = {"state": "finished", "epoch": settings["recipe"]["epochs"], **found, **numbers}
            found = _named(found, run.config)
            found.pop("name", None)  # "run" contains it
            return row | found
        done = run.metrics
        found = {"state": "unfinished", "epoch": done[-1]["epoch"] if done else 0, **found}
        tested = [(record[f"test_{primary}"], record["epoch"]) for record in done if f"test_{primary}" in record]
        if tested:
            best = max(tested, key=lambda pair: pair[0])
            found |= {f"best_{primary}": best[0], "best_epoch": best[1], primary: tested[-1][0]}
        if held_out := [record[f"val_{primary}"] for record in done if f"val_{primary}" in record]:
            found[f"val_{primary}"] = held_out[-1]
        return row | found
    except InputError as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        problem = f"{run.folder} is not a complete run ({type(error).__name__}: {error}); restore or remove it"
    return row | {"state": "damaged", "problem": problem}


def _described(config: dict[str, Any], otherwise: str) -> str:
    """Return the name of a method from its configuration.

    If the definition of the method has changed since, the name is `otherwise` with the recorded version, as in "dkd
    (version 1)". If there is no such method any more, it is `otherwise`.
    """
    older = {
        part.get("version", 1) for part in config.get("parts", (config,)) if _version(part) != part.get("version", 1)
    }
    if older:
        return f"{otherwise} (version {min(older)})"
    try:
        parts = [_made(part) for part in config.get("parts", ())]
        return methods.describe(methods.Combined(parts=parts) if parts else _made(config))
    except (InputError, TypeError):
        return otherwise


def _made(config: dict[str, Any]) -> methods.Method:
    return methods.create(config["name"], **{k: v for k, v in config.items() if k not in ("name", "version")})


def _version(config: dict[str, Any]) -> int:
    """Return the present version of the method in a configuration; the recorded one if there is no such method."""
    try:
        return type(methods.create(config["name"])).version
    except InputError:
        return config.get("version", 1)


def records(row: dict[str, Any]) -> list[dict[str, float]]:
    """Return the records of a row of `overview`, one per epoch, with the loss term "kd" as "loss_kd".

    Raises:
        InputError: the records cannot be read.
    """
    try:
        return [
            {"epoch": record["epoch"]}
            | {key: value for key, value in record.items() if key not in ("terms", "weights")}
            | {f"loss_{term}": value for term, value in record.get("terms", {}).items()}
            for record in runtime.Run(row["folder"]).metrics
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{row['folder']}/metrics.jsonl cannot be read ({type(error).__name__}: {error}); restore it"
        ) from None


def averaged(members: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Return the mean records of several runs, with the epochs and the numbers that all of them have.

    Args:
        members: the records of each run, as `records` returns them.
    """
    by_epoch = [{record["epoch"]: record for record in one} for one in members]
    found = []
    for epoch in sorted(set.intersection(*map(set, by_epoch))):
        alike = [one[epoch] for one in by_epoch]
        found.append({key: statistics.fmean(r[key] for r in alike) for key in alike[0] if all(key in r for r in alike)})
    return found


def long(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of rows of `overview` in long form: run, method, seed, epoch, name and value."""
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
    """Format rows as CSV, with a column for each key, in order of appearance; lists and dictionaries become JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for k, v in row.items()})
    return text.getvalue()
