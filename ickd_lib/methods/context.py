"""What a method may use of a training step, and which in-context samples it can request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ickd_lib.data import Batch
from ickd_lib.memory import Faiss, InContext, MemoryBank, Neighbours
from ickd_lib.tasks import Samples

if TYPE_CHECKING:
    from ickd_lib.methods.base import Method

Source = Literal["teacher", "peers", "self"]
Order = Literal["nearest", "random", "class"]


@dataclass(frozen=True)
class Retrieval:
    """The in-context samples that a method requests.

    positives, negatives: number of in-context samples of each kind.
    query: the features that are compared with those of the bank. "row": the features in the sample's own row, which are
        those of the image without augmentation, so that all neighbours are computed once. "view": the features of the
        augmented image, so that every step searches. A bank that changes during training is always searched by view.
    per_class: whether the negatives are the nearest samples of the other classes, one per class.
    order: the choice of the positives. "nearest": the nearest samples of the class. "random": random samples of the
        class, as a control for retrieval. "class": the mean of the class, as a control for single samples.
    negatives_order: the choice of the negatives, by the same names, among the other classes.
    redraw: whether random samples are drawn anew in every epoch, instead of once for the training.
    source: the owner of the bank that is searched: the "teacher"; or the "peers" or the student itself ("self"), whose
        banks are written during training.
    start: share of the training before which nothing is retrieved.
    features: whether the method uses the features of the in-context samples, and not only their logits.
    unit_negatives: whether the method uses the negatives' logits for cosines only. The teacher's bank then returns them
        at unit length (`InContext.unit`).
    own: whether the method uses the logits in each sample's own row of the teacher's bank (`InContext.own` of the
        positives).
    dynamic: whether the teacher's bank is written in training: after each step, the rows of the batch get the teacher's
        logits of the views, and its features of them if these are used (query "view", or `features`). Each
        student has its own copy of the bank for this. Neighbours of the query "row" stay those of the images without
        augmentation. The method must declare the need "teacher", and "features" for `features`.
    """

    positives: int
    negatives: int
    query: str = "row"
    per_class: bool = False
    order: str = "nearest"
    negatives_order: str = "nearest"
    redraw: bool = False
    source: str = "teacher"
    start: float = 0.0
    features: bool = False
    unit_negatives: bool = False
    own: bool = False
    dynamic: bool = False

    @property
    def view_features(self) -> bool:
        """Whether the teacher's features of the views are used, to search or to be written into its bank."""
        return self.source == "teacher" and (self.query == "view" or (self.dynamic and self.features))

    @property
    def approximable(self) -> bool:
        """Whether the negatives are the nearest ones in a table, so that faiss may find them."""
        nearest = self.negatives > 0 and self.negatives_order == "nearest"
        return self.source == "teacher" and self.query == "row" and nearest

    def tables(
        self,
        bank: MemoryBank,
        *,
        seed: object,
        rows: Tensor | None = None,
        allow_missing: bool = False,
        search: str | Faiss = "exact",
    ) -> tuple[Neighbours, Neighbours]:
        """Return the positives and the negatives of rows of a bank, each in its own order; class means are in neither.

        Args:
            bank: the teacher's bank.
            seed: the seed of random samples.
            rows: positions of the rows; None for all.
            allow_missing, search: as in `MemoryBank.table`.
        """
        found = {}
        for order in dict.fromkeys((self.order, self.negatives_order)):
            positives = self.positives if order == self.order != "class" else 0
            negatives = self.negatives if order == self.negatives_order != "class" else 0
            if order == "random":
                found[order] = self.random_tables(bank, seed, rows, allow_missing)
            else:
                found[order] = bank.table(
                    positives=positives,
                    negatives=negatives,
                    per_class=self.per_class,
                    allow_missing=allow_missing,
                    rows=rows,
                    search=search if self.approximable else "exact",
                )
        return found[self.order][0], found[self.negatives_order][1]

    def random_tables(
        self, bank: MemoryBank, seed: object, rows: Tensor | None, allow_missing: bool
    ) -> tuple[Neighbours, Neighbours]:
        """Return what is random of the tables, as positives and negatives; the others are empty."""
        return bank.random_table(
            positives=self.positives * (self.order == "random"),
            negatives=self.negatives * (self.negatives_order == "random"),
            seed=seed,
            rows=rows,
            allow_missing=allow_missing,
        )


InContextPair = tuple[InContext, InContext]  # positives and negatives


@dataclass(frozen=True)
class TargetSource:
    """One source of targets for a batch: the teacher, a peer, or the student's own earlier output.

    output: samples without gradient. The student's earlier output is the row in its own bank (with momentum, an average
        over earlier steps); for a sample without a written row it is the present output.
    positives, negatives: the in-context samples from the source's bank; None if they were not requested or retrieval
        has not started. In those from a bank that is written during training, `mask` is False where rows are missing.
    retrieved: positives and negatives for every request of the student's method; see `Context.seen_by`.
    """

    output: Samples
    positives: InContext | None = None
    negatives: InContext | None = None
    retrieved: Mapping[Retrieval, InContextPair] = field(default_factory=dict)


