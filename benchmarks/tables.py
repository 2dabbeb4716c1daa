"""What scripts that train the students of a table share: passes, files of finished runs, calls with a time limit."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ickd_lib import methods, runtime
from ickd_lib.runs import finished
from ickd_lib.training import capture

UNFINISHED = 75  # exit status of a call that --minutes or Ctrl-C stopped


def passes(every: list[str], together: int) -> list[list[str]]:
    """Divide methods into groups of at most `together` methods. Each group is trained in one pass.

    A method whose steps cannot be captured on a GPU is a group of its own, because those of other students in the same
    pass could not be captured either: one with `query='view'`, or one that works on the host, such as MLKD.
    """

    def fits(method: str) -> bool:
        return "query='view'" not in method and not capture.works_on_host([methods.create(method)], "crop")

    alone = [[method] for method in every if not fits(method)]
    rest = [method for method in every if [method] not in alone]
    return [rest[i : i + together] for i in range(0, len(rest), together)] + alone


def write_finished(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Write a JSON file in `out` for each finished run below `folder` that has none yet.

    The class names are the same in every run and are left out.

    Returns:
        The summaries of the runs for which a file was written.
    """
    written = []
    for run in map(runtime.Run, sorted(path.parent for path in folder.glob("*/summary.json"))):
        if not (path := file_of(run, out)).exists() and run.summary:
            write(run, run.summary, path)
            written.append(run.summary)
    return written


def file_of(run: runtime.Run, out: Path) -> Path:
    """Return the path of a run's JSON file in a folder."""
    return out / (re.sub(r"[^\w.=+-]+", "-", run.folder.name) + ".json")


def write(run: runtime.Run, summary: dict[str, Any], path: Path) -> None:
    """Write the JSON file of a run, with this summary and without the class names."""
    config = run.config
    config["settings"]["data"].pop("classes", None)
    runtime.write_json(path, {"config": config, "epochs": run.metrics, "summary": summary})


def already_written(folder: Path) -> set[tuple[str, str, str, int]]:
    """Return the teacher, student, method and seed of each run with a JSON file in the folder."""
    summaries = finished([folder]) if any(folder.glob("*.json")) else []
    return {(one["teacher"], one["network"], one["method"], one["data_seed"]) for one in summaries}


def limited(train: Callable[[], list[str]], minutes: float) -> int:
    """Call `train`, stop it after some minutes, and return the exit status of the script.

    Args:
        train: trains all students, and returns a message for each pass in which students diverged.
        minutes: minutes after which to stop; 0: never.
    Returns:
        0; 1 if students diverged, after their names were printed; 75 after a stop by the time or by Ctrl-C. Of several
        processes, all but the first return 0: torchrun would otherwise end the first one when another one is done, even
        while it writes a checkpoint.
    """
    first = os.environ.get("RANK", "0") == "0"
    if minutes:
        # The alarm has the effect of Ctrl-C: training stops between two steps, and a checkpoint is written. Python's
        # handler is set first, because a process that a shell started in the background ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        failed = train()
    except KeyboardInterrupt:
        failed, status = ["stopped before the end; the same call or command continues from here"], UNFINISHED
    else:
        status = int(bool(failed))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for line in failed if first else []:
        print(line, file=sys.stderr)
    return status if first else 0
