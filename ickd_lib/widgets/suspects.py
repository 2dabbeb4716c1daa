"""An explorer of suspect labels: the images of a bank whose neighbours have other labels, the most suspect first."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import explore, plots
from ickd_lib.data import Images
from ickd_lib.explore import SampleSet
from ickd_lib.memory import MemoryBank
from ickd_lib.plots.pictures import tile
from ickd_lib.plots.style import OTHER
from ickd_lib.tasks import Classification, Task
from ickd_lib.widgets.view import Block, Explorer, View, strip

PAGE = 24  # tiles on a page


class SuspectExplorer(Explorer):
    """Display the samples of a bank in the order of `explore.suspect_labels`, and the neighbours of a clicked one.

    Each tile has the label, the class that the neighbours suggest, and the score. The list can be saved as CSV.

    Args:
        bank: a memory bank.
        images: all images that the bank was built from, on the bank's device.
        neighbours: number of neighbours of each sample.
        task: which samples an image has; classification by default.
    Raises:
        InputError: the images do not fit the bank.
    """

    def __init__(self, bank: MemoryBank, images: Images, *, neighbours: int = 16, task: Task | None = None) -> None:
        task = task or Classification()
        explore.require_fit(bank, images, task=task)
        self.bank, self.samples, self.neighbours = bank, SampleSet(images, task), neighbours
        self.found = explore.suspect_labels(bank, neighbours=neighbours)
        self.page, self.opened = 0, -1  # the page of tiles, and the key of the sample whose neighbours are displayed
        self.save = ipw.Button(description="save as CSV", layout={"width": "auto"})
        super().__init__([self.save], View(self._on_event))
        self.save.on_click(self._on_save)
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

    def _on_save(self, _: Any) -> None:
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

    def _show(self) -> None:
        some = slice(self.page * PAGE, (self.page + 1) * PAGE)
        keys, classes = self.found.key[some], self.samples.classes
        near = self._nearest() if self.opened >= 0 else keys[:0]
        at = self.samples.positions(torch.cat([keys, near]))
        data, shape = strip(self.samples.thumbnails(at))
        _, group, looks = plots.class_colours(classes, self.samples.superclasses, self.samples.superclass_of)
        colour = [to_hex(looks[g]["color"]) for g in group]

        def tiles(start: int, lines: list[list[str]], labels: Tensor, **options: Any) -> Block:
            made = []
            for i, (position, texts) in enumerate(zip(at[start : start + len(lines)].tolist(), lines, strict=True)):
                where = [*filter(None, [self.samples.file(position)]), *self.samples.address(position)]
                one = {"at": start + i, "key": int(self.samples.keys[position]), "colour": colour[int(labels[i])]}
                made.append({**one, "lines": [*texts, *where], "label": ", ".join([*texts, *where])})
            return {"kind": "tiles", "shape": shape, "tiles": made, "event": "open", **options}

        labels, others, scores = (
            one[some].tolist() for one in (self.found.label, self.found.suggestion, self.found.score)
        )
        lines = [
            [classes[label], f"{'✓' if label == other else '✗'} {classes[other]} {score:.2f}"]
            for label, other, score in zip(labels, others, scores, strict=True)
        ]
        text = (
            "The most suspect labels first. Each image has its label, the class that its neighbours suggest, and the "
            "weight of its neighbours with another label. Click an image to see its neighbours."
        )
        pages = [self.page, math.ceil(len(self.found.key) / PAGE)]
        shown = [tiles(0, lines, self.found.label[some], title="suspect labels", pages=pages)]
        if self.opened >= 0:
            of = self.samples.labels[at[len(keys) :]]
            position = int(self.samples.positions(torch.tensor(self.opened, device=self.samples.keys.device)))
            title = f"the nearest of {', '.join(self.samples.address(position))}"
            shown.append(tiles(len(keys), [[classes[int(c)]] for c in of], of, title=title, tone="other"))
        self.view.show({"kind": "text", "text": text}, *shown, data=data)

    def _nearest(self) -> Tensor:
        """Return the keys of the neighbours of the opened sample, the nearest first."""
        row = self.bank.rows(torch.tensor([self.opened], device=self.bank.labels.device))
        cosine = self.bank.features.float() @ self.bank.features[row[0]].float()
        cosine[row] = -torch.inf
        return self.bank.index[cosine.topk(min(self.neighbours, len(self.bank) - 1)).indices]
