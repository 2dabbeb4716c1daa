"""How far each run in a folder is: running, stopped, done or diverged, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ickd_lib import runtime, tasks
from ickd_lib.runs.findings import count
from ickd_lib.runs.folders import overview
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked
from ickd_lib.runtime.locks import LOCK

RECENT = 3  # number of epochs from which the speed of a run is computed
COLUMNS = ("run", "state", "epoch", "done", "images/s", "left", "last, %")


@checked
def progress(folder: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the progress of every run at or below a folder. Nothing is written, and runs may be training.

    The numbers are those of the epochs that are done. A run is "running" while its process holds the lock of its
    folder. On a network file system without locks, one whose process was killed on another host counts as running.

    Returns:
        A row for each run, sorted by path, and a line for each damaged folder, which has no row. A row has the keys
        "run" (the path below `folder`), "role" ("student" or "teacher"), "state" ("running", "stopped", "done" or
        "diverged"), "epoch" (number of epochs that are done), "epochs" (of all), "done" (the share),
        "images_per_second" (of this student), "seconds_left", "metric" and "last" (name and last value of the task's
        primary metric on the test images), and for a running one "process", "host" and "since". What is not known is
        None.
    Raises:
        InputError: the folder does not exist, or contains no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one that contains runs")
    rows, left_out = [], []
    for path in sorted(_folders(folder)):
        if not (path / "config.json").exists():
            owner = runtime.owner(path)
            if owner is not None:  # the training has just begun
                rows.append(_row(path, folder) | {"state": "running"} | owner)
            elif any((path / name).exists() for name in ("metrics.jsonl", "checkpoint.pt")):
                left_out.append(f"{path} has no config.json; restore or remove it")
    try:
        found = overview(folder)
    except InputError as error:
        if not rows and not left_out:
            raise InputError(str(error)) from None
        found = []
    for known in found:
        if known["state"] == "damaged":
            named = known["folder"] in known["problem"]
            left_out.append(known["problem"] if named else f"{known['folder']}: {known['problem']}")
            continue
        try:
            rows.append(_row(Path(known["folder"]), folder) | _numbers(known))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            left_out.append(f"{known['folder']} is not a complete run ({type(error).__name__}: {error}); restore it")
    return sorted(rows, key=lambda row: row["run"]), left_out


def progress_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows of `progress` as a plain table."""
    lines = [COLUMNS, *map(_cells, rows)]
    first, second, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    form = "  ".join([f"{{:<{first}}}", f"{{:<{second}}}", *(f"{{:>{width}}}" for width in widths)])
    counts = {state: sum(row["state"] == state for row in rows) for state in ("running", "stopped", "done", "diverged")}
    total = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    return "\n".join([*(form.format(*line).rstrip() for line in lines), "", f"{count(len(rows), 'run')}: {total}"])


def _folders(top: Path) -> list[Path]:
    """Return the folders that contain a file of a run."""
    names = {"config.json", "metrics.jsonl", "checkpoint.pt", LOCK}
    return [path for path, files in runtime.below(top) if names & set(files)]


def _row(path: Path, top: Path) -> dict[str, Any]:
    """Return the row of a run of which nothing is known yet."""
    unknown = ("epoch", "epochs", "done", "images_per_second", "seconds_left", "metric", "last")
    role = runtime.Run(path).role
    return {"run": path.relative_to(top).as_posix(), "role": role, "state": "stopped"} | dict.fromkeys(unknown)


def _numbers(known: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a run from its row in `overview`, its records and its lock."""
    run, primary = runtime.Run(known["folder"]), tasks.create(known["task"]).primary
    epochs, done, last = known["epochs"], known["epoch"], known.get(primary)
    last = None if last is None else float(last)
    found = {"epoch": done, "epochs": epochs, "done": done / epochs, "metric": primary, "last": last}
    if known["state"] == "finished":
        return found | {"state": "done", "seconds_left": 0.0, "images_per_second": float(known["images_per_second"])}
    owner = runtime.owner(run.folder)
    diverged = owner is None and (run.folder / "diverged.json").exists()
    found["state"] = "running" if owner is not None else "diverged" if diverged else "stopped"
    if records := run.metrics:
        some = records[-RECENT - 1 :] if len(records) > RECENT else [{"epoch": 0, "seconds": 0.0}, *records]
        taken = (some[-1]["seconds"] - some[0]["seconds"]) / (some[-1]["epoch"] - some[0]["epoch"])
        found["images_per_second"] = round(known["train_images"] / max(taken, 1e-9), 1)
        if not diverged:
            left = taken * (epochs - done)
            since = time.time() - (run.folder / "metrics.jsonl").stat().st_mtime if owner is not None else 0.0
            found["seconds_left"] = round(max(left - min(since, taken), 0.0), 1)
    return found | (owner or {})


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the texts of the columns of a row."""

    def text(key: str, form: Callable[[Any], str]) -> str:
        return "" if row[key] is None else form(row[key])

    return (
        row["run"],
        row["state"],
        text("epoch", lambda epoch: f"{epoch}/{row['epochs']}"),
        text("done", "{:.0%}".format),
        text("images_per_second", "{:.0f}".format),
        text("seconds_left", _duration),
        text("last", lambda value: f"{100 * value:.2f}"),
    )


def _duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
