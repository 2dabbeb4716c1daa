"""An explorer of the runs below a folder: a table to choose runs from, figures of the chosen ones, and downloads."""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from ickd_lib import plots, runs, runtime
from ickd_lib.runs.seeds import task_of
from ickd_lib.runtime import InputError
from ickd_lib.widgets import gallery
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import Block, Explorer, View, png_of

FEW = 6  # methods that are drawn while no run is chosen
MOST = 20  # largest number of lines in a figure
SHOWN = ("curves", "loss terms", "final metrics")
# For each column of the table, whether it is numeric, and the text of a run's cell.
COLUMNS: dict[str, tuple[bool, Callable[[dict[str, Any]], str]]] = {
    "run": (False, lambda row: row["run"]),
    "data set": (False, lambda row: row["dataset"]),
    "images": (True, lambda row: f"{row['train_images']:,}"),
    "teacher": (False, lambda row: row["teacher"] or ""),
    "network": (False, lambda row: row["network"]),
    "method": (False, lambda row: f"{row['method']} (a teacher)" if row["role"] == "teacher" else row["method"]),
    "seed": (True, lambda row: str(row["seed"])),
    "epochs": (True, lambda row: f"{row['epoch']}/{row['epochs']}"),
    "state": (False, lambda row: row["state"]),
    "last, %": (True, lambda row: _number(row, task_of(row).primary, 100, 1)),
    "best, %": (True, lambda row: _number(row, f"best_{task_of(row).primary}", 100, 1)),
    "NLL": (True, lambda row: _number(row, "nll", 1, 3)),
    "ECE, %": (True, lambda row: _number(row, "ece", 100, 1)),
    "agreement, %": (True, lambda row: _number(row, "agreement", 100, 1)),
}
SETTINGS = ("data set", "images", "teacher", "network", "epochs", "state")  # columns that may be the same for all runs
FINALS = {"accuracy, %": "accuracy", "NLL": "nll", "ECE, %": "ece", "agreement, %": "agreement"}


def _number(row: dict[str, Any], key: str, scale: float, digits: int) -> str:
    return f"{scale * row[key]:.{digits}f}" if key in row else ""


