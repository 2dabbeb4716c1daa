"""Summaries, overview and records of the runs in a folder."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ickd_lib import runtime, tasks
from ickd_lib.runs.identities import identities_of, method_name, repeated_seeds
from ickd_lib.runs.seeds import grouped, score, task_of, words
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked
from ickd_lib.training.records import described, differing, recipe_changes

TIMES = ("seconds", "images_per_second", "trained_together", "waited_share")  # of a summary, which no two runs share


def finished(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the summaries of all finished runs at or below some folders, without those of teachers.

    Args:
        folders: as for `collected`.
    Raises:
        InputError: as for `collected`, or no run is finished.
    """
    return [_named(one["summary"], one["config"]) for one in _students(folders)]


def finished_rows(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the rows of `overview` of all finished runs at or below some folders, without those of teachers.

    Args:
        folders: as for `collected`. The "folder" of a run in a JSON file is "".
    Returns:
        The rows, which also contain the "config" and the "records" of each run.
    Raises:
        InputError: as for `finished`.
    """
    return [
        {"run": one.get("run", ""), "folder": one.get("folder", ""), "role": "student"}
        | _numbers(one["config"], one["summary"])
        | {"config": one["config"], "records": one["epochs"]}
        for one in _students(folders)
    ]


def _students(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the finished runs at or below some folders, each once, without those of teachers."""
    folders = list(folders)
    every = _collected(folders)
    found = [one for one in every if one.get("role") != "teacher"]
    if not found:
        places = ", ".join(map(str, folders))
        if counts := diverged(folders):
            names = ", ".join(f"{method} {count}" for method, count in counts.items())
            raise InputError(
                f"no finished run below {places}; students that diverged: {names}; diverged.json in each run folder "
                "has the reason; train with other settings, such as a lower --lr"
            )
        if every and not any(run.role == "student" for folder in folders for run in _below(Path(folder))):
            raise InputError(f"{places} contains only teachers; name the folder of their students' runs")
        raise InputError(f"no finished run below {places}; resume the runs that were stopped")
    return found


def collected(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the finished runs at or below some folders, each once, in the form of `ickd report --json`.

    A run that is found again, by a second path or in a JSON file, counts once. So do runs whose settings are all
    equal, seeds included: the first one counts, and a note names the other one if it has another name, other results
    or other numerics. A damaged run is named in a note and left out. A note also names runs of a network of the user's
    own that have equal settings and seeds and began with other weights; each of them counts.

    Args:
        folders: folders that contain runs, JSON files that `ickd report --json` wrote, or both; or such files.
    Returns:
        For each run its "run" (name), "config", "epochs" (records) and "summary", and the "role" of a teacher.
    Raises:
        InputError: a folder does not exist or contains no run.
    """
    hidden = ("folder", "place")
    return [{key: value for key, value in one.items() if key not in hidden} for one in _collected(folders)]


def _collected(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return what `collected` returns, with the "place" of each run, and its "folder" if it is not in a JSON file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in map(Path, folders):
        for place, read in _sources(path):
            try:
                with runtime.complete(place):
                    if (run := read()) is None:
                        continue
                    if run.get("role") != "teacher":
                        _check(_named(run["summary"], run["config"]))
                    settings = run["config"]["settings"]
                    data = {key: value for key, value in settings.get("data", {}).items() if key != "classes"}
                    numerics = run["config"].get("numerics") or {}
                    top = numerics.get("teacher_cache_top", 0)
                    key = runtime.fingerprint(run.get("role"), settings | {"data": data}, top)
                    numbers = {name: value for name, value in run["summary"].items() if name not in TIMES}
                    evaluated = dict(run["config"].get("evaluated_on") or {})
                    results = runtime.fingerprint(numbers, numerics)
            except InputError as error:
                runtime.notice(f"left out: {'' if place in str(error) else f'{place}: '}{error}")
                continue
            alike = found.setdefault(key, [])
            same = [one for one in alike if not differing(one["config"].get("evaluated_on"), evaluated)]
            if not same:
                alike.append(run | {"place": place, "results": results})
            elif (first := same[0])["results"] != results and run.get("role") != "teacher":
                runtime.notice(f"{place} has all settings of {first['place']}, so it is left out; remove one of them")
    every = [run for alike in found.values() for run in alike]
    for sentence in repeated_seeds([run for run in every if run.get("role") != "teacher"]):
        runtime.notice(sentence)
    return [{name: value for name, value in run.items() if name != "results"} for run in every]


def diverged(folders: Iterable[str | Path]) -> dict[str, int]:
    """Return for each method the number of students below some folders that diverged and were not trained again.

    Peers that were trained together count as one student.
    """
    found = set()
    for folder in map(Path, folders):
        for run in _below(folder):
            files = {file.name for file in run.folder.glob("*.json")}
            if run.role == "student" and "diverged.json" in files and "summary.json" not in files:
                row = _row(run, folder)
                if "method" not in row:  # a damaged run
                    runtime.notice(f"left out: {row['problem']}")
                    continue
                group = row.get("peer_group")
                place = run.folder.resolve()  # it may be found by several paths
                found.add((row["method"], place.parent, group or place.name))
    return dict(Counter(method for method, *_ in sorted(found)))


Source = tuple[str, Callable[[], dict[str, Any] | None]]  # a run's place, and what reads it; None if it is not finished


def _sources(path: Path) -> list[Source]:
    """Return the runs at or below a path, which are not read yet."""
    if path.is_file():
        return _in_file(path)
    if not path.is_dir():
        what = "does not exist" if path.suffix == ".json" else "is not a folder"
        raise InputError(f"{path} {what}; name a folder that contains runs, or a file that ickd report --json wrote")
    in_files: list[Source] = []
    for file in () if (path / "config.json").is_file() else sorted(path.glob("*.json")):
        try:
            in_files.extend(_in_file(file))
        except (InputError, OSError) as error:
            runtime.notice(f"left out: {error}")
    runs = _below(path) if in_files else runtime.runs(path)  # with an error if there is nothing
    return [(str(run.folder), partial(_read, run)) for run in runs] + in_files


def _below(folder: Path) -> list[runtime.Run]:
    """Return the runs at or below a folder, which may have none."""
    try:
        return runtime.runs(folder)
    except InputError:
        return []


def _read(run: runtime.Run) -> dict[str, Any] | None:
    """Read the run in a folder."""
    if run.summary is None:
        return None
    config, summary, epochs = run.config, run.summary, run.config["settings"]["recipe"]["epochs"]
    found = {"run": run.folder.name, "config": config, "epochs": run.readable_metrics(epochs), "summary": summary}
    found["folder"] = str(run.folder)
    return found | ({"role": "teacher"} if run.role == "teacher" else {})


def _in_file(path: Path) -> list[Source]:
    """Return the runs in a JSON file; none if it contains something else."""
    content = runtime.read_json(path)
    values = content if isinstance(content, list) else [content]
    runs = [one for one in values if isinstance(one, dict) and {"config", "epochs", "summary"} <= set(one)]
    return [(f"{one.get('run', 'a run')} in {path}", partial(dict, one)) for one in runs]


def _check(summary: dict[str, Any]) -> None:
    """Raise an error of some type if a summary lacks what tables need."""
    (setting,) = grouped([summary])
    words(setting)
    value = score([summary])
    if not math.isfinite(value):
        raise ValueError(f"{task_of(summary).primary} is {value}")
    for key in ("images_per_second", "teacher_accuracy", *(column.key for column in task_of(summary).columns)):
        float(summary.get(key, 0))
    texts = [summary[key] for key in ("dataset", "network", "method")]
    if not all(isinstance(text, str) for text in (*texts, *summary.get("identities", {}).values())):
        raise TypeError("a name or a fingerprint is not a text")
    for key in ("train_images", "epochs", "batch_size", "data_seed"):
        if not isinstance(summary[key], int):
            raise TypeError(f"{key} is {summary[key]!r}, not a whole number")


def _named(summary: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a run with the present name of its method, because defaults may have changed since.

    It also gets what summaries of earlier versions do not contain.
    """
    settings = config["settings"]
    summary = summary | {"method": method_name(settings["method"], summary["method"])}
    summary["identities"] = identities_of(config)
    summary["recipe"] = recipe_changes(settings.get("recipe", {}), settings.get("task", "classification"))
    if unlabelled := settings.get("data", {}).get("unlabelled"):
        summary["unlabelled"] = unlabelled
    if "circle" in summary:  # key of the peer group in earlier versions
        summary["peer_group"] = summary.pop("circle")
    return summary


@checked
def overview(folder: str | Path) -> list[dict[str, Any]]:
    """Return a flat row for every run at or below a folder, sorted by path, teachers and unfinished runs included.

    Returns:
        Rows that begin with "run" (the path below `folder`), "folder", "role" ("student" or "teacher"), "state"
        ("finished", "unfinished" or "damaged") and "epoch" (number of epochs that are done). Then follow the
        settings, with the keys of a summary, and all numbers of the summary, as fractions. An unfinished run has the
        numbers of its last records, or "held_out", the number of images held out of train, before it was evaluated on
        these. A damaged run has only "problem", a description, after its state.
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
        "role": run.role,
    }
    try:
        with runtime.complete(run.folder):
            return row | _found(run)
    except InputError as error:
        return row | {"state": "damaged", "problem": str(error)}


def _found(run: runtime.Run) -> dict[str, Any]:
    """Return what `overview` contains of a run that is not damaged."""
    if run.summary is not None:
        row = _numbers(run.config, run.summary)
        _check(row)
        return row
    row, done = _settings(run.config), run.metrics
    primary = tasks.create(row["task"]).primary
    row = {"state": "unfinished", "epoch": done[-1]["epoch"] if done else 0, **row}
    tested = [(record[f"test_{primary}"], record["epoch"]) for record in done if f"test_{primary}" in record]
    if tested:
        best = max(tested, key=lambda pair: pair[0])
        row |= {f"best_{primary}": best[0], "best_epoch": best[1], primary: tested[-1][0]}
    if held_out := [record[f"val_{primary}"] for record in done if f"val_{primary}" in record]:
        row[f"val_{primary}"] = held_out[-1]
    elif run.config.get("held_out"):  # not evaluated yet
        row["held_out"] = run.config["held_out"]
    return row


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run as a row contains them."""
    settings = config["settings"]
    method = method_name(settings["method"], settings["method"]["name"])
    return described(settings) | {"method": method, "identities": identities_of(config)}


def _numbers(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Return what a row contains of a finished run."""
    numbers = {key: value for key, value in summary.items() if value is not None}
    row = {"state": "finished", "epoch": config["settings"]["recipe"]["epochs"], **_settings(config), **numbers}
    row = _named(row, config)
    row.pop("name", None)  # "run" contains it
    return row


def records(row: dict[str, Any]) -> list[dict[str, float]]:
    """Return the records of a row of `overview` or `finished_rows`, one per epoch, with the term "kd" as "loss_kd".

    Raises:
        InputError: the records cannot be read.
    """
    try:
        return [
            {"epoch": record["epoch"]}
            | {key: value for key, value in record.items() if key not in ("terms", "weights")}
            | {f"loss_{term}": value for term, value in record.get("terms", {}).items()}
            for record in (row["records"] if "records" in row else runtime.Run(row["folder"]).metrics)
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        place = f"{row['folder']}/metrics.jsonl" if row["folder"] else f"the records of {row['run']}"
        raise InputError(f"{place} cannot be read ({type(error).__name__}: {error}); restore the file") from None


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
