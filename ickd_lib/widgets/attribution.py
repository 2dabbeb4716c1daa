"""An explorer of contributions: which training samples raised the margin of the predicted class or lowered it."""

from __future__ import annotations

from functools import partial
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import explore, methods, runtime
from ickd_lib.data import Images
from ickd_lib.explore import Attribution, Attributor, SampleSet
from ickd_lib.models import Output
from ickd_lib.plots.pictures import tile
from ickd_lib.plots.style import OTHER, SAME
from ickd_lib.runtime import InputError
from ickd_lib.widgets import neighbour_blocks as blocks
from ickd_lib.widgets.neighbour_controls import NARROW, STYLE
from ickd_lib.widgets.search import SearchBox
from ickd_lib.widgets.terms import TERMS, tips
from ickd_lib.widgets.view import Block, Explorer, View, strip

SHOWN = 16  # training samples for a class and against it
CONTEXT = 8  # in-context samples of each kind

PathEntry = tuple[str, int]  # a query: "queries" or "train" for the set that contains it, and its position there


class AttributionExplorer(Explorer):
    """Display a query, the training samples that raised or lowered the margin of its class, and the loss terms.

    A query is chosen by row, class or search text, at random, or among the student's mistakes. A click on a training
    sample makes it the query. Another class than the predicted one can be explained, too.

    Attributes:
        number, of_class, search, explained, roles: the controls.
        found: the contributions to the prediction for the current query (`explore.Attribution`).
        current: the current query: "queries" or "train" for the set that contains it, and its position there.

    Args:
        attributor: the student and its training images.
        queries: images to choose queries from; by default the training images.
    Raises:
        InputError: the queries have other classes or another size than the training images.
    """

    def __init__(self, attributor: Attributor, queries: Images | None = None) -> None:
        train = attributor.images
        if queries is not None and (queries.classes != train.classes or queries.size != train.size):
            raise InputError(
                f"queries and training images must have the same classes and size, not those of {queries.name} and "
                f"{train.name}"
            )
        self.attributor = attributor
        self.sets = {"train": SampleSet(train), "queries": SampleSet(train if queries is None else queries)}
        self.found: Attribution
        self.path: list[PathEntry] = [("queries", 0)]
        self._outputs: dict[str, list[Output]] = {}  # of all samples of a set at each of the kept weights
        self.generator = runtime.generator("explorer")
        super().__init__(self._make_controls(), View(self._on_event))
        self.number.observe(self._on_number, "value")
        for choice in (self.of_class, self.search):
            choice.observe(lambda _: self._go_to(0), "value")
        for control in (self.explained, self.roles):
            control.observe(lambda _: self._show(), "value")
        self.following.on_click(lambda _: self._go_to(1))
        self.random.on_click(lambda _: self._go_to(None))
        self.mistake.on_click(lambda _: self._go_to(1, "wrong"))
        self.back.on_click(lambda _: self._visit(self.path[:-1] or self.path))
        self._show()

    def _make_controls(self) -> list[ipw.Widget]:
        samples = self.sets["queries"]
        keys, classes = samples.keys, [(name, c) for c, name in enumerate(samples.classes)]
        least, most = int(keys.min()), int(keys.max())
        width = {"layout": {"width": "200px"}}
        self.search = SearchBox(samples, ["student"])
        self.number = ipw.BoundedIntText(
            int(keys[0]),
            least,
            most,
            description="row",
            tooltip=TERMS["row"],
            layout={"width": "140px"},
            **STYLE,
        )
        self.of_class = ipw.Dropdown(
            options=[("all", -1), *classes], description="class", tooltip=TERMS["of class"], **width, **STYLE
        )
        self.back, self.following, self.random, self.mistake = (
            ipw.Button(description=text, tooltip=TERMS[text], **NARROW)
            for text in ("back", "next", "random", "next mistake")
        )
        options = [("predicted", -1), *classes]
        self.explained = ipw.Dropdown(
            options=options, description="explain", tooltip=TERMS["explain"], **width, **STYLE
        )
        self.roles = ipw.Checkbox(
            False,
            description="rank with what samples did as in-context samples of others",
            tooltip=TERMS["roles"],
            disabled=self.attributor.bank is None or not self.attributor.method.retrievals,
            indent=False,
            layout={"width": "max-content"},
        )
        row = [self.number, self.of_class, self.back, self.following, self.random, self.mistake, self.explained]
        return [self.search, ipw.HBox([*row, self.roles], layout={"flex_flow": "row wrap"})]

    @property
    def current(self) -> PathEntry:
        """The current query, the last entry of the path."""
        return self.path[-1]

    # ------------------------------------------------------------------------------------------- choosing a query

    def _on_number(self, change: dict[str, Any]) -> None:
        """Display the query with this row, or the next one in the direction of the change."""
        samples, new = self.sets["queries"], int(change["new"])
        source, shown = self.path[0]
        if source == "queries" and int(samples.keys[shown]) == new:
            return
        at = explore.next_key(samples.keys, new, change["old"])
        with self.guarded():
            self._visit([("queries", at)])
            if (key := int(samples.keys[at])) != new:
                self.show_message(f"{samples.name} has no row {new}; this is {key}")

    def _go_to(self, step: int | None, also: str = "") -> None:
        """Display a query that matches class and search: the first (0), the next (1) or a random one (None)."""
        with self.guarded():
            samples = self.sets["queries"]
            logits = {"student": partial(self._last_logits, "queries")}
            matches = explore.search(f"{self.search.value} {also}".strip(), samples, logits)
            if self.of_class.value >= 0:
                matches = [at for at in matches if int(samples.labels[at]) == self.of_class.value]
            if not matches:
                raise InputError(f"no image of class {self.of_class.label!r} matches; choose another class, or all")
            here = self.path[0][1]
            if step is None:
                at = matches[int(torch.randint(len(matches), (), generator=self.generator))]
            else:
                at = next((i for i in matches if i > here), matches[0]) if step else matches[0]
            self._visit([("queries", at)])
            if len(matches) < len(samples):
                self.show_message(f"match {matches.index(at) + 1} of {len(matches):,}")

    def _visit(self, path: list[PathEntry]) -> None:
        """Make the last entry of a path the current query."""
        self.path = path
        self.number.value = int(self.sets["queries"].keys[path[0][1]])
        self._show()

    def _on_event(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "open":
                position = self.sets["train"].positions(
                    torch.tensor(int(key), device=self.attributor.images.index.device)
                )
                if (entry := ("train", int(position))) != self.current:
                    self._visit([*self.path, entry])
            elif event == "crumb":
                self._visit(self.path[: int(key) + 1])
            elif event == "theme" or (event == "ready" and self.view.dark):
                self._show()

    # ------------------------------------------------------------------------------------------- displaying it

    def _of(self, source: str) -> list[Output]:
        """Return the student's outputs for all samples of a set at each of the kept weights."""
        if source not in self._outputs:
            self._outputs[source] = self.attributor.outputs(self.sets[source].images)
        return self._outputs[source]

    def _last_logits(self, source: str) -> Tensor:
        return self._of(source)[-1].logits

    def _strongest(self, most: int) -> list[tuple[str, str, Tensor, Tensor]]:
        """Return the training samples that raised and lowered the margin most: title, tone, positions and values."""
        score = self.found.with_roles() if self.roles.value else self.found.total
        order = score.argsort(descending=True, stable=True)
        up, down = order[score[order] > 0][:most], order[score[order] < 0].flip(0)[:most]
        name = self.sets["train"].classes[self.found.label]
        return [
            (f"raised the margin of {name}", "same", up, score[up]),
            (f"lowered the margin of {name}", "other", down, score[down]),
        ]

    def _show(self) -> None:
        """Compute the contributions to the current prediction and display them."""
        with self.guarded():
            (source, at), train = self.current, self.sets["train"]
            samples, outputs = self.sets[source], self._of(source)
            label = None if self.explained.value < 0 else self.explained.value
            self.found = self.attributor.attribute(outputs, at, label=label)
            self.back.disabled = len(self.path) == 1
            chosen = [*self._strongest(SHOWN), *self._context()]
            query = torch.tensor([at], device=samples.labels.device)
            data, shape = strip(
                torch.cat([samples.thumbnails(query), *(train.thumbnails(positions) for _, _, positions, _ in chosen)])
            )
            location, probabilities = (samples, at), {"student": self._last_logits(source)[at].softmax(0)}
            displayed = blocks.displayed_classes(probabilities, blocks.label_of(location))
            colour = blocks.colours(samples, displayed, self.view.dark)
            answer = blocks.verdicts(location, probabilities, colour, 1.0)
            column = {"kind": "column", "blocks": [blocks.query_tile(location, colour, shape), answer]}
            bars = blocks.bars(location, probabilities, displayed, colour, 1.0)
            rows, start = [], 1
            for title, tone, positions, values in (one for one in chosen if len(one[2])):
                rows.append(self._tiles(title, tone, positions, values, start, colour, shape))
                start += len(positions)
            self.view.show(
                blocks.crumbs([(self.sets[name], place) for name, place in self.path]),
                {"kind": "row", "blocks": [column, bars, self._terms()]},
                *rows,
                data=data,
            )

    def _context(self) -> list[tuple[str, str, Tensor, Tensor]]:
        """Return the in-context samples with the largest contributions: title, tone, positions and values."""
        found, train, chosen = self.found, self.sets["train"], []
        known = torch.isin(found.rows, train.keys)  # a bank may have rows of other images
        for role, tone, term in (("positive", "same", "PICD"), ("negative", "other", "NICD")):
            if role in found.roles and bool(found.roles[role].any()):
                values = found.roles[role] * known
                top = values.abs().argsort(descending=True, stable=True)[:CONTEXT]
                top = top[values[top] != 0]
                title = f"as {role}s of other training samples ({term})"
                chosen.append((title, tone, train.positions(found.rows[top]), values[top]))
        return chosen

    def _tiles(
        self,
        title: str,
        tone: str,
        positions: Tensor,
        values: Tensor,
        start: int,
        colour: list[str],
        shape: tuple[int, int, int],
    ) -> Block:
        """Return the block with the tiles of some training samples, each with its contribution."""
        train, made = self.sets["train"], []
        for i, (position, value) in enumerate(zip(positions.tolist(), values.tolist(), strict=True)):
            of, where = int(train.labels[position]), [*filter(None, [train.file(position)]), *train.address(position)]
            lines = [train.classes[of] if of >= 0 else "label unknown", f"{value:+.2g}"]
            made.append(
                {
                    "at": start + i,
                    "key": int(train.keys[position]),
                    "colour": colour[of] if of >= 0 else "",
                    "lines": lines,
                    "label": ", ".join([title, *lines, *where]),
                }
            )
        return {
            "kind": "tiles",
            "tone": tone,
            "title": title,
            "tip": TERMS["as in-context samples" if title.startswith("as ") else title.partition(" ")[0]],
            "shape": shape,
            "tiles": made,
            "event": "open",
            "folded": title if len(made) > CONTEXT else "",
        }

    def _terms(self) -> Block:
        """Return the table of what each loss term contributed, and what each role in the in-context terms did."""
        found = self.found
        columns = ["term", "for", "against", "sum", "samples above 0"]
        rows = [_row(name.upper(), one) for name, one in {**found.terms, "all terms": found.total}.items()]
        names = {
            "own": "of which: anchor of NICD",
            "positive": "of which: positives",
            "negative": "of which: negatives",
        }
        rows += [_row(names[role], found.roles[role]) for role in names if role in found.roles]
        method, name = methods.describe(self.attributor.method), self.sets["train"].classes[found.label]
        title = f"contributions to the margin of {name}, {found.margin:+.2f}, by term of {method}"
        sentences = {"tip": TERMS["contributions"], "tips": tips([*columns, *(row[0] for row in rows)])}
        return {"kind": "table", "title": title, "columns": columns, "rows": rows, **sentences}

    def figures(self) -> list[Figure]:
        """Return the query, the samples for its class and against it, and the in-context samples."""
        (source, at), train = self.current, self.sets["train"]
        samples, name = self.sets[source], train.classes[self.found.label]
        lines = [line for line in (*self._strongest(CONTEXT), *self._context()) if len(line[2])]
        height = 1.75 * max(len(lines), 1)
        figure = plt.figure(figsize=(10, 10 * height / 11.6))
        axis = figure.add_axes((0, 0, 1, 1))
        query = samples.thumbnails(torch.tensor([at], device=samples.labels.device))[0].cpu().numpy()
        label = blocks.label_of((samples, at))
        text = f"{samples.classes[label] if label >= 0 else 'label unknown'}\n{', '.join(samples.address(at))}"
        tile(axis, query, 0.4, 0.35, "0.1", f"{text}\nmargin of {name}: {self.found.margin:+.2f}")
        for row, (title, tone, positions, values) in enumerate(lines):
            top, colour = 1.75 * row + 0.35, SAME if tone == "same" else OTHER
            axis.text(2.1, top - 0.1, title, color=colour, fontsize=10, weight="bold")
            for i, (position, value) in enumerate(zip(positions.tolist(), values.tolist(), strict=True)):
                picture = train.thumbnails(torch.tensor([position], device=train.labels.device))[0].cpu().numpy()
                of = int(train.labels[position])
                text = f"{train.classes[of] if of >= 0 else '?'}\n{value:+.2g}"
                tile(axis, picture, 2.1 + 1.18 * i, top, colour, text)
        axis.set(xlim=(0, 11.6), ylim=(height, -0.05), aspect="equal")
        axis.set_axis_off()
        return [figure]


def _row(name: str, values: Tensor) -> list[str]:
    """Return a row of the table: the sum of the positive values, of the negative ones, of all, and how many are > 0."""
    up, down = values.clamp(min=0).sum(), values.clamp(max=0).sum()
    return [name, f"{up:+.2f}", f"{down:+.2f}", f"{up + down:+.2f}", f"{int((values > 0).sum()):,} of {len(values):,}"]
