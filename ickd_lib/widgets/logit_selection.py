"""Selections of the logit-space explorer: how samples are selected, and what is displayed of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets as ipw
import numpy as np
import torch
from torch import Tensor

from ickd_lib import metrics
from ickd_lib.explore import SampleSet, positions, region, search, selection_csv
from ickd_lib.runtime import InputError
from ickd_lib.widgets import logit_blocks as blocks
from ickd_lib.widgets.logit_controls import LogitControls
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import Block, Explorer, strip

MEMBERS, NEIGHBOURS = 24, 8  # largest number of tiles of each kind on a page


class Selection(LogitControls, Explorer):
    """The part of the logit-space explorer that selects samples and displays the selected ones.

    Attributes:
        samples, labels, rows: the N samples, their classes and the data-set rows of their images, shape [N].
        logits: each network's logits, shape [N, C].
        members: positions of the selected samples.
        page: number of the displayed page of tiles.
        scatters: the maps, each a `jupyter-scatter` plot; empty before a page displays the explorer.
    """

    samples: SampleSet
    labels: Tensor
    rows: Tensor
    logits: dict[str, Tensor]
    members: Tensor
    page: int
    scatters: list[Any]
    _by_class: Sequence[str]
    _margins: dict[str, tuple[Tensor, Tensor]]
    _selected: tuple[list[Block], bytes]
    _changing: bool

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the two networks that are compared: those of the first two maps, or of the map and another one."""
        first = self.shows[0].value
        others = [one.value for one in self.shows[1:]] + [name for name in self.logits if name != first]
        return first, next((name for name in others if name != first), first)

    def select(self, members: Tensor | np.ndarray | Sequence[int], *, by: ipw.Widget | None = None) -> None:
        """Select images, as a lasso does. Errors are displayed.

        Args:
            members: positions of the images, shape [n], or a mask of the images, bool, shape [N].
            by: the control or the map in which they were selected. It is left unchanged.
        """
        with self.guarded(), self._changing_controls():
            given = torch.as_tensor(members).cpu()
            at = given.nonzero().squeeze(1) if given.dtype == torch.bool else given.long().unique()  # ascending
            if len(at) and not 0 <= int(at[0]) <= int(at[-1]) < len(self.labels):
                raise InputError(f"positions must be from 0 to {len(self.labels) - 1}, not from {at[0]} to {at[-1]}")
            self.members, self.page = at, 0
            for control, nothing in ((self.class_, -1), (self.written, ""), (self.search, "")):
                if control is not by and control.value != nothing:
                    control.value = nothing
            for scatter in self.scatters:
                if scatter.widget is not by:
                    scatter.widget.selection = self.members.numpy().astype(np.uint32)
            if self.colour.value == "selected classes":
                self._paint()
            self._describe()

    @contextlib.contextmanager
    def _changing_controls(self) -> Iterator[None]:
        """Mark the enclosed changes of controls as the program's own, so that observers do not react to them."""
        before, self._changing = self._changing, True
        try:
            yield
        finally:
            self._changing = before

    def _on_search(self, change: dict[str, Any]) -> None:
        if not self._changing:
            with self.guarded():
                of = "student" if "student" in self.logits else self.judged.value
                text = change["new"].strip()
                self.select(search(text, self.samples, self.logits, of=of) if text else [], by=self.search)

    def _on_export(self, _: Any) -> None:
        with self.guarded():
            if not len(self.members):
                raise InputError("nothing is selected; select some images, and save again")
            self.view.save("selection.csv", selection_csv(self.samples, self.members, self.logits).encode(), "text/csv")
            self.show_message(f"saved: selection.csv, {len(self.members):,} rows")

    def _on_class_choice(self, change: dict[str, Any]) -> None:
        if not self._changing:
            self.select((self.labels == change["new"]).nonzero().squeeze(1), by=self.class_)

    def _on_rows(self, change: dict[str, Any]) -> None:
        with self.guarded():
            if not self._changing:
                self.select(positions(change["new"], self.rows, self.samples.name), by=self.written)

    def _on_tile_choice(self, _: dict[str, Any]) -> None:
        with self.guarded():
            self.page = 0
            self._describe()

    def _select_right_only(self, right: str, wrong: str) -> None:
        """Select where one network is right and another one is wrong."""
        with self.guarded():
            found = (self.logits[right].argmax(1) == self.labels) & (self.logits[wrong].argmax(1) != self.labels)
            if not found.any():
                raise InputError(f"there is no {self.samples.task.sample[0]} that {right} gets right and {wrong} wrong")
            self.select(found)

    def _describe(self) -> None:
        """Display the selected images, measures of their separation, and the nearest images outside the selection."""
        count = len(self.members)
        if count != 1:
            self.hovered.show(blocks.hint(self.samples))
        if not count:
            self._selected = [], b""
            return self._display()
        found = {}
        for name, logits in self.logits.items():
            margins = self._margins_of(name)
            found[name] = region(logits, self.labels, self.members, neighbours=NEIGHBOURS, margins=margins)
        pair = [self.logits[name] for name in self.pair]
        judged, how = self.logits[self.judged.value], (self.shown.value, self.order.value)
        _, apart = self._margins_of(self.judged.value)
        ordered = blocks.ordered(self.members, self.labels, judged, pair, apart, *how)
        title = f"{count:,} selected"
        if self.shown.value != "all":
            title += f", {len(ordered):,} of them: {self.shown.value}"
        pages = max(1, math.ceil(len(ordered) / MEMBERS))
        self.page = min(max(0, self.page), pages - 1)
        own = ordered[self.page * MEMBERS : (self.page + 1) * MEMBERS]
        groups: list[tuple[str, Tensor, dict[str, Any]]] = [
            (title, own, {"pages": [self.page, pages], "tip": TERMS["selected"]})
        ]
        for name in dict.fromkeys(control.value for control in self.shows):
            near = [f"cos {cosine:.3f}" for cosine in found[name].cosine]
            title = f"nearest outside the selection, for {name}"
            groups.append(
                (
                    title,
                    found[name].nearest,
                    {"more": near, "tone": "other", "folded": title, "tip": TERMS["nearest outside"]},
                )
            )
        data, shape = strip(self.samples.thumbnails(torch.cat([at for _, at, _ in groups])))
        tiles, start = [], 0
        for title, at, options in groups:
            given = {"title": title, "shape": shape, "start": start, "logits": judged, **options}
            tiles.append(blocks.sample_tiles(self.samples, at, self._by_class, **given))
            start += len(at)
        self._selected = [*tiles[:1], blocks.region_table(found, self.samples), *tiles[1:]], data
        self._display()
        if count == 1:
            self._display_one(int(self.members[0]))

    def _margins_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Return `metrics.margins` of a network's logits, which are computed once."""
        if name not in self._margins:
            self._margins[name] = metrics.margins(self.logits[name], self.labels)
        return self._margins[name]

    def _paint(self) -> None:
        """Set the colours of the points and the legend, for the theme of the page."""
        raise NotImplementedError

    def _display(self) -> None:
        """Display what describes the selection and, below it, the errors."""
        raise NotImplementedError

    def _display_one(self, at: int) -> None:
        """Display one image and each network's prediction for it."""
        raise NotImplementedError
