"""One page about a run or a comparison of runs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ickd_lib import __version__, plots, runs, runtime
from ickd_lib.data import Splits
from ickd_lib.models import Network
from ickd_lib.pages import classification, dense
from ickd_lib.pages.html import Markup, bar, element, figure, note, page, plain, section, table
from ickd_lib.pages.networks import (
    MOST,
    Group,
    Row,
    buildable,
    described,
    differing,
    evaluate,
    fitting,
    group_of,
    without_teachers,
)
from ickd_lib.runs.seeds import method_of, task_of
from ickd_lib.runs.tables import caption, cells
from ickd_lib.runtime import InputError

LIMIT = 8_000_000  # largest size of a page in bytes
OWN = "the network of these runs is one of your own, which cannot be built from their folders"
PER_CLASS = {"segmentation": ("iou_", "IoU"), "detection": ("ap_", "AP")}  # keys of a summary, and what they are


def report(
    folders: Sequence[str | Path],
    *,
    splits: Splits | None = None,
    teacher: Network | None = None,
    baseline: str = "",
    no_splits: str = "no data set was given",
    no_teacher: str = "no teacher was given",
    precision: str = "auto",
) -> str:
    """Return an HTML page about the finished runs at or below some folders.

    The page is one file without scripts, whose figures and images are inside it. It contains the table over seeds and
    the curves of training, without those of other runs' teachers; for classification also the accuracy of each class,
    the confusion matrix, the reliability diagram, the most confident mistakes beside their in-context samples, and how
    two students differ; for segmentation and detection the IoU or the AP of each class, and the images with the most
    mistakes. Runs with images held out of train are described by these images alone, so there is no IoU or AP of each
    class, which runs have of the test images.

    Args:
        folders: run folders, folders that contain some, or JSON files of runs (`runs.collected`). Of runs in JSON
            files, and of runs of a network of the user's own, the page contains nothing that needs their networks.
        splits: the data of the runs, on the device of the evaluation; without them, sections that need images are
            left out.
        teacher: the teacher, whose memory bank has the in-context samples.
        baseline: a method; the table then contains the differences to it, and it is the second of the two students
            that are compared.
        no_splits, no_teacher: why there are none, for the page.
        precision: "auto", "fp32" or "bf16".
    Raises:
        InputError: a folder does not exist, no run is finished, the baseline is unknown, a network cannot be loaded, or
            its classes are not those of the data.
    """
    rows = runs.finished_rows(folders)
    baseline = runs.chosen_baseline(rows, baseline)
    students = without_teachers(rows, baseline)
    chosen = described(students, baseline)
    parts = [_results(rows, baseline, runs.diverged(folders)), _training(students)]
    best = next(iter(chosen))
    group = group_of(chosen[best])
    parts += _left_out(group, [other for other in map(group_of, students) if other != group])
    if group.task in PER_CLASS and not group.held_out:
        parts.append(_per_class(chosen, *PER_CLASS[group.task]))
    stored = {name: row for name, row in chosen.items() if row["folder"]}
    there = {name: row for name, row in stored.items() if Path(row["folder"], "student.safetensors").is_file()}
    built = {name: row for name, row in there.items() if buildable(row)}
    sets = dict.fromkeys([chosen[best]["dataset"], *(row["dataset"] for row in rows)])
    if splits is None or not built:
        lost = OWN if there else "the folders of the runs lack student.safetensors"
        why = no_splits if built else lost if stored else "the runs are in JSON files, which contain no networks"
        parts.append(section("Images", note(f"Sections about images, such as the mistakes, are left out: {why}.")))
    else:
        if own := "; ".join(name for name in there if name not in built):
            parts.append(note(f"Not evaluated are {own}: {OWN}."))
        parts += _images(built, splits, teacher, baseline, no_teacher, precision, several=len(rows) > 1)
    title = f"{best}: one run" if len(rows) == 1 else f"Comparison of {len(rows)} runs"
    parts.append(_origin(chosen[best]))
    return page(f"{title}, {', '.join(sets)}", *parts)


def write(path: str | Path, folders: Sequence[str | Path], **options: Any) -> int:
    """Write the page that `report` returns to a file, and return its size in bytes.

    Raises:
        InputError: as for `report`, or the page would be larger than LIMIT; nothing is then written.
    """
    content = report(folders, **options).encode()
    if len(content) > LIMIT:
        raise InputError(f"the page would have {len(content):,} bytes, more than {LIMIT:,}; name fewer runs")
    with runtime.replacing(path) as part:
        part.write_bytes(content)
    return len(content)


def _left_out(group: Group, others: Sequence[Group]) -> list[Markup]:
    """Return a note that the runs of other groups are left out, if there are some, with what distinguishes the group.

    Args:
        group: the group of the runs that are described.
        others: the group of each other run.
    """
    if not others:
        return []
    text = f"The rest of this page is about the runs on {group.dataset}"
    if any(other.dataset == group.dataset and other.classes != group.classes for other in others):
        text += f" with the classes {', '.join(group.classes[:3])}{', …' * (len(group.classes) > 3)}"
    if any(other.task != group.task for other in others):
        text += f" for {group.task}"
    if any(other.held_out != group.held_out for other in others):
        text += f" with{'' if group.held_out else 'out'} held-out images"
    count = f"{len(others)} other run{'s are' if len(others) > 1 else ' is'} left out"
    return [note(f"{text} alone; {count}.")]


def _images(
    there: dict[str, Row],
    splits: Splits,
    teacher: Network | None,
    baseline: str,
    no_teacher: str,
    precision: str,
    several: bool,
) -> list[Markup]:
    """Return the notes and sections that need images and networks.

    Args:
        there: the runs whose networks are there.
        splits, teacher, baseline, no_teacher, precision: as for `report`.
        several: whether the page is about more than one run.
    """
    kept = fitting(there, splits)
    others = ", ".join(name for name in there if name not in kept)
    text = f"Not evaluated, because other images were held out of their training: {others}."
    notes = [note(text)] if others else []
    if group_of(next(iter(kept.values()))).task in PER_CLASS:
        return [*notes, dense.mistakes(kept, splits, baseline, precision=precision)]
    found = evaluate(kept, splits, teacher, no_teacher=no_teacher, precision=precision)
    text = f"Of each method, the network with the lowest seed was evaluated on the {len(found.images):,} images of "
    text += f"{found.images.name}; at most {MOST} networks are shown, the best first."
    notes += map(note, differing(found, kept))
    of_baseline = next((name for name, row in kept.items() if method_of(row) == baseline), "")
    about = [section("Networks", text, *notes)] if several else notes
    return [*about, *classification.sections(found, of_baseline)]


def _results(rows: Sequence[Row], baseline: str, diverged: Mapping[str, int]) -> Markup:
    blocks: list[Any] = []
    for setting, by_method in runs.grouped(rows).items():
        heading, *lines = cells(by_method, baseline if baseline in by_method else "", best_first=True)
        title, rest = caption(setting, by_method)
        blocks += [element("p", element("b", title), rest), table(heading, lines)]
    text = (
        "Numbers are those after the last epoch, as mean ± standard deviation over the seeds where there are several."
    )
    if baseline:
        text += f" Differences to {baseline} are paired by seed, in percentage points with their 95% interval."
    if diverged:
        counts = [[method, count] for method, count in diverged.items()]
        blocks += [element("p", "Students that diverged are in no table above:"), table(["method", "seeds"], counts)]
    return section("Results", text, *blocks)


def _training(rows: Sequence[Row]) -> Markup:
    """Return the section with the curves, with figures of its own for each data set and number of epochs."""
    alike: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["dataset"], task_of(row).primary, row["epochs"]), []).append(row)
    blocks: list[Any] = []
    for (dataset, primary, epochs), some in alike.items():
        blocks += _curves(some, primary, f", {dataset}, {epochs} epochs" if len(alike) > 1 else "")
    return section("Training", *(blocks or ["The runs recorded no epochs."]))


def _curves(rows: Sequence[Row], primary: str, of_rows: str) -> list[Any]:
    """Return the headings and figures of the curves of some runs.

    Args:
        rows: the runs.
        primary: the primary metric of their task.
        of_rows: what the headings add about these runs.
    """
    named = {
        plain([name])[0]: [runs.averaged([runs.records(row) for row in alike]) for alike in seeds]
        for name, seeds in runs.named(rows).items()
    }
    metric, blocks = {"miou": "mIoU", "ap": "AP"}.get(primary, primary.capitalize()), list[Any]()
    for key, of in ((f"val_{primary}", "images held out of train"), (f"test_{primary}", "test images")):
        shown = {name: seeds for name, seeds in named.items() if _common(seeds, key)}
        if shown:
            words, draw = f"{metric} on the {of}{of_rows}", partial(plots.curves, shown, key)
            blocks += [element("h3", words), figure(draw, f"{words} over the epochs")]
            break
    losses = {name: seeds for name, seeds in named.items() if _common(seeds, "loss")}
    if losses:
        words, draw = f"Loss and its terms, on the training images{of_rows}", partial(plots.losses, losses)
        blocks += [element("h3", words), figure(draw, f"Losses over the epochs{of_rows}")]
    return blocks


def _common(seeds: Sequence[Sequence[Mapping[str, Any]]], key: str) -> bool:
    """Return whether there is an epoch in which all seeds recorded a number."""
    return bool(set.intersection(*({record["epoch"] for record in seed if key in record} for seed in seeds)))


def _per_class(chosen: dict[str, Row], prefix: str, of: str) -> Markup:
    """Return the section with a number of each class, which the summaries contain."""
    sizes = ("ap_small", "ap_medium", "ap_large")  # AP of small, medium and large objects
    best = next(iter(chosen))
    keys = [key for key in chosen[best] if key.startswith(prefix) and key not in sizes]
    lines = [
        [key.removeprefix(prefix), *(bar(row[key]) if key in row else "" for row in chosen.values())]
        for key in sorted(keys, key=lambda key: chosen[best][key])
    ]
    text = (
        f"{of} of each class in percent, of the run with the lowest seed of each method. The classes with the lowest "
    )
    return section(f"{of} of each class", f"{text}{of} of {best} come first.", table(["class", *chosen], lines))


def _origin(row: Row) -> Markup:
    config = row["config"]
    environment = config.get("environment", {})
    facts = [
        ["data", config["settings"]["data"]["name"]],
        ["teacher", (config["settings"].get("teacher") or {}).get("name", "none")],
        ["student", config["settings"]["student"]["network"]],
        *([key, value] for key, value in environment.items() if isinstance(value, (str, int))),
        ["page", f"ickd {__version__}, Python {platform.python_version()}"],
    ]
    place = f"The run folder {row['folder']}" if row["folder"] else f"The run {row['run']} in a JSON file"
    return section("Where this is from", f"{place}, and its environment:", table(["", ""], facts, words=True))
