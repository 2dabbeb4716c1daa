"""The page of the command `ickd report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ickd_lib import pages, runtime, training
from ickd_lib.data import Splits
from ickd_lib.export import teacher_of
from ickd_lib.export.commands import data_of
from ickd_lib.pages.networks import described, finished_rows
from ickd_lib.runs.seeds import task_of
from ickd_lib.runtime import InputError


def report(given: argparse.Namespace, load: Callable[[], Splits]) -> None:
    """Write the page. What it lacks, because the data or the teacher were not found, it states.

    Args:
        given: the options.
        load: loads the data set that the options describe, when it is called.
    """
    chosen = described(finished_rows(given.folders), given.baseline)
    row = next(iter(chosen.values()))
    run, options = runtime.Run(row["folder"]), dict[str, Any]()
    if task_of(row).name == "classification":
        named = bool(given.dataset)
        try:
            options["splits"] = data_of(run, given, load)
        except InputError as error:
            if named:
                raise
            options["no_splits"] = str(error)
        if given.teacher:
            options["teacher"] = training.load(given.teacher, device="cpu")
        elif "splits" in options:
            options["teacher"] = teacher_of(run)
            recorded = (run.settings["teacher"] or {}).get("name", "")
            options["no_teacher"] = (
                f"the teacher of the run, {recorded}, was not found beside it; name its run folder with --teacher"
                if recorded
                else "the run has no teacher; name one with --teacher"
            )
    size = pages.write(given.html, given.folders, baseline=given.baseline, **options)
    print(f"{given.html}: {size / 1e6:.1f} MB", file=sys.stderr)
