"""The page and the figure of the command `ickd report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ickd_lib import pages, plots, runs, runtime
from ickd_lib.data import Splits
from ickd_lib.export.commands import data_of, named_teacher
from ickd_lib.pages.networks import NO_VAL, buildable, described, group_of, without_teachers
from ickd_lib.runs.seeds import task_of
from ickd_lib.runtime import InputError


def report(given: argparse.Namespace, load: Callable[[], Splits]) -> None:
    """Write the page. What it lacks, because the data or the teacher were not found, it states.

    Args:
        given: the options.
        load: loads the data set that the options describe, when it is called.
    """
    rows = without_teachers(runs.finished_rows(given.folders), given.baseline)
    chosen = described(rows, given.baseline)
    row, options = next(filter(buildable, chosen.values()), None), dict[str, Any]()
    if row:
        run, named = runtime.Run(row["folder"]), bool(given.dataset)
        try:
            options["splits"] = splits = data_of(run, given, load)
        except InputError as error:
            if named:
                raise
            options["no_splits"] = str(error)
        else:
            if group_of(row).held_out and not len(splits.val):
                options["no_splits"] = NO_VAL
                del options["splits"]
            if task_of(row).name == "classification" and "splits" in options:
                recorded = (run.settings["teacher"] or {}).get("name", "")
                options["teacher"] = named_teacher(run, given, splits)
                options["no_teacher"] = (
                    f"the teacher of the run, {recorded}, was not found beside it; name it with --teacher"
                    if recorded
                    else "the run has no teacher; name one with --teacher"
                )
    if why := options.get("no_splits"):
        runtime.notice(f"the page has no sections about images: {why}")
    size = pages.write(given.html, given.folders, baseline=given.baseline, **options)
    print(f"{given.html}: {size / 1e6:.1f} MB", file=sys.stderr)


def draw(given: argparse.Namespace, summaries: list[dict[str, Any]]) -> None:
    """Write the figure.

    Args:
        given: the options.
        summaries: those of the runs.
    """
    kind = runtime.choose(Path(given.figure).suffix[1:], ("png", "svg", "pdf"), "kind of figure")
    plots.use()
    if given.baseline:
        settings = runs.grouped(summaries)
        if len(settings) > 1:
            raise InputError(f"differences are drawn for one setting, not {len(settings)}; name fewer runs")
        ((setting, by_method),) = settings.items()
        apart = runs.differences(by_method, given.baseline)
        if not apart:
            raise InputError(f"no other method has two seeds in common with {given.baseline}; name more runs")
        ranked = dict(sorted(apart.items(), key=lambda pair: -pair[1]["mean"]))
        of = _number(next(iter(by_method.values()))[0][0])
        of = f"{of} on held-out images" if setting.held_out else f"test {of}"
        figure = plots.differences(ranked, baseline=given.baseline, of=of)
    else:
        names = dict.fromkeys(map(_number, summaries))
        figure = plots.published(runs.beside_published(summaries), of=" or ".join(names))
    with runtime.replacing(given.figure) as part:
        figure.savefig(part, format=kind)


def _number(summary: dict[str, Any]) -> str:
    """Return the name of the number that a run's task is compared by."""
    primary = task_of(summary).primary
    return {"miou": "mIoU", "ap": "AP"}.get(primary, primary)
