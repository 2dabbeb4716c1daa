"""An explorer of suspect labels: the images of a bank whose neighbours have other labels, the most suspect first."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import explore
from ickd_lib.data import Images
from ickd_lib.explore import SampleSet
from ickd_lib.memory import MemoryBank
from ickd_lib.plots.pictures import tile
from ickd_lib.plots.style import OTHER
from ickd_lib.tasks import Classification, Task
from ickd_lib.widgets import gallery
from ickd_lib.widgets.neighbour_blocks import colours
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import Block, Explorer, View, strip

PAGE = 24  # tiles on a page
ABOUT = (
    "The most suspect labels first. Each image has its label, the class that its neighbours suggest, and the weight of "
    "its neighbours with another label."
)


class SuspectExplorer(Explorer):
    """Display the samples of a bank in the order of `explore.suspect_labels`, and the neighbours of a clicked one.

    Each tile has the label, the class that the neighbours suggest, and the score. The list can be saved as CSV.

    Args:
        bank: a memory bank.
        images: all images that the bank was built from, on the bank's device.
        neighbours: number of neighbours of each sample.
        task: which samples an image has; classification by default.
    Raises:
        InputError: the images do not fit the bank, or some of them have no label.
    """

    def __init__(self, bank: MemoryBank, images: Images, *, neighbours: int = 16, task: Task | None = None) -> None:
        task = task or Classification()
        explore.require_fit(bank, images, task=task)
        self.bank, self.samples, self.neighbours = bank, SampleSet(images, task).labelled(), neighbours
        self.found = explore.suspect_labels(bank, neighbours=neighbours)
        self.page, self.opened = 0, -1  # the page of tiles, and the key of the sample whose neighbours are displayed
        self.export = ipw.Button(
            description="save as CSV",
            tooltip="CSV of rows, files, labels, suggestions and scores",
            layout={"width": "auto", "align_self": "flex-start"},
        )
        super().__init__([self.export], View(self._on_event))
        self.export.on_click(self._on_export)
        self._show()

    def figures(self) -> list[Figure]:
        """Return the most suspect samples and their classes."""
        at = self.samples.positions(self.found.key[:PAGE])
        pictures, classes = self.samples.thumbnails(at).cpu().numpy(), self.samples.classes
        figure = plt.figure(figsize=(10, 5.6))
        axis = figure.add_axes((0, 0, 1, 1))
        for i, (label, other) in enumerate(zip(self.found.label.tolist(), self.found.suggestion.tolist(), strict=True)):
            if i < len(pictures):
                text = f"{classes[label]} → {classes[other]}"
                tile(axis, pictures[i], 1.2 * (i % 8), 1.6 * (i // 8), OTHER, text)
        axis.set(xlim=(-0.1, 9.6), ylim=(4.8, -0.1), aspect="equal")
        axis.set_axis_off()
        return [figure]

    def _on_event(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "page":
                self.page, self.opened = int(key), -1
            elif event == "open":
                self.opened = int(key)
            if event in ("page", "open", "theme") or (event == "ready" and self.view.dark):
                self._show()

    def _on_export(self, _: Any) -> None:
        with self.guarded():
            buffer, classes = io.StringIO(), self.samples.classes
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["row", "file", "label", "suggestion", "score"])
            at = self.samples.positions(self.found.key).tolist()
            for i, position in enumerate(at):
                label, other = classes[int(self.found.label[i])], classes[int(self.found.suggestion[i])]
                row = [int(self.samples.rows[position]), self.samples.file(position), label, other]
                writer.writerow([*row, f"{float(self.found.score[i]):.4f}"])
            self.view.save("suspect_labels.csv", buffer.getvalue().encode(), "text/csv")
            self.show_message(f"saved: suspect_labels.csv, {len(at):,} rows")

    def save(self, path: str | Path, *, suspects: int = 24) -> None:
        """Write a gallery: one HTML file that needs neither a kernel nor a network connection.

        Args:
            path: the file, which ends with .html.
            suspects: number of the most suspect samples, which it contains with their neighbours.
        Raises:
            InputError: the path does not end with .html, or its folder does not exist.
        """
        sheets = gallery.Sheets()
        listing = sheets.add(*self._listing(slice(0, suspects), None))
        keys = [str(tile["key"]) for tile in listing["tiles"]]
        pages = {}
        for one, key in zip(listing["tiles"], keys, strict=True):
            around = gallery.opened_in(sheets.add(*self._around(int(key), None)), keys)
            own = {
                "kind": "tiles",
                "tone": "query",
                "title": "suspect",
                "tip": TERMS["suspect labels"],
                "tiles": [one],
                "sheet": listing["sheet"],
            }
            pages[key] = [{"kind": "row", "blocks": [own, around]}]
        listing = gallery.opened_in(listing, keys)
        content = {"kind": "list", "of": "suspect", "listing": listing, "pages": pages}
        gallery.write(path, f"Suspect labels of {self.samples.name}", ABOUT, content, sheets)

    def _show(self) -> None:
        pages = [self.page, math.ceil(len(self.found.key) / PAGE)]
        listing, data = self._listing(slice(self.page * PAGE, (self.page + 1) * PAGE), self.view.dark)
        shown = [{"kind": "text", "text": f"{ABOUT} Click an image to see its neighbours."}, listing | {"pages": pages}]
        if self.opened >= 0:
            around, more = self._around(self.opened, self.view.dark)
            shown.append(around | {"start": len(data)})
            data += more
        self.view.show(*shown, data=data)

    def _listing(self, some: slice, dark: bool | None) -> tuple[Block, bytes]:
        """Return the block of some suspects, with label, suggestion and score, and the bytes of its images."""
        labels, others, scores = (one[some] for one in (self.found.label, self.found.suggestion, self.found.score))
        classes, lines = self.samples.classes, []
        for label, other, score in zip(labels.tolist(), others.tolist(), scores.tolist(), strict=True):
            lines.append([classes[label], f"{'✓' if label == other else '✗'} {classes[other]} {score:.2f}"])
        at = self.samples.positions(self.found.key[some])
        return self._tiles(at, lines, dark, title="suspect labels", tip=TERMS["suspect labels"])

    def _around(self, key: int, dark: bool | None) -> tuple[Block, bytes]:
        """Return the block of the neighbours of the sample with this key, and the bytes of its images."""
        near = self.samples.positions(self._nearest(key))
        position = int(self.samples.positions(torch.tensor(key, device=self.samples.keys.device)))
        title = f"the nearest of {', '.join(self.samples.address(position))}"
        lines = [[self.samples.classes[c]] for c in self.samples.labels[near].tolist()]
        return self._tiles(near, lines, dark, title=title, tip=TERMS["nearest"], tone="other")

    def _tiles(self, at: Tensor, lines: list[list[str]], dark: bool | None, **options: Any) -> tuple[Block, bytes]:
        """Return a block of tiles for the samples at some positions, and the bytes of its images."""
        data, shape = strip(self.samples.thumbnails(at))
        by_class = colours(self.samples, (), dark)
        tiles = []
        for i, (position, texts) in enumerate(zip(at.tolist(), lines, strict=True)):
            where = [*filter(None, [self.samples.file(position)]), *self.samples.address(position)]
            colour = by_class[int(self.samples.labels[position])]
            one = {"at": i, "key": int(self.samples.keys[position]), "colour": colour}
            tiles.append({**one, "lines": [*texts, *where], "label": ", ".join([*texts, *where])})
        return {"kind": "tiles", "shape": shape, "tiles": tiles, "event": "open", **options}, data

    def _nearest(self, key: int) -> Tensor:
        """Return the keys of the neighbours of the sample with this key, the nearest first."""
        row = self.bank.rows(torch.tensor([key], device=self.bank.labels.device))
        cosine = self.bank.features.float() @ self.bank.features[row[0]].float()
        filled = self.bank.filled
        cosine[~filled], cosine[row] = -torch.inf, -torch.inf
        return self.bank.index[cosine.topk(min(self.neighbours, int(filled.sum()) - 1)).indices]
