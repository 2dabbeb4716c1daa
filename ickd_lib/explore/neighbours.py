"""Queries and their in-context samples: retrieval, the aggregate, and the loss terms of a method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from ickd_lib import losses, memory
from ickd_lib.data import Batch, Images, LabelledImages
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Context, Method, describe
from ickd_lib.methods.incontext import ICKD
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Samples, Task


@dataclass(frozen=True)
class Neighbourhood:
    """The in-context samples of B queries, and the logits of teacher, aggregate and student for these queries.

    Args:
        positives: in-context samples of each query's own class, [B, k+]; masked where a class has fewer.
        negatives: in-context samples of other classes, [B, k-]; masked where there are fewer.
        weights: weight of each positive in the aggregate, [B, k+].
        logits: [B, C] each, under the keys "teacher", "aggregate" (the weighted mean of the positives' logits) and,
            where there is a student, "student".
    """

    positives: InContext
    negatives: InContext
    weights: Tensor
    logits: dict[str, Tensor]

    def __repr__(self) -> str:
        positives, negatives = (list(one.index.shape) for one in (self.positives, self.negatives))
        return f"Neighbourhood(positives {positives}, negatives {negatives}, logits of {', '.join(self.logits)})"

    def probabilities(self, temperature: float) -> dict[str, Tensor]:
        """Return softmax(logits / temperature) for each entry of `logits`, [B, C]."""
        return {name: (logits / temperature).softmax(-1) for name, logits in self.logits.items()}

    def first(self, positives: int, negatives: int, *, aggregation_temperature: float | None) -> Neighbourhood:
        """Keep the most similar in-context samples and compute their weights anew.

        Args:
            positives, negatives: numbers of positives and negatives that are kept.
            aggregation_temperature: temperature of the new weights; None for equal weights.
        """
        near, far = self.positives.first(positives), self.negatives.first(negatives)
        return _weighted(near, far, self.logits["teacher"], self.logits.get("student"), aggregation_temperature)


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
    """Retrieve the in-context samples of B queries and compute the weights of the positives.

    Args:
        bank: the memory bank that is searched.
        teacher: the teacher's features [B, D] and logits [B, C] of the queries.
        labels: class of each query, [B].
        index: key of each query in the bank, [B], so that no query is retrieved as its own in-context sample. None
            where the queries are not in the bank.
        student_logits: the student's logits of the queries, [B, C].
        positives, negatives: numbers of positives and negatives to retrieve. Where the bank has fewer, the rest is
            masked.
        aggregation_temperature: temperature of the weights; None for equal weights.
    """
    found = bank.retrieve(teacher.features, labels, index, positives=positives, negatives=negatives, allow_missing=True)
    return _weighted(*found, teacher.logits, student_logits, aggregation_temperature)


def _weighted(
    near: InContext, far: InContext, teacher: Tensor, student: Tensor | None, temperature: float | None
) -> Neighbourhood:
    near = replace(near, own=teacher)  # a query without augmentation, as its row in the bank
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
    task: Task | None = None,
) -> None:
    """Check that a bank, its images, queries and networks can be explored together.

    Args:
        bank: a memory bank.
        images: all images that the bank was built from.
        queries: other images, for which in-context samples are retrieved.
        student, teacher: networks that are evaluated on the images or the queries.
        task: which samples an image has; classification by default.
    Raises:
        InputError: the bank was built from other images or by another teacher; classes or sizes of labelled images
            differ; the images do not have the annotations, or a network not the outputs, that the task needs.
    """
    task = task or Classification()
    for given in (images, queries):
        if given is not None:
            task.check(given)
    for network in (student, teacher):
        if network is not None:
            task.check_network(network)
    memory.require_fit(bank, images, teacher, task)
    count = len(task.keys(images)[0])
    if count != len(bank):
        raise InputError(
            f"the bank contains {len(bank)} samples, but {images.name} has {count}; pass all images it was built from"
        )
    if queries is not None and queries.classes != images.classes:
        raise InputError(f"queries and images must have the same classes, not {queries.classes} and {images.classes}")
    # Networks for regions and boxes are evaluated on images of any size.
    if isinstance(images, LabelledImages) and queries is not None and queries.size != images.size:
        raise InputError(
            f"the queries have {queries.size} pixels, but the bank's images {images.size}; load both at the same size"
        )
    for role, network in (("student", student), ("teacher", teacher)):
        if network is not None and network.num_classes != len(images.classes):
            raise InputError(
                f"the {role} outputs logits of {network.num_classes} classes, and {images.name} has "
                f"{len(images.classes)} classes; pass a {role} with as many classes as the data"
            )


def in_context(method: Method) -> TypeGuard[ICKD]:
    """Return whether a method, such as "ickd", is in-context distillation from a teacher's bank and nothing else."""
    return isinstance(method, ICKD) and method.source == "teacher" and method.retrieval is not None


def terms(method: Method, around: Neighbourhood, labels: Tensor) -> dict[str, float]:
    """Compute a method's weighted loss terms for B queries without augmentation, each as the mean over the queries.

    All terms are computed from the queries' logits. In segmentation these are the means over a region, whereas a
    training step compares each of its pixels.

    Args:
        method: a method for which `in_context` is true. The in-context samples are those of `around`, whatever number
            and order the method's own settings have.
        around: the neighbourhood of the B queries, with the student's logits.
        labels: class of each query, [B].
    Raises:
        InputError: the method is of another kind, or `around` contains no logits of a student.
    """
    if "student" not in around.logits:
        raise InputError("loss terms need a student; pass student=…")
    if not in_context(method):
        raise InputError(
            f"{describe(method)} is not in-context distillation from a teacher's bank alone; choose ickd, picd or nicd"
        )
    empty, none = labels.new_empty(len(labels), 0, dtype=torch.float), torch.full_like(labels, -1)
    student, teacher = (Samples(around.logits[name], empty, labels, none, none) for name in ("student", "teacher"))
    supervised = losses.cross_entropy(student.logits, labels)
    context = Context(
        Batch(empty, labels, none, none),
        student,
        supervised,
        teacher=teacher,
        positives=around.positives,
        negatives=around.negatives,
    )
    found = method(context)
    return {name: value.item() for name, value in found.items()}
