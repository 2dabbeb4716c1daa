"""Interactive shells over plots: choose, look, choose again."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from ickd_lib import losses, models, plots, runtime
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import InputError


class Explorer(ipw.VBox):
    """Look at the in-context samples of one query after another, and at what they say together.

    `number`, `k` and `aggregation` are its controls; `message` shows what went wrong.

    Args:
        bank, images: a memory bank, and the images it was built from, on one device.
        queries: images to choose from; by default `images`, each of which is never returned to itself.
        student: adds its prediction, and the button that finds its next mistake.
        teacher: needed where `queries` are other images than the bank's.
        negatives: how many are shown.
        temperature: at which all probabilities are shown.
    Raises:
        InputError: there are queries of which nothing tells the teacher's features.
    """

    def __init__(
        self,
        bank: MemoryBank,
        images: Images,
        *,
        queries: Images | None = None,
        student: Network | None = None,
        teacher: Network | None = None,
        negatives: int = 8,
        temperature: float = 4.0,
        precision: str = "auto",
    ) -> None:
        if queries is not None and teacher is None:
            raise InputError("queries that are not in the bank need a teacher to make their features; pass teacher=…")
        self.bank, self.images, self.queries = bank, images, queries or images
        self.negatives, self.temperature = negatives, temperature
        self.index = None if queries else images.index  # the bank leaves out these rows themselves
        rows = bank.rows(images.index)
        seen = models.predict(teacher, self.queries, precision=precision) if teacher else None
        self.features = seen.features if seen else bank.features[rows]
        self.teacher = seen.logits if seen else bank.logits[rows]
        self.student = models.predict(student, self.queries, precision=precision).logits if student else None
        self.random = runtime.generator("explorer")

        wide = {"description_width": "initial"}
        self.number = ipw.BoundedIntText(0, 0, len(self.queries) - 1, description="query number", style=wide)
        self.k = ipw.IntSlider(8, 1, 32, description="positives k", continuous_update=False, style=wide)
        self.aggregation = ipw.FloatLogSlider(
            0.05, min=-3, max=0, step=0.1, description="aggregation τₐ", continuous_update=False, style=wide
        )
        self.surprise = ipw.Button(description="random query")
        self.mistake = ipw.Button(
            description="next mistake of the student", disabled=student is None, layout={"width": "auto"}
        )
        self.message = ipw.HTML()
        self.pictures = [ipw.Image(format="png", layout={"max_width": "100%"}) for _ in range(2)]
        self.surprise.on_click(self._random)
        self.mistake.on_click(self._next_mistake)
        for control in (self.number, self.k, self.aggregation):
            control.observe(self.show, "value")
        choices = ipw.HBox([self.number, self.surprise, self.mistake])
        super().__init__([choices, ipw.HBox([self.k, self.aggregation]), self.message, *self.pictures])
        self.show()

    def _random(self, _: Any) -> None:
        self.number.value = int(torch.randint(len(self.queries), (), generator=self.random))

    def _next_mistake(self, _: Any) -> None:
        assert self.student is not None
        wrong = (self.student.argmax(1) != self.queries.labels).nonzero().squeeze(1).tolist()
        if wrong:
            self.number.value = next((i for i in wrong if i > self.number.value), wrong[0])
        else:
            self._say("the student makes no mistake on these images")

    def _say(self, text: str) -> None:
        self.message.value = f"<b>{html.escape(text)}</b>"

    def show(self, _: Any = None) -> None:
        """Draw what the controls ask for; what goes wrong is shown above the last pictures."""
        self.message.value = ""
        others = set(plt.get_fignums())
        try:
            for picture, figure in zip(self.pictures, self._figures(), strict=True):
                picture.value = _png(figure)
        except Exception as error:  # a widget's callback has nobody else to tell
            self._say(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
        finally:
            for number in set(plt.get_fignums()) - others:
                plt.close(number)

    def _figures(self) -> Iterator[Figure]:
        i = self.number.value
        one = slice(i, i + 1)
        positives, negatives = self.bank.retrieve(
            self.features[one],
            self.queries.labels[one],
            None if self.index is None else self.index[one],
            positives=self.k.value,
            negatives=self.negatives,
        )
        weights = losses.aggregation_weights(positives.similarity, positives.mask, temperature=self.aggregation.value)
        logits = {"teacher": self.teacher[i], "aggregate": losses.aggregate(positives.logits, weights)[0][0]}
        if self.student is not None:
            logits["student"] = self.student[i]
        said = {name: (z / self.temperature).softmax(0) for name, z in logits.items()}
        classes, label = self.queries.classes, int(self.queries.labels[i])
        row = int(self.queries.index[i])
        yield plots.neighbours(self.queries, row, self.images, positives, negatives, weights=weights, most=32)
        title = f"Probabilities at temperature {self.temperature:g}"
        yield plots.distributions(said, classes, label=label, title=title)


explore = Explorer  # what a notebook calls


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
