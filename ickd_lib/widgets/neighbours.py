"""In-context samples, one query after another."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Any

import ipywidgets as ipw
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import explore, methods, models, plots, runtime
from ickd_lib.data import Images
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Method
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.widgets.view import Block, Explorer, View, strip

MOST = 128  # in-context samples of a kind that can be asked for
DRAWN = 20  # of those, the nearest: four rows
SAMPLE = 200  # queries whose mean loss terms a query is compared with
CRUMBS = 8
CLASSES = 10  # bars shown

Place = tuple[bool, int]  # whether it is an image of the bank, and its position


class NeighbourExplorer(Explorer):
    """Look at the in-context samples of one query after another, and at what they say together.

    Choose a query by number, class, search or at random, or step through the student's mistakes; click a neighbour to
    make it the query. `number`, `of_class`, `search`, `positives`, `negatives` and `aggregation` are the controls,
    `found` is what the query has around it (`explore.Neighbourhood`; the nearest are drawn), and `around` its place: in
    the bank or not, and its position.

    Args:
        bank, images: a memory bank, and all images it was built from, on one device, as everything else.
        student: adds its prediction, its mistakes, and the loss terms of a query.
        queries: images to choose from; by default `images`, each of which is never returned to itself.
        teacher: the bank's; needed where `queries` are other images than the bank's.
        method: in-context distillation, as `methods.create` reads it: its weights are those of the loss terms, its
            numbers of samples and aggregation temperature those at which the sliders start.
        temperature: at which all probabilities are shown.
        precision: of the networks' passes.
    Raises:
        InputError: there are queries of which nothing tells the teacher's features; something is of another size, of
            other classes, of other images or of another teacher; the method is another one.
    """

    def __init__(
        self,
        bank: MemoryBank,
        images: Images,
        *,
        student: Network | None = None,
        queries: Images | None = None,
        teacher: Network | None = None,
        method: str | Method = "ickd",
        temperature: float = 4.0,
        precision: str = "auto",
    ) -> None:
        if queries is not None and teacher is None:
            raise InputError("queries that are not in the bank need a teacher to make their features; pass teacher=…")
        self.queries = images if queries is None else queries
        explore.require_fit(bank, images, queries=queries, student=student, teacher=teacher)
        asked = methods.create(method) if isinstance(method, str) else method
        if not explore.in_context(asked):
            raise InputError(f"method={method!r} is not in-context distillation alone; name ickd, picd or nicd")
        self.method = copy.copy(asked)
        self.method.setup(0, 0, len(images.classes), len(images))
        spec = self.method.retrieval
        assert spec is not None
        if spec.per_class or spec.order != "nearest":
            raise InputError(
                f"method={method!r} does not take the nearest samples, which are shown; leave that choice out"
            )
        self.bank, self.images, self.student, self.teacher = bank, images, student, teacher
        self.in_bank = queries is None  # whether the queries are the bank's own images
        self.temperature, self.precision = temperature, precision
        self.random = runtime.generator("explorer")
        self.path: list[Place] = [(self.in_bank, 0)]
        self.found: explore.Neighbourhood
        self._everyone: dict[str, Tensor] = {}

        count, largest = len(self.queries), int(torch.bincount(images.labels).max())
        style = {"style": {"description_width": "initial"}}
        self.number = ipw.BoundedIntText(0, 0, count - 1, description="query", layout={"width": "130px"}, **style)
        options = [("all", -1), *((name, c) for c, name in enumerate(images.classes))]
        self.of_class = ipw.Dropdown(options=options, description="class", layout={"width": "200px"}, **style)
        self.search = ipw.Text(
            description="search",
            placeholder="class   teacher:class   student:class   wrong   row:12",
            continuous_update=False,
            layout={"width": "400px"},
            **style,
        )
        narrow = {"layout": {"width": "auto"}}
        self.back = ipw.Button(description="back", disabled=True, **narrow)
        self.following = ipw.Button(description="next", **narrow)
        self.surprise = ipw.Button(description="random", **narrow)
        self.mistake = ipw.Button(description="next mistake", disabled=student is None, **narrow)
        most = max(1, min(MOST, largest - 1)), max(1, min(MOST, len(images) - largest))
        self.positives, self.negatives = (
            ipw.IntSlider(min(asked or 8, end), 1, end, description=name, **style)
            for asked, end, name in zip(
                (spec.positives, spec.negatives), most, ("positives k⁺", "negatives k⁻"), strict=True
            )
        )
        tau = self.method.aggregation_temperature or 1.0  # without one all weights are equal, and stay so
        self.aggregation = ipw.FloatLogSlider(
            tau,
            min=min(-3, math.log10(tau)),
            max=max(0, math.log10(tau)),
            step=0.05,
            disabled=self.method.aggregation_temperature is None,
            description="aggregation τₐ",
            readout_format=".3f",
            **style,
        )
        super().__init__(
            [
                ipw.HBox([self.number, self.of_class, self.search], layout={"flex_flow": "row wrap"}),
                ipw.HBox([self.back, self.following, self.surprise, self.mistake], layout={"flex_flow": "row wrap"}),
                ipw.HBox([self.positives, self.negatives, self.aggregation], layout={"flex_flow": "row wrap"}),
            ],
            View(self._clicked),
        )
        self.number.observe(self._numbered, "value")
        for choice in (self.of_class, self.search):
            choice.observe(lambda _: self._go_to(0), "value")
        for slider in (self.positives, self.negatives, self.aggregation):
            slider.observe(lambda _: self._show(), "value")
        self.following.on_click(lambda _: self._go_to(1))
        self.surprise.on_click(lambda _: self._go_to(None))
        self.mistake.on_click(lambda _: self._go_to(1, "wrong"))
        self.back.on_click(lambda _: self._visit(self.path[:-1] or self.path))
        self._show()

    @property
    def around(self) -> Place:
        return self.path[-1]

    # ------------------------------------------------------------------------------------------- choosing

    def _numbered(self, _: Any) -> None:
        if self.number.value != self.path[0][1]:
            self._visit([(self.in_bank, self.number.value)])

    def _go_to(self, step: int | None, also: str = "") -> None:
        """Go to the next of the images that class, search and `also` leave (step 1), the first (0), or any (None)."""
        with self.guarded():
            left = self._left(f"{self.search.value} {also}".strip())
            here = self.path[0][1]
            if step is None:
                at = left[int(torch.randint(len(left), (), generator=self.random))]
            else:
                at = next((i for i in left if i > here), left[0]) if step else left[0]
            self._visit([(self.in_bank, at)])
            if len(left) < len(self.queries):
                self.say(f"number {left.index(at) + 1} of {len(left):,} that match")

    def _left(self, text: str) -> list[int]:
        """The positions that match a search and the chosen class."""
        text = text.lower()
        said: dict[str, Tensor | None] = {"teacher_logits": None, "student_logits": None}
        if "student:" in text or "wrong" in text:
            said["student_logits"] = self._all("student")
        if "teacher:" in text:
            said["teacher_logits"] = self._all("teacher")
        left = explore.search(text, self.queries, **said)
        if self.of_class.value >= 0:
            labels = self.queries.labels.tolist()
            left = [i for i in left if labels[i] == self.of_class.value]
        if not left:
            raise InputError(
                f"no image of class {self.of_class.label!r} matches {text!r}; choose another class, or all"
            )
        return left

    def _all(self, who: str) -> Tensor | None:
        """What a network says of all queries, found once: [N, C]."""
        if who == "teacher" and self.in_bank:
            return self.bank.logits[self.bank.rows(self.images.index)]
        network = getattr(self, who)
        if network is not None and who not in self._everyone:
            self.say(f"asking the {who} about {len(self.queries):,} images, once …")
            self._everyone[who] = models.predict(network, self.queries, precision=self.precision).logits
        return self._everyone.get(who)

    def _visit(self, path: list[Place]) -> None:
        """Show the last place of a path."""
        self.path = path
        self.number.value = path[0][1]  # its observer finds nothing to do
        self._show()

    def _clicked(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "open" and (place := (True, int(self._position[int(key)]))) != self.around:
                self._visit([*self.path, place])
            elif event == "crumb":
                self._visit(self.path[: int(key) + 1])
            elif event == "theme" or (event == "ready" and self.view.dark):
                self._show()

    # ------------------------------------------------------------------------------------------- looking

    def _show(self) -> None:
        with self.guarded():
            in_bank, at = self.around
            where = torch.tensor([at], device=self.images.labels.device)
            self.found = self._neighbourhood(in_bank, where, self.positives.value, self.negatives.value)
            for name, logits in self.found.logits.items():
                if not logits.isfinite().all():
                    raise InputError(f"the {name} says nan or infinity of this image; look at its training")
            self._likely = self._most_likely()
            self.back.disabled = len(self.path) == 1
            query = self._images(in_bank)
            shown = (self._rows(self.found.positives)[:DRAWN], self._rows(self.found.negatives)[:DRAWN])
            pixels = torch.cat([query.images[where], *(self.images.images[rows] for rows in shown)])
            data, shape = strip(pixels)
            self.view.show(
                {"kind": "crumbs", "title": "path", "items": self._crumbs()},
                {"kind": "row", "blocks": self._tiles(query, at, shape, *shown)},
                {"kind": "row", "blocks": [self._bars(query, at), *self._terms(query, at)]},
                data=data,
            )

    def _images(self, in_bank: bool) -> Images:
        return self.images if in_bank else self.queries

    def _neighbourhood(self, in_bank: bool, at: Tensor, positives: int, negatives: int) -> explore.Neighbourhood:
        images = self._images(in_bank)
        some = images.subset(at)
        if in_bank:
            rows = self.bank.rows(some.index)
            theirs = Output(self.bank.logits[rows], self.bank.features[rows])
        else:
            assert self.teacher is not None
            theirs = models.predict(self.teacher, some, precision=self.precision)
        ours = models.predict(self.student, some, precision=self.precision).logits if self.student else None
        return explore.neighbourhood(
            self.bank,
            theirs,
            some.labels,
            some.index if in_bank else None,
            student_logits=ours,
            positives=positives,
            negatives=negatives,
            aggregation_temperature=self._tau,
        )

    def _rows(self, found: InContext) -> Tensor:
        """The positions among the bank's images of one query's in-context samples."""
        index = found.index[0][found.mask[0]]
        return self._position[index]

    @cached_property
    def _position(self) -> Tensor:
        """Where each data-set row stands among the bank's images."""
        index = self.images.index
        position = torch.full((int(index.max()) + 1,), -1, device=index.device)
        position[index] = torch.arange(len(index), device=index.device)
        return position

    def _crumbs(self) -> list[Block]:
        items = []
        for i, (in_bank, at) in enumerate(self.path):
            images = self._images(in_bank)
            name = images.name.partition("/")[2] or images.name
            items.append(
                {"text": f"{name} row {int(images.index[at])}, {images.classes[int(images.labels[at])]}", "key": i}
            )
        return items[-CRUMBS:]

    def _most_likely(self) -> list[int]:
        """The query's class, and those that teacher, aggregate or student give most to."""
        in_bank, at = self.around
        peak = torch.stack([p[0] for p in self.found.probabilities(self.temperature).values()]).amax(0)
        peak[self._images(in_bank).labels[at]] = torch.inf
        return sorted(peak.argsort(descending=True, stable=True)[:CLASSES].tolist())

    def _colours(self) -> list[str]:
        """The colour of each class, as figures have them; of many without superclasses, the likely ones have one."""
        images = self.images
        few = len(images.classes) <= 10 or images.superclasses
        _, group, looks = plots.class_colours(
            images.classes, images.superclasses, images.superclass_of, () if few else self._likely, self.view.dark
        )
        return [to_hex(looks[g]["color"]) for g in group]

    @property
    def _tau(self) -> float | None:
        return None if self.aggregation.disabled else self.aggregation.value

    def _tiles(self, query: Images, at: int, shape: tuple[int, ...], near: Tensor, far: Tensor) -> list[Block]:
        label = int(query.labels[at])
        colours = self._colours()
        first = [query.classes[label], f"row {int(query.index[at])}"]
        tile = {"at": 0, "key": 0, "colour": colours[label], "lines": first, "label": f"query: {', '.join(first)}"}
        blocks: list[Block] = [{"kind": "tiles", "tone": "query", "title": "query", "shape": shape, "tiles": [tile]}]
        weights = self.found.weights[0].tolist()
        for tone, rows, found in (("same", near, self.found.positives), ("other", far, self.found.negatives)):
            tiles = []
            for i, (row, cosine) in enumerate(zip(rows.tolist(), found.similarity[0].tolist(), strict=False)):
                of = int(self.images.labels[row])
                lines = [self.images.classes[of], f"cos {cosine:.3f}"] + (
                    [f"w {weights[i]:.0%}"] if tone == "same" else []
                )
                index = int(self.images.index[row])
                said = f"{'positive' if tone == 'same' else 'negative'} {i + 1}: {', '.join(lines)}, row {index}"
                before = 1 + (len(near) if tone == "other" else 0)
                tiles.append({"at": before + i, "key": index, "colour": colours[of], "lines": lines, "label": said})
            asked, taken = found.mask.shape[1], int(found.mask.sum())
            title = f"{taken} nearest of {'its class: cosine, weight w' if tone == 'same' else 'other classes'}"
            title += f" ({asked} asked for)" if taken < asked else ""
            title += f", {len(rows)} drawn" if len(rows) < taken else ""
            blocks.append(
                {"kind": "tiles", "tone": tone, "title": title, "shape": shape, "tiles": tiles, "event": "open"}
            )
        return blocks

    def _bars(self, query: Images, at: int) -> Block:
        label = int(query.labels[at])
        said = {name: p[0] for name, p in self.found.probabilities(self.temperature).items()}
        colours = self._colours()
        rows = [
            {
                "name": query.classes[c],
                "colour": colours[c],
                "marked": c == label,
                "values": [float(p[c]) for p in said.values()],
            }
            for c in self._likely
        ]
        columns = [f"{name} says {query.classes[int(p.argmax())]}" for name, p in said.items()]
        return {
            "kind": "bars",
            "title": f"probabilities at temperature {self.temperature:g}",
            "columns": columns,
            "rows": rows,
        }

    @cached_property
    def _sample(self) -> tuple[explore.Neighbourhood, Tensor]:
        """Some of the queries, to compare a query with, and their labels."""
        count = len(self.queries)
        at = torch.randperm(count, generator=runtime.generator("sample"))[:SAMPLE].to(self.queries.labels.device)
        found = self._neighbourhood(self.in_bank, at, self.positives.max, self.negatives.max)
        return found, self.queries.labels[at]

    def terms(self) -> dict[str, tuple[float, float]]:
        """The weighted loss terms of the query shown, and their means over a sample of the queries."""
        in_bank, at = self.around
        label = self._images(in_bank).labels[at : at + 1]
        self.method.aggregation_temperature = tau = self._tau
        every, labels = self._sample
        every = every.first(self.positives.value, self.negatives.value, aggregation_temperature=tau)
        ours, mean = explore.terms(self.method, self.found, label), explore.terms(self.method, every, labels)
        return {name: (value, mean[name]) for name, value in ours.items()}

    def _terms(self, query: Images, at: int) -> list[Block]:
        if self.student is None:
            return []
        terms = self.terms()
        whole = sum(value for value, _ in terms.values())
        rows = [
            [
                name.upper(),
                f"{value:.3f}",
                f"{value / whole:.0%}" if whole else "–",
                f"{value / mean:.2f} ×" if mean > 0 else "–",
            ]
            for name, (value, mean) in terms.items()
        ]
        count = len(self._sample[1])
        columns = ["term, weighted", "of this query", "share of its loss", f"of the mean of {count} queries"]
        samples = f"{self.positives.value} positives, {self.negatives.value} negatives"
        weighed = f"τₐ {self._tau:.2g}" if self._tau else "equal weights"
        title = f"loss terms of {methods.describe(self.method)}, with {samples}, {weighed}"
        return [{"kind": "table", "title": title, "columns": columns, "rows": rows}]

    def figures(self) -> list[Figure]:
        in_bank, at = self.around
        query = self._images(in_bank)
        near, far = self.found.positives, self.found.negatives
        said = {name: p[0] for name, p in self.found.probabilities(self.temperature).items()}
        row, label = int(query.index[at]), int(query.labels[at])
        title = f"Probabilities at temperature {self.temperature:g}"
        return [
            plots.neighbours(query, row, self.images, near, far, weights=self.found.weights, most=DRAWN),
            plots.distributions(said, query.classes, label=label, title=title),
        ]
