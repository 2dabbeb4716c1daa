"""An explorer of queries and their in-context samples."""

from __future__ import annotations

import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import explore, methods, plots, runtime
from ickd_lib.data import Images
from ickd_lib.explore import SampleSet
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Method
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task
from ickd_lib.tasks.pictures import WHOLE
from ickd_lib.widgets import neighbour_blocks as blocks
from ickd_lib.widgets import neighbour_gallery
from ickd_lib.widgets.neighbour_controls import NeighbourControls
from ickd_lib.widgets.rerun import resume
from ickd_lib.widgets.view import Block, Explorer, View, strip

SHOWN = 20  # the most similar positives and negatives are displayed
SAMPLE = 200  # number of queries in the mean loss terms, with which those of one query are compared

# A query on the path: the set of samples that contains it, "bank", "queries" or "own", and its position there.
PathEntry = tuple[str, int]


class NeighbourExplorer(NeighbourControls, Explorer):
    """Display one query after another with its in-context samples, their aggregate and the resulting predictions.

    Where a sample is a region or a box of an image, samples are displayed as crops, and the query also in its image.

    A query is chosen by number, class or search text, at random, or among the student's mistakes. A click on an
    in-context sample makes it the query.

    Attributes:
        number, of_class, search, positives, negatives, aggregation, scale: the controls.
        found: the neighbourhood of the current query (`explore.Neighbourhood`). Only its nearest samples are displayed.
        current: the current query: "bank", "queries" or "own" for the set that contains it, and its position there.

    Args:
        bank: a memory bank.
        images: all images that the bank was built from, on the bank's device: `Images`, or `DenseImages` with a task
            for regions or boxes.
        student: a network. If given, its predictions and mistakes and the loss terms of a query are displayed, too.
        queries: images to choose queries from. By default these are `images`, and no query is retrieved as its own
            in-context sample.
        teacher: the teacher by which the bank was built; needed for `queries` outside the bank.
        method: an in-context distillation method, as `methods.create` takes it. The loss terms are computed with its
            weights. The controls start at its numbers of in-context samples and its aggregation temperature.
        temperature: temperature of the displayed probabilities at first; a control has 1, the method's, and this one.
        precision: numerical precision of the networks: "auto", "fp32" or "bf16".
        task: which samples an image has; classification by default.
    Raises:
        InputError: there are queries outside the bank but no teacher; images, classes, sizes or teacher do not fit the
            bank or the task; or the method is not in-context distillation with the nearest samples of a teacher's bank.
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
        temperature: float = 1.0,
        precision: str = "auto",
        task: Task | None = None,
    ) -> None:
        task = task or Classification()
        if queries is not None and teacher is None:
            raise InputError("queries outside the bank need a teacher that computes their features; pass teacher=…")
        explore.require_fit(bank, images, queries=queries, student=student, teacher=teacher, task=task)
        created = methods.create(method) if isinstance(method, str) else method
        if not explore.in_context(created):
            raise InputError(
                f"method={method!r} is not in-context distillation from a teacher's bank alone; "
                "choose ickd, picd or nicd"
            )
        self.method = copy.copy(created)
        self.method.setup(0, 0, len(bank.classes), len(bank))
        retrieval = self.method.retrieval
        assert retrieval is not None
        if retrieval.per_class or retrieval.order != "nearest":
            raise InputError(
                f"method={method!r} does not use the nearest samples, and the explorer displays only these; "
                "leave order and per_class at their defaults"
            )
        self.bank, self.images, self.student, self.teacher = bank, images, student, teacher
        self.source = "bank" if queries is None else "queries"  # the set that queries are chosen from
        self.queries = images if queries is None else queries
        self.bank_samples = SampleSet(images, task).labelled()
        self.query_samples = self.bank_samples if queries is None else SampleSet(queries, task).labelled()
        self.precision = precision
        self.generator = runtime.generator("explorer")
        self.sets = {"bank": self.bank_samples, self.source: self.query_samples}
        self.path: list[PathEntry] = [(self.source, 0)]
        self.found: explore.Neighbourhood
        self._predictions: dict[str, Tensor] = {}  # each network's logits of all queries, computed for the first search

        controls = self._make_controls(
            self.bank_samples,
            self.query_samples,
            positives=retrieval.positives,
            negatives=retrieval.negatives,
            tau=self.method.aggregation_temperature,
            temperature=temperature,
            training_temperature=self.method.temperature,
            student=student is not None,
            own=teacher is not None and isinstance(task, Classification),
        )
        super().__init__(controls, View(self._on_event))
        names = ("search", "of_class", "positives", "negatives", "aggregation", "scale")
        earlier = resume(self, names, [self.bank_samples, self.query_samples])
        if earlier is not None and "own" not in earlier.sets:
            self.path = earlier.path
            self.number.value = earlier.number.value
        self.number.observe(self._on_number, "value")
        for choice in (self.of_class, self.search):
            choice.observe(lambda _: self._go_to(0), "value")
        for control in (self.positives, self.negatives, self.aggregation, self.scale):
            control.observe(lambda _: self._show(), "value")
        self.following.on_click(lambda _: self._go_to(1))
        self.random.on_click(lambda _: self._go_to(None))
        self.mistake.on_click(lambda _: self._go_to(1, "wrong"))
        self.upload.observe(self._on_upload, "value")
        self.file.observe(self._on_file, "value")
        self.back.on_click(lambda _: self._visit(self.path[:-1] or self.path))
        self._show()

    @property
    def current(self) -> PathEntry:
        """The current query, the last entry of the path."""
        return self.path[-1]

    @property
    def temperature(self) -> float:
        """Temperature of the displayed probabilities."""
        return self.scale.value

    # ------------------------------------------------------------------------------------------- choosing a query

    def _on_number(self, change: dict[str, Any]) -> None:
        """Display the query with this key, or the next one in the direction of the change."""
        new = int(change["new"])
        if new == self._number():
            return
        keys = self.query_samples.keys
        at = explore.next_key(keys, new, change["old"])
        with self.guarded():
            self._visit([(self.source, at)])
            if (key := int(keys[at])) != new:
                what = self.number.description.rpartition(" ")[2]
                self.show_message(f"{self.query_samples.name} has no {what} {new}; this is {key}")

    def _go_to(self, step: int | None, also: str = "") -> None:
        """Display a query that matches the chosen class, the search text and `also`.

        Args:
            step: 0 for the first match, 1 for the first match after the current query, None for a random one.
            also: further words that are added to the search text.
        """
        with self.guarded():
            matches = self._matches(f"{self.search.value} {also}".strip())
            here = self.path[0][1]
            if step is None:
                at = matches[int(torch.randint(len(matches), (), generator=self.generator))]
            else:
                at = next((i for i in matches if i > here), matches[0]) if step else matches[0]
            self._visit([(self.source, at)])
            if len(matches) < len(self.query_samples):
                self.show_message(f"match {matches.index(at) + 1} of {len(matches):,}")

    def _matches(self, text: str) -> list[int]:
        """Return the positions of the queries that match a search text and the chosen class."""
        samples = self.query_samples
        logits = {role: partial(self._logits_of_all, role) for role in ("teacher", "student") if self._has(role)}
        matches = explore.search(text, samples, logits)
        if self.of_class.value >= 0:
            labels = samples.labels.tolist()
            matches = [i for i in matches if labels[i] == self.of_class.value]
        if not matches:
            raise InputError(
                f"no {samples.task.sample[0]} of class {self.of_class.label!r} matches {text!r}; choose another class, "
                "or all"
            )
        return matches

    def _has(self, role: str) -> bool:
        return getattr(self, role) is not None or (role == "teacher" and self.source == "bank")

    def _logits_of_all(self, role: str) -> Tensor:
        """Return the logits of the "teacher" or the "student" for all queries, [N, C]."""
        samples = self.query_samples
        if role == "teacher" and self.source == "bank":
            return samples.stored_outputs(self.bank).logits
        if role not in self._predictions:
            self.show_message(
                f"Computing the {role}'s predictions for {len(samples):,} {samples.task.sample[1]}, once …"
            )
            network = getattr(self, role)
            self._predictions[role] = samples.outputs(network, precision=self.precision).logits
        return self._predictions[role]

    def open_image(self, image: str | Path | bytes, *, name: str = "") -> None:
        """Make an image of one's own the query. Errors are displayed.

        Its label is unknown, so its positives are of the class that the teacher predicts, and it has no loss terms.

        Args:
            image: path of an image file, or its content.
            name: name of the file, where `image` is its content.
        """
        with self.guarded():
            if self.upload.disabled:
                raise InputError("an image of your own needs the teacher and whole images as samples; pass teacher=…")
            self.sets["own"] = explore.own_image(image, self.images, name=name)
            self._visit([("own", 0)])

    def _on_file(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.open_image(change["new"])

    def _on_upload(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.open_image(bytes(change["new"][0]["content"]), name=change["new"][0]["name"])

    def _visit(self, path: list[PathEntry]) -> None:
        """Make the last entry of a path the current query."""
        self.path = path
        if (number := self._number()) is not None:
            self.number.value = number  # the observer does nothing
        self._show()

    def _number(self) -> int | None:
        """Return the key of the last query of the path that belongs to `queries`; None if there is none."""
        return next((int(self.query_samples.keys[at]) for name, at in self.path[::-1] if name == self.source), None)

    def _on_event(self, event: str, key: str) -> None:
        with self.guarded():
            if event == "open":
                position = self.bank_samples.positions(torch.tensor(int(key), device=self.bank_samples.keys.device))
                if (entry := ("bank", int(position))) != self.current:  # a double click opens the sample once
                    self._visit([*self.path, entry])
            elif event == "crumb":
                self._visit(self.path[: int(key) + 1])
            elif event == "theme" or (event == "ready" and self.view.dark):
                self._show()

    # ------------------------------------------------------------------------------------------- displaying it

    def _show(self) -> None:
        """Retrieve the in-context samples of the current query and display them."""
        with self.guarded():
            shown, data = self._content(SHOWN, self.view.dark)
            self.back.disabled = len(self.path) == 1
            path = blocks.crumbs([(self.sets[source], at) for source, at in self.path])
            self.view.show(path, *shown, data=data)

    def _content(self, most: int, dark: bool | None) -> tuple[list[Block], bytes]:
        """Retrieve the in-context samples of the current query, and return the blocks below the path, and their data.

        Args:
            most: largest number of positives and of negatives among the blocks.
            dark: as in `neighbour_blocks.colours`.
        """
        source, at = self.current
        samples = self.sets[source]
        query = torch.tensor([at], device=samples.labels.device)
        self.found = self._neighbourhood(source, query, self.positives.value, self.negatives.value)
        for name, logits in self.found.logits.items():
            if not logits.isfinite().all():
                raise InputError(f"some logits of the {name} are nan or infinite; check the network's training")
        shown = (self._positions(self.found.positives)[:most], self._positions(self.found.negatives)[:most])
        thumbnails = [samples.thumbnails(query), *(self.bank_samples.thumbnails(at) for at in shown)]
        data, shape = strip(torch.cat(thumbnails))
        location, probabilities = (samples, at), self._probabilities()
        displayed = blocks.displayed_classes(probabilities, blocks.label_of(location))
        colour = blocks.colours(samples, displayed, dark)
        pictures = [blocks.query_tile(location, colour, shape)]
        image = samples.whole_image(at)
        if image is not None:
            more, size = strip(image[None], longest=WHOLE)
            pictures.append(blocks.whole_image(location, size, len(data)))
            data += more
        answer = blocks.verdicts(location, probabilities, colour, self.temperature)
        query_column = {"kind": "column", "blocks": [{"kind": "row", "blocks": pictures}, answer]}
        bars = blocks.bars(location, probabilities, displayed, colour, self.temperature)
        around = blocks.in_context_tiles(self.bank_samples, self.found, *shown, colour, shape, self._class_of_positives)
        return [{"kind": "row", "blocks": [query_column, bars, *self._term_table()]}, *around], data

    def _neighbourhood(self, source: str, at: Tensor, positives: int, negatives: int) -> explore.Neighbourhood:
        """Return the neighbourhood of the samples at the positions `at`, shape [B]."""
        samples, in_bank = self.sets[source], source == "bank"
        if in_bank:
            teacher = samples.stored_outputs(self.bank, at)
        else:
            assert self.teacher is not None
            teacher = samples.outputs(self.teacher, at, precision=self.precision)
        student = samples.outputs(self.student, at, precision=self.precision).logits if self.student else None
        labels = samples.labels[at]
        return explore.neighbourhood(
            self.bank,
            teacher,
            torch.where(labels < 0, teacher.logits.argmax(1), labels),
            samples.keys[at] if in_bank else None,
            student_logits=student,
            positives=positives,
            negatives=negatives,
            aggregation_temperature=self._tau,
        )

    @property
    def _class_of_positives(self) -> str:
        source, at = self.current
        return "its class" if int(self.sets[source].labels[at]) >= 0 else "the class that the teacher predicts"

    def _positions(self, retrieved: InContext) -> Tensor:
        """Return the positions of one query's in-context samples among the bank's samples."""
        return self.bank_samples.positions(retrieved.index[0][retrieved.mask[0]])

    def _probabilities(self) -> dict[str, Tensor]:
        """Return the probabilities that each predictor outputs for the current query, [C] each."""
        return {name: p[0] for name, p in self.found.probabilities(self.temperature).items()}

    @property
    def _tau(self) -> float | None:
        return None if self.aggregation.disabled else self.aggregation.value

    # ------------------------------------------------------------------------------------------- loss terms

    @cached_property
    def _reference(self) -> tuple[explore.Neighbourhood, Tensor]:
        """Neighbourhood and classes of randomly drawn queries, with which the current query is compared."""
        labels = self.query_samples.labels
        at = torch.randperm(len(labels), generator=runtime.generator("sample"))[:SAMPLE].to(labels.device)
        return self._neighbourhood(self.source, at, self.positives.max, self.negatives.max), labels[at]

    def terms(self) -> dict[str, tuple[float, float]]:
        """Return each weighted loss term of the current query, and its mean over randomly drawn queries."""
        source, at = self.current
        label = self.sets[source].labels[at : at + 1]
        self.method.aggregation_temperature = tau = self._tau
        reference, labels = self._reference
        reference = reference.first(self.positives.value, self.negatives.value, aggregation_temperature=tau)
        own, mean = explore.terms(self.method, self.found, label), explore.terms(self.method, reference, labels)
        return {name: (value, mean[name]) for name, value in own.items()}

    def _term_table(self) -> list[Block]:
        source, at = self.current
        if self.student is None or int(self.sets[source].labels[at]) < 0:
            return []
        weights = f"τₐ = {self._tau:.2g}" if self._tau else "equal weights"
        samples = f"{self.positives.value} positives, {self.negatives.value} negatives"
        title = f"loss terms of {methods.describe(self.method)} with {samples}, {weights}"
        return [blocks.term_table(self.terms(), len(self._reference[1]), title)]

    def save(self, path: str | Path, *, queries: int = 12, shown: int = 8) -> None:
        """Write a gallery: one HTML file that needs neither a kernel nor a network connection.

        It contains the current query and randomly drawn ones, of which half are errors of the student (or of the
        teacher, where there is none), and the nearest positive and negative of each as further queries.

        Args:
            path: the file, which ends with .html.
            queries: number of drawn queries.
            shown: largest number of positives and of negatives of each query.
        Raises:
            InputError: the path does not end with .html, or its folder does not exist.
        """
        neighbour_gallery.save(self, path, queries, shown)

    def figures(self) -> list[Figure]:
        """Return the current query with its in-context samples, and the predicted probabilities."""
        source, at = self.current
        samples = self.sets[source]
        near, far = self.found.positives, self.found.negatives
        shown = torch.cat([self._positions(near)[:SHOWN], self._positions(far)[:SHOWN]])
        query, key = samples.pictured(torch.tensor([at])), int(samples.keys[at])
        look: dict[str, Any] = {"name": ", ".join(samples.address(at)), "image": samples.whole_image(at), "most": SHOWN}
        title, label = f"Probabilities at temperature {self.temperature:g}", int(samples.labels[at])
        return [
            plots.neighbours(
                query, key, self.bank_samples.pictured(shown), near, far, weights=self.found.weights, **look
            ),
            plots.distributions(
                self._probabilities(), samples.classes, label=label if label >= 0 else None, title=title
            ),
        ]
