"""One query and its in-context samples: what is retrieved, what it says together, what it is worth to a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from ickd_lib import losses, memory
from ickd_lib.data import Batch, Images
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Context, Method, describe
from ickd_lib.methods.incontext import ICKD
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError


@dataclass(frozen=True)
class Neighbourhood:
    """What B queries have around them in a bank.

    positives, negatives: the in-context samples, [B, k+] and [B, k-]; masked where a class has fewer.
    weights: of the positives in the aggregate, [B, k+].
    logits: of the "teacher", of the "aggregate" of its positives, and of the "student" where there is one, [B, C] each.
    """

    positives: InContext
    negatives: InContext
    weights: Tensor
    logits: dict[str, Tensor]

    def probabilities(self, temperature: float) -> dict[str, Tensor]:
        """What each of them says at a temperature, [B, C]."""
        return {name: (logits / temperature).softmax(-1) for name, logits in self.logits.items()}

    def first(self, positives: int, negatives: int, *, aggregation_temperature: float | None) -> Neighbourhood:
        """The same with only the nearest so many, weighed at another temperature."""
        near, far = (
            InContext(*(part[:, :k] for part in (of.index, of.similarity, of.logits, of.features, of.mask)))
            for of, k in ((self.positives, positives), (self.negatives, negatives))
        )
        return _weighed(near, far, self.logits["teacher"], self.logits.get("student"), aggregation_temperature)


def neighbourhood(
    bank: MemoryBank,
    teacher: Output,
    labels: Tensor,
    index: Tensor | None = None,
    *,
    student_logits: Tensor | None = None,
    positives: int = 8,
    negatives: int = 8,
    aggregation_temperature: float | None = 0.05,
) -> Neighbourhood:
    """Retrieve the in-context samples of queries and weigh them.

    Args:
        bank: what is searched.
        teacher: its features [B, D] and logits [B, C] of the queries.
        labels: the queries' classes, [B].
        index: their data-set rows, [B], where they are rows of the bank; these are never returned to themselves.
        student_logits: shape [B, C].
        positives, negatives: how many of each; what a small class lacks is masked.
        aggregation_temperature: of the weights; None for equal ones.
    """
    found = bank.retrieve(teacher.features, labels, index, positives=positives, negatives=negatives, allow_missing=True)
    return _weighed(*found, teacher.logits, student_logits, aggregation_temperature)


def _weighed(
    near: InContext, far: InContext, teacher: Tensor, student: Tensor | None, temperature: float | None
) -> Neighbourhood:
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=temperature)
    logits = {"teacher": teacher, "aggregate": losses.aggregate(near.logits, weights)[0]}
    return Neighbourhood(near, far, weights, logits if student is None else {**logits, "student": student})


def require_fit(
    bank: MemoryBank,
    images: Images,
    *,
    queries: Images | None = None,
    student: Network | None = None,
    teacher: Network | None = None,
) -> None:
    """InputError where a bank was not built from these images or by this teacher, or where classes or sizes differ."""
    memory.require_fit(bank, images, teacher)
    if len(images) != len(bank):
        raise InputError(f"the bank holds {len(bank)} images, {images.name} {len(images)}; give all it was built from")
    if queries is not None and queries.classes != images.classes:
        raise InputError(f"queries and images must have the same classes; given {queries.classes} and {images.classes}")
    if queries is not None and queries.size != images.size:
        raise InputError(f"queries have {queries.size} pixels, the bank's images {images.size}; load them alike")
    for who, network in (("student", student), ("teacher", teacher)):
        if network is not None and network.num_classes != len(images.classes):
            raise InputError(
                f"the {who} knows {network.num_classes} classes, {images.name} has {len(images.classes)}; "
                "give one of the same classes"
            )


def in_context(method: Method) -> TypeGuard[ICKD]:
    """Whether a method is in-context distillation alone, and from a teacher's bank, as "ickd"."""
    return isinstance(method, ICKD) and method.source == "teacher" and method.retrieval is not None


def terms(method: Method, around: Neighbourhood, labels: Tensor) -> dict[str, float]:
    """The weighted loss terms that a method would add for these queries, clean, in a step; the mean over them.

    Args:
        method: for which `in_context` holds. Whatever its own number and order of in-context samples, those of `around`
            count.
        around: the queries' neighbourhood, with a student.
        labels: their classes, [B].
    Raises:
        InputError: the method is of another kind, or there is no student.
    """
    if "student" not in around.logits:
        raise InputError("the loss terms are a student's; pass student=…")
    if not in_context(method):
        raise InputError(
            f"{describe(method)} is not in-context distillation alone, from a teacher's bank; name ickd, picd or nicd"
        )
    empty = labels.new_empty(len(labels), 0, dtype=torch.float)
    student, teacher = (Output(around.logits[name], empty) for name in ("student", "teacher"))
    none = torch.full_like(labels, -1)
    batch = Batch(empty, labels, none, none)
    found = method(Context(batch, student, teacher, around.positives, around.negatives))
    return {name: value.item() for name, value in found.items()}


def search(
    text: str,
    images: Images,
    *,
    teacher_logits: Tensor | None = None,
    student_logits: Tensor | None = None,
) -> list[int]:
    """Positions of the images that match all words of a query, in order.

    A word is part of the name of a class or of its superclass; `teacher:word` and `student:word` are of the class that
    these predict, `row:12` a data-set row, `wrong` an image on which the student errs.

    Args:
        text: the query; an empty one matches all.
        images: N images.
        teacher_logits, student_logits: shape [N, C], for words about them.
    Raises:
        InputError: nothing matches; a word cannot be read, or needs logits that are not there.
    """
    known = {"teacher": teacher_logits, "student": student_logits}
    match = torch.ones(len(images), dtype=torch.bool)
    for word in text.lower().split():
        who, colon, rest = word.partition(":")
        if who == "row" and colon:
            if not rest.isdecimal():
                raise InputError(f"{word!r} names no data-set row; write row:12")
            match &= torch.tensor([row == int(rest) for row in images.index.tolist()])
        elif word == "wrong" or (who in known and colon):
            logits = known["student" if word == "wrong" else who]
            if logits is None:
                raise InputError(f"{word!r} needs the {'student' if word == 'wrong' else who}, which is not here")
            said = logits.argmax(1).cpu()
            wrong = said != images.labels.cpu()
            if word == "wrong" and not wrong.any():
                raise InputError("the student makes no mistake on these images")
            match &= wrong if word == "wrong" else _named(rest, images)[said]
        else:
            match &= _named(word, images)[images.labels.cpu()]
    if not match.any():
        raise InputError(
            f"no image matches {text!r}; words are parts of class names, teacher:NAME, student:NAME, row:NUMBER, wrong"
        )
    return match.nonzero().squeeze(1).tolist()


def _named(word: str, images: Images) -> Tensor:
    """Which classes have the word in their name or in their superclass's, [C]; a whole name counts alone."""
    uppers = [images.superclasses[s] for s in images.superclass_of] or [""] * len(images.classes)
    names = [(name.lower(), upper.lower()) for name, upper in zip(images.classes, uppers, strict=True)]
    whole = any(word in pair for pair in names)
    return torch.tensor([word in pair if whole else any(word in name for name in pair) for pair in names])