@dataclass(frozen=True)
class StrongView:
    """A second, strongly augmented view of the images of a batch: crop and flip, RandAugment, then Cutout.

    batch: the B augmented images, in the order of the first view.
    student: the student's samples of it, with gradient, from a pass of its own.
    supervised: the task's own loss of these samples, a scalar with gradient.
    teacher: the teacher's samples of it, without gradient; None if the method does not need the teacher.
    """

    batch: Batch
    student: Samples
    supervised: Tensor
    teacher: Samples | None


@dataclass(frozen=True)
class Context:
    """All that a method may use of a training step. What the method did not declare in `needs` is None or empty.

    batch: the B augmented images.
    student: the S samples of the student, with gradient; with maps of its stages, and with the outputs at every pixel,
        if these were declared.
    supervised: the task's own loss of the student, a scalar with gradient (for classification, cross-entropy).
    teacher: the teacher's samples for the same views at the same places, without gradient. Its features may be empty,
        [S, 0], if they were not declared.
    positives, negatives: in-context samples of each sample, from the teacher's bank.
    bank: the rows of the student's training samples in the teacher's memory bank, with the content that was built, also
        if the method has a copy of the bank that is written in training.
    partner: the student's own samples, without gradient, for a random image of the class of each image.
    peers: the other students of the peer group, each with its samples for the same views and, if retrieval from peers
        was declared, in-context samples from its bank.
    earlier: the student's own earlier output for each sample, with in-context samples from its own bank.
    common: positions, in the student's and in the teacher's logits, of the classes that both have, shape [K] each; None
        if the classes are the same.
    phase: number of the method's `restarts` that have passed.
    progress: share of the training that is done, 0 to 1; during training a scalar tensor, so that a captured step reads
        its present value. (A step in which Python code branches on it cannot be captured.)
    epoch: number of the present epoch, from 0; during training a scalar tensor, like `progress`. Published warm-ups
        count epochs and keep their length when the training is longer.
    epochs: number of epochs of the training.
    retrieved: in-context samples from the teacher's bank for every request of the method; a combination of methods may
        have several requests (see `seen_by`).
    strong: a second, strongly augmented view of the batch.
    classifiers: the layers that compute the logits of the student and of the teacher (`models.classifier`). The
        student's is trained, the teacher's is frozen; None instead of the teacher's without a teacher.
    logits: the student's logits of the own part of the batch from which all loss terms are computed
        (`Samples.shared_logits`); None if they are those of `student`.
    scale: the factor with which the loss of this process is weighted.
    """

    batch: Batch
    student: Samples
    supervised: Tensor
    teacher: Samples | None = None
    positives: InContext | None = None
    negatives: InContext | None = None
    bank: MemoryBank | None = None
    partner: Samples | None = None
    peers: tuple[TargetSource, ...] = ()
    earlier: TargetSource | None = None
    common: tuple[Tensor, Tensor] | None = None
    phase: int = 0
    progress: Tensor | float = 0.0
    epoch: Tensor | int = 0
    epochs: int = 1
    retrieved: Mapping[Retrieval, InContextPair] = field(default_factory=dict)
    strong: StrongView | None = None
    classifiers: tuple[nn.Module, nn.Module | None] | None = None
    logits: Tensor | None = None
    scale: float = 1.0

    def sources(self, name: str) -> Sequence[TargetSource]:
        """Return the sources of targets that `name`, a `Source`, stands for.

        "teacher": the teacher. "peers": the peers. "self": the student's earlier output.
        """
        if name == "peers":
            return self.peers
        if name == "self":
            assert self.earlier is not None
            return [self.earlier]
        return [TargetSource(self.teacher, self.positives, self.negatives)]  # type: ignore[arg-type]  # None if undeclared

    def seen_by(self, method: Method) -> Context:
        """Return the context with the samples that the method compares, and the in-context samples it requested."""
        context = replace(
            self,
            student=method.compared(self.student),
            teacher=self.teacher and method.compared(self.teacher),
            peers=tuple(replace(peer, output=method.compared(peer.output)) for peer in self.peers),
        )
        spec = method.retrieval
        if spec is None:
            return context
        near, far = self.retrieved.get(spec, (None, None))
        return replace(
            context,
            positives=near,
            negatives=far,
            peers=tuple(_searched(peer, spec) for peer in context.peers),
            earlier=self.earlier and _searched(self.earlier, spec),
        )

    def rise(self, epochs: float) -> Tensor | float:
        """Return the factor of a weight that rises over some epochs to 1, with the present epoch counted from 1."""
        return torch.as_tensor((self.epoch + 1) / epochs).clamp(max=1) if epochs else 1.0

    def fall(self, share: float) -> Tensor | float:
        """Return the factor of a weight that falls to 0 by a half cosine after a share of the epochs; 1 for share=1."""
        if share == 1:
            return 1.0
        done = ((self.epoch + 1) / self.epochs - share) / (1 - share)
        return 0.5 + 0.5 * torch.cos(math.pi * torch.as_tensor(done).clamp(0, 1))

    def shared_logits(self) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's logits of the classes that both have, [S, K] each."""
        assert self.teacher is not None
        if self.common is None:
            return self.student.logits, self.teacher.logits
        student, teacher = self.common
        return self.student.logits[:, student], self.teacher.logits[:, teacher]


def _searched(source: TargetSource, spec: Retrieval) -> TargetSource:
    """Return the source of targets with the in-context samples of one request."""
    near, far = source.retrieved.get(spec, (None, None))
    return replace(source, positives=near, negatives=far)
