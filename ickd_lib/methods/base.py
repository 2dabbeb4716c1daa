"""What a method is: what it requires of a training step, and what it may see of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples

NEEDS = frozenset({"teacher", "features", "bank", "maps", "partner", "peers", "earlier"})
SOURCES = ("teacher", "peers", "self")
ORDERS = ("nearest", "random", "class")
LABEL_SPACES = ("same", "shared", "any")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Retrieval:
    """The in-context samples that a method requests.

    positives, negatives: how many of each.
    query: "row", the row of the sample in the bank, from the image without augmentation (a table that is computed
        once); or "view", the features of the augmented image, searched for in every step. A bank that changes during
        training is always searched by view.
    per_class: the negatives are the best sample of each other class.
    order: which samples are the positives: the "nearest"; "random" ones of the right classes, the control for
        retrieval; or the mean of the "class", the control for single samples.
    negatives_order: the same for the negatives.
    redraw: random samples are drawn anew in every epoch, not once for the training.
    source: whose bank is searched: that of the "teacher"; or one that is written during training, of the "peers" or of
        the student itself ("self").
    start: share of the training before which nothing is retrieved.
    features: whether the features of the in-context samples are needed, not only their logits.
    unit_negatives: whether only the cosines of the negatives' logits are used; these then have unit length where the
        bank has them (`InContext.unit`).
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


@dataclass(frozen=True)
class TargetSource:
    """One source of targets for a batch: the teacher, a peer, or the student's own earlier output.

    output: samples without gradient. For the earlier output: the row in the student's own bank (with momentum, an
        average over visits); for a sample that the student has not seen before, its present output.
    positives, negatives: the in-context samples from the source's bank; None where they were not requested or
        retrieval has not started. From a bank in training, `mask` is False where it has too few rows.
    """

    output: Samples
    positives: InContext | None = None
    negatives: InContext | None = None


@dataclass(frozen=True)
class Context:
    """All that a method may use of a training step. What it did not declare in `needs` is None.

    batch: the images.
    student: the student's samples, with gradient; with maps of its stages where they were declared.
    supervised: the task's own loss of the student, a scalar with gradient (for classification, cross-entropy).
    teacher: the teacher's samples for the same views at the same places, without gradient. Its features are empty,
        [S, 0], where they were not declared.
    positives, negatives: in-context samples of each sample, from the teacher's bank.
    bank: the teacher's memory bank itself.
    partner: the student's own samples, without gradient, for another image of the class of each image.
    peers: the other students of the peer group, each with its samples for the same views and, where retrieval from
        peers was declared, in-context samples from its bank.
    earlier: the student's own earlier output for each sample, with in-context samples from its own bank.
    common: positions, in the student's and in the teacher's logits, of the classes that both have, shape [K] each; None
        where the classes are the same.
    phase: how many of the method's `restarts` have passed.
    progress: the share of the training that is done, 0 to 1; during training a scalar tensor, so that a captured step
        reads its present value. (A step whose Python code branches on it cannot be captured.)
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

    def sources(self, name: str) -> Sequence[TargetSource]:
        """The sources of targets called `name` in SOURCES: the teacher, the peers, or the student's earlier output."""
        if name == "peers":
            return self.peers
        if name == "self":
            assert self.earlier is not None
            return [self.earlier]
        return [TargetSource(self.teacher, self.positives, self.negatives)]  # type: ignore[arg-type]  # if undeclared

    def shared_logits(self) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits of the classes that both have, [S, K] each."""
        assert self.teacher is not None
        if self.common is None:
            return self.student.logits, self.teacher.logits
        student, teacher = self.common
        return self.student.logits[:, student], self.teacher.logits[:, teacher]


class Method(nn.Module):
    """A distillation method. A subclass defines `forward`; its keyword defaults are its configuration.

    Attributes:
        needs: what the loop must supply, of NEEDS.
        retrieval: the in-context samples that it requests, or None.
        label_space: which classes the teacher must have: those of the student ("same"), some of them ("shared"), or
            none ("any": only features are compared).
        restarts: shares of the training at which the learning-rate schedule restarts and a new phase begins.
        embedding_rates: for each phase, the learning rate of all layers but the classifier, relative to the
            classifier's; the last entry holds for all later phases.
        momentum: share of a row that stays when the student's own bank is written.
        config: the name and every argument, defaults included; a run records it.
    """

    needs: frozenset[str] = frozenset()
    retrieval: Retrieval | None = None
    label_space = "same"
    restarts: tuple[float, ...] = ()
    embedding_rates: tuple[float, ...] = (1.0,)
    momentum = 0.0
    registered_name = ""
    config: dict[str, Any]

    def __new__(cls, *args: Any, **given: Any) -> Method:
        if args:
            raise TypeError(f"{cls.__name__} takes keyword arguments only")
        self = super().__new__(cls)
        object.__setattr__(self, "config", {"name": cls.registered_name, **defaults(cls), **given})
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the method cannot train without a teacher."""
        return "teacher" in self.needs or self.needs_bank

    @property
    def needs_bank(self) -> bool:
        """Whether the teacher's memory bank is used."""
        return "bank" in self.needs or (self.retrieval is not None and self.retrieval.source == "teacher")

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        """Create what depends on sizes, such as projectors with parameters, before the optimiser exists.

        Args:
            student_dim, teacher_dim: length of their features (teacher_dim is 0 without a teacher).
            num_classes: C.
            rows: number of training samples.
        """

    def forward(self, context: Context) -> dict[str, Tensor]:
        """The loss as named, weighted scalar terms; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define forward(context) -> {{term: scalar}}")

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items() if key != "name")


class WithLabels(Method):
    """A method that adds terms to the task's own loss, which has the weight `ce`; a subclass defines `teach`."""

    def __init__(self, *, ce: float = 1.0) -> None:
        super().__init__()
        self.ce = ce

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms = self.teach(context)
        return {"ce": self.ce * context.supervised, **terms} if self.ce else terms

    def teach(self, context: Context) -> dict[str, Tensor]:
        """The weighted terms beside the task's own loss."""
        raise TypeError(f"{type(self).__name__} must define teach(context) -> {{term: scalar}}")


def defaults(cls: type[Method]) -> dict[str, Any]:
    """The arguments of a method and their defaults, those of its base classes first."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Method) and "__init__" in vars(base):
            for parameter in inspect.signature(base.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    found[parameter.name] = parameter.default
    return found


def positive(name: str, value: N) -> N:
    """Return `value` if it is above 0, else raise an InputError that contains `name`."""
    if not value > 0:
        raise InputError(f"{name}={value} must be above 0")
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if it lies between the two bounds, else raise an InputError that contains `name`."""
    if not low <= value <= high:
        raise InputError(f"{name}={value} must lie between {low} and {high}")
    return value