class RunExplorer(Explorer):
    """Display a table of runs and a figure of the chosen ones: curves, loss terms or final metrics.

    The table and the figure can be downloaded. While no run is chosen, the first few methods are drawn. Damaged runs
    are left out, with a note below the table.

    Attributes:
        rows: all runs by name, as `runs.overview` returns them.
        chosen: names of the chosen runs.
        kind, number, mean: the controls.

    Args:
        folder: a folder of runs, finished or not.
        chosen: names of the runs that are chosen at first: their paths below `folder`.
    Raises:
        InputError: the folder or a run does not exist, or all runs are damaged.
    """

    def __init__(self, folder: str | Path = "runs", *, chosen: Sequence[str] = ()) -> None:
        self.folder = Path(folder).absolute()  # the kernel may change its folder
        self._title = f"runs below {folder}"
        self.rows: dict[str, dict[str, Any]] = {}
        self.damaged: list[str] = []
        self._read()
        self.chosen = [runtime.choose(name, self.rows, "run") for name in chosen]
        self._kept: dict[str, Any] = {"filter": "", "sort": None}  # state of the table, received from the page
        self._shown: list[str] = []  # columns of the table
        self._sort = "", True  # the column by which it is sorted, and whether in descending order
        self._records: dict[str, list[dict[str, float]]] = {}  # of each run, kept until a reload
        self._drawing = self._dark = False  # whether the figure is being drawn, and was drawn for a dark theme

        style = {"style": {"description_width": "initial"}}
        narrow = {"layout": {"width": "auto"}}
        self.kind = ipw.Dropdown(
            options=SHOWN, description="show", tooltip=TERMS["show"], layout={"width": "180px"}, **style
        )
        self.number = ipw.Dropdown(
            options=["test_accuracy"], description="number", tooltip=TERMS["number"], layout={"width": "230px"}, **style
        )
        self.mean = ipw.Checkbox(
            value=True, description="mean over seeds", tooltip=TERMS["mean over seeds"], indent=False, **narrow
        )
        self.again = ipw.Button(description="reload", tooltip=TERMS["reload"], **narrow)
        saves: dict[str, tuple[str, Callable[[], str]]] = {
            "PNG": ("the figure as pixels", lambda: self._save_figure("png")),
            "SVG": ("the figure as vector graphics", lambda: self._save_figure("svg")),
            "CSV, runs": (
                "settings and final numbers of the chosen runs",
                lambda: self._save_csv("runs.csv", self._rows_to_save()),
            ),
            "CSV, curves": (
                "all numbers of the chosen runs in each epoch",
                lambda: self._save_csv("curves.csv", runs.long(self._rows_to_save())),
            ),
            "Markdown": ("table of mean ± std over seeds", lambda: self._save_table("md", runs.table)),
            "LaTeX": ("table of mean ± std over seeds", lambda: self._save_table("tex", runs.latex)),
        }
        self.saves = {name: ipw.Button(description=name, tooltip=tip, **narrow) for name, (tip, _) in saves.items()}
        self.table = View(self._on_table_event, waiting="The runs appear here when a kernel is running.")
        wrap = {"layout": {"flex_flow": "row wrap", "align_items": "center"}}
        super().__init__(
            [
                self.table,
                ipw.HBox([self.kind, self.number, self.mean, self.again], **wrap),
                ipw.HBox(
                    [
                        ipw.Label("save", tooltip="Download the figure or a table of the chosen runs."),
                        *self.saves.values(),
                    ],
                    **wrap,
                ),
            ],
            View(self._on_view_event),
        )
        for control in (self.kind, self.number, self.mean):
            control.observe(self._changed, "value")
        self.again.on_click(self._reload)
        for name, (_, act) in saves.items():
            self.saves[name].on_click(lambda _, act=act: self._save(act))

    def drawn(self, kind: str = "") -> dict[str, list[list[dict[str, Any]]]]:
        """Return the runs in the figure: for each name and each seed, the runs that are averaged (`runs.named`)."""
        return dict(list(self._requested(kind or self.kind.value).items())[:MOST])

    def save(self, path: str | Path) -> None:
        """Write a gallery: one HTML file that needs neither a kernel nor a network connection.

        It contains the table of all runs, and each figure of the chosen ones in light and dark colours.

        Args:
            path: the file, which ends with .html.
        Raises:
            InputError: the path does not end with .html, its folder does not exist, or nothing can be drawn yet.
        """
        figures: dict[str, dict[str, str]] = {}
        for kind in SHOWN:
            if kind == "curves" or self._drawable(kind):
                names = ", ".join(self.drawn(kind))
                draw = partial(self._figures, kind)
                pictures = [Image.open(io.BytesIO(png_of(draw, dark))) for dark in (False, True)]
                light, dark = map(gallery.data_uri, pictures)
                figures[kind] = {"light": light, "dark": dark, "alt": f"{kind}: {names}"}
        table, notes = self._table()
        table |= {"title": f"runs below {self.folder.resolve().name}", "fixed": True, "filter": ""}
        about = "The table contains all runs of the folder. Click a heading to sort them. The figure shows the " + (
            "chosen runs." if self.chosen else f"first {len(self.drawn())} methods."
        )
        content = {"kind": "runs", "table": table, "notes": notes, "figures": figures}
        gallery.write(path, f"Training runs of the folder {self.folder.resolve().name}", about, content)

    def figures(self) -> list[Figure]:
        return self._figures(self.kind.value)

    def _figures(self, kind: str) -> list[Figure]:
        if kind == "final metrics":
            found = {name: _finals(seeds) for name, seeds in self.drawn(kind).items()}
            best = {name: statistics.fmean(next(iter(numbers.values()), [0])) for name, numbers in found.items()}
            return [plots.finals(dict(sorted(found.items(), key=lambda item: -best[item[0]])))]
        curves = self._curves()
        if kind == "loss terms":
            return [plots.losses(curves)]
        if not self._drawing:  # no page has been displayed yet, or the chosen runs have changed since
            self._drawing = True
            try:
                self._offer()
            finally:
                self._drawing = False
        number = self.number.value  # seeds without it, because they have not been evaluated yet, are left out
        have = {name: [seed for seed in seeds if any(number in r for r in seed)] for name, seeds in curves.items()}
        return [plots.curves({name: seeds for name, seeds in have.items() if seeds}, number)]

    def _drawable(self, kind: str) -> list[dict[str, Any]]:
        """Return the chosen runs, or all, without those for which nothing can be drawn yet."""
        return [self.rows[name] for name in self.chosen or self.rows if name not in self._early(kind)]

    def _requested(self, kind: str) -> dict[str, list[list[dict[str, Any]]]]:
        rows = self._drawable(kind)
        if not self.chosen:
            few = list(runs.named(rows).values())[:FEW]
            names = {row["run"] for seeds in few for alike in seeds for row in alike}
            rows = [row for row in rows if row["run"] in names]
        if not rows:
            raise InputError(
                "nothing can be drawn for these runs yet; curves need a finished epoch, final metrics a finished run"
            )
        return runs.named(rows, by_run=not self.mean.value)

    def _early(self, kind: str) -> list[str]:
        """Names of the runs for which nothing can be drawn yet."""
        finals = kind == "final metrics"
        return [name for name, row in self.rows.items() if not row["epoch"] or (finals and row["state"] != "finished")]

    def _curves(self) -> dict[str, list[list[dict[str, float]]]]:
        """Return the records of the drawn runs. Runs that count as one seed are averaged."""

        def read(row: dict[str, Any]) -> list[dict[str, float]]:
            if row["run"] not in self._records:
                self._records[row["run"]] = runs.records(row)
            return self._records[row["run"]]

        return {
            name: [runs.averaged([read(row) for row in alike]) for alike in seeds]
            for name, seeds in self.drawn("curves").items()
        }

    def _read(self) -> None:
        found = runs.overview(self.folder)
        damaged = [row["problem"] for row in found if row["state"] == "damaged"]
        rows = {row["run"]: row for row in found if row["state"] != "damaged"}
        if not rows:
            raise InputError(f"all {len(found)} runs below {self.folder} are damaged; {damaged[0]}")
        self.rows, self.damaged = rows, damaged

    def _table(self) -> tuple[Block, list[Block]]:
        """Return the table, and notes about it."""
        cells = {name: [text(row) for row in self.rows.values()] for name, (_, text) in COLUMNS.items()}
        # What all runs have in common is displayed once, above the table.
        common = {name: texts[0] for name, texts in cells.items() if name in SETTINGS and len(set(texts)) == 1}
        shown = [name for name in COLUMNS if name not in common and any(cells[name])]
        columns = [{"name": name, "tip": TERMS[name], "number": COLUMNS[name][0]} for name in shown]
        lines = zip(*(cells[name] if name != "run" else self._names() for name in shown), strict=True)
        rows = [{"key": run, "cells": list(texts)} for run, texts in zip(self.rows, lines, strict=True)]
        by, down = self._sort
        if by not in shown:
            by = next((name for name in ("last, %", "best, %") if name in shown), "run")
            down = by != "run"
        self._shown, self._kept["sort"] = shown, [shown.index(by), down]
        note = ", ".join(f"{name} {text}" for name, text in common.items() if text)
        table = {"kind": "choices", "title": self._title, "columns": columns, "rows": rows}
        more = f"; and {len(self.damaged) - 1} more damaged runs" if len(self.damaged) > 1 else ""
        left_out = []
        if self.damaged:
            text = f"Left out, because damaged: {self.damaged[0]}{more}"
            left_out = [{"kind": "text", "tone": "error", "text": text}]
        alike = [{"kind": "text", "text": f"All runs have: {note}."}] if note and len(rows) > 1 else []
        table |= {"tip": TERMS["filter"], **self._kept, "chosen": self.chosen}
        return table, [*alike, *left_out]

    def _list(self) -> None:
        table, notes = self._table()
        self.table.show(table, *notes)

    def _names(self) -> list[str]:
        """Return a name for each run: its path without the fingerprint, and what distinguishes it from similar runs."""
        short = {run: re.sub(r"-[0-9a-f]{6}$", "", run) for run in self.rows}
        alike: dict[str, list[str]] = {}
        for run, name in short.items():
            alike.setdefault(name, []).append(run)
        for name, group in alike.items():
            if len(group) > 1:
                texts = runs.distinctions([self.rows[run] for run in group])
                short |= {run: f"{name} ({text})" if text else run for run, text in zip(group, texts, strict=True)}
        return list(short.values())

    def _draw(self) -> None:
        """Display the figure, and a note about the runs that it leaves out."""
        if self._drawing:  # `_offer` changes a control, and its observer must not draw again
            return
        self._drawing = True
        try:
            self._dark = self.view.dark
            self.number.disabled = self.kind.value != "curves"
            requested = self._requested(self.kind.value)
            if self.kind.value == "curves":
                self._offer()
            some = f"the first {FEW}" if len(runs.named(list(self.rows.values()))) > FEW else "all"
            note = "" if self.chosen else f"No run is chosen, so {some} methods are shown. "
            if early := [name for name in self._early(self.kind.value) if name in (self.chosen or self.rows)]:
                note += (
                    f"Left out, because nothing can be drawn yet: {', '.join(early[:3])}{', …' * (len(early) > 3)}. "
                )
            if len(requested) > MOST:
                note += f"Only {MOST} of {len(requested)} lines are drawn. Choose fewer runs, or the mean over seeds."
            names = ", ".join(list(requested)[:MOST])
            number = f" of {self.number.value}" if self.kind.value == "curves" else ""
            picture = {"kind": "picture", "alt": f"{self.kind.value}{number}: {names}"}
            self.view.show({"kind": "text", "text": note}, picture, data=self.png())
        finally:
            self._drawing = False

    def _offer(self) -> None:
        """Set the options of the control `number` to the numbers common to all drawn runs, and select one of them."""
        every = [{key for seed in seeds for record in seed for key in record} for seeds in self._curves().values()]
        common = set.intersection(*every) - {"epoch"}
        if not common:
            raise InputError("the chosen runs have no number in common; each needs at least one finished epoch")
        now, first = self.number.value, len(self.number.options) == 1
        options = sorted(common, key=lambda key: (not key.endswith("accuracy"), not key.startswith("loss"), key))
        if list(self.number.options) != options:
            self.number.options = options
        if first:  # a curve needs more than one point
            curves = [seed for seeds in self._curves().values() for seed in seeds]
            several = [key for key in common if any(sum(key in r for r in one) > 1 for one in curves)]
            now = next((key for key in ("test_accuracy", "train_accuracy") if key in several), "loss")
        self.number.value = next(key for key in (now, "test_accuracy", *options) if key in common)

    def _on_table_event(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "ready" and not self.table._last[0]:
                self._list()
            elif event == "choices":
                state = json.loads(key)
                self._kept, (at, down) = {"filter": state["filter"], "sort": state["sort"]}, state["sort"]
                self._sort = self._shown[at], down
                before, chosen = self.chosen, set(state["chosen"])
                self.chosen = [run for run in self.rows if run in chosen]
                self.table._last[0][0].update(self._kept, chosen=self.chosen)  # for pages that are opened later
                if self.chosen != before:
                    self._draw()

    def _on_view_event(self, event: str, _: str) -> None:
        if event in ("ready", "theme") and (not self.view._last[0] or self.view.dark != self._dark):
            self._changed()

    def _changed(self, _: Any = None) -> None:
        with self.guarded():
            self._draw()

    def _reload(self, _: Any) -> None:
        with self.guarded():
            self._read()
            self._records.clear()
            self.chosen = [run for run in self.chosen if run in self.rows]
            self._list()
            self._draw()
            self.show_message(f"{len(self.rows)} runs read")

    def _save(self, act: Callable[[], str]) -> None:
        with self.guarded():
            self.show_message(f"saved: {act()}")

    def _save_figure(self, form: str) -> str:
        number = f"-{self.number.value}" if self.kind.value == "curves" else ""
        buffer = io.BytesIO()
        with mpl.rc_context():
            plots.use()
            mpl.rcParams["svg.fonttype"] = "none"  # text remains text in the file
            self.figures()[0].savefig(buffer, format=form, dpi=200)
        name = f"{self.kind.value.replace(' ', '-')}{number}.{form}"
        self.view.save(name, buffer.getvalue(), {"png": "image/png", "svg": "image/svg+xml"}[form])
        return name

    def _rows_to_save(self) -> list[dict[str, Any]]:
        return [self.rows[name] for name in self.chosen] or list(self.rows.values())

    def _save_csv(self, name: str, rows: list[dict[str, Any]]) -> str:
        self.view.save(name, runs.csv_of(rows).encode(), "text/csv")
        return f"{name}, {len(rows)} rows" + ("" if self.chosen else " of all runs, because none is chosen")

    def _save_table(self, ending: str, form: Callable[[Sequence[dict[str, Any]]], str]) -> str:
        rows = [row for row in self._rows_to_save() if self.chosen or row["role"] == "student"]
        finished = [row for row in rows if row["state"] == "finished"]
        if not finished:
            raise InputError(
                "a table contains final numbers, but no chosen run is finished; choose other runs, or reload"
            )
        self.view.save(f"table.{ending}", form(finished).encode(), "text/plain")
        left_out = f", {len(rows) - len(finished)} unfinished left out" if len(finished) < len(rows) else ""
        return f"table.{ending}, {len(finished)} runs{left_out}"


def _finals(seeds: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Return one value per seed for each final number of the task. Runs that count as one seed are averaged."""
    task = task_of(seeds[0][0])
    names = FINALS
    if task.name != "classification":
        kept = [column for column in task.columns if not column.key.startswith("best_")]
        names = {c.heading if "%" in c.heading else f"{c.heading}, %": c.key for c in kept}
    found = {name: [[row[key] for row in alike if key in row] for alike in seeds] for name, key in names.items()}
    return {name: [statistics.fmean(some) for some in values if some] for name, values in found.items() if any(values)}
