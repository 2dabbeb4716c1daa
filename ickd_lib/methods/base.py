"""What a method is: what it requires of a training step, and what it may use of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import arguments
from ickd_lib.runtime.arguments import NotNegative
from ickd_lib.tasks import Samples

# "pixels" are the outputs at every pixel, which only segmentation has (`Samples.pixels`), and "pooled features" those
# that are the mean of a map of the whole image (`Samples.unpooled`), which only classification has.
NEEDS = frozenset(
    {"teacher", "features", "pooled features", "bank", "maps", "pixels", "classifiers", "strong", "partner"}
    | {"peers", "earlier"}
)
Source = Literal["teacher", "peers", "self"]
Order = Literal["nearest", "random", "class"]
LABEL_SPACES = ("same", "shared", "any")


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
    logits: the student's logits of all samples of the own part of the batch (in segmentation those of the pixels), from
        which all loss terms are computed; None if they are those of `student`.
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


class Method(nn.Module):
    """A distillation method. A subclass defines `forward`; its keyword defaults are its configuration.

    Attributes:
        needs: what the loop must provide, a subset of NEEDS.
        retrieval: the in-context samples that the method requests, or None.
        label_space: the classes that the teacher must have: those of the student ("same"), some of them ("shared"), or
            any classes, because only features are compared ("any").
        restarts: shares of the training at which the learning-rate schedule restarts and a new phase begins.
        embedding_rates: for each phase, the learning rate of all layers but the classifier, relative to the
            classifier's; the last entry holds for all later phases.
        momentum: weight of the old content when a row of the student's own bank is written again.
        bank_rows: number of rows of the teacher's bank if a larger one than that of the training samples is given, else
            0; it is set before `setup` is called.
        bank_classes: number of classes that rows of the teacher's bank have, which may be fewer than C: no row of a
            detector's bank has the background; it is set before `setup` is called, and 0 if that is not known.
        bank_others: smallest number of rows, over the classes, that have another class: fewer negatives exist for no
            sample. It is set before `setup` is called, and 0 if samples may have fewer negatives than requested.
        pixelwise: whether the method compares each sample with its target alone, so that in segmentation it compares
            each pixel. All others compare class regions there.
        chance: for loss terms that compare a sample with others, the value for a student that cannot tell these apart.
            A note is printed if such a term ends near it. It may be set in `setup`.
        separable: whether the loss is a mean over samples, each of which is compared with its own targets alone. With
            several processes, each then computes the loss of its part of a batch. Any other method receives the samples
            of the whole batch in every process.
        unlabelled: whether the method can be trained with images that have no label (label -1).
        version: number of the definition of the method, which is increased when its loss changes for equal arguments.
        before: arguments that were added later and whose default changes the loss, with the values that runs have in
            which they are not recorded.
        config: the name, a version above 1, and every argument, defaults included, which a run folder records.
        paper: authors, year and arXiv number of the source.
        code: the official code ("owner/repository" on GitHub), or another implementation if the authors published none;
            the table in docs/methods.md shows how far the method agrees with it. "" if there is none, so that the
            method was built from the paper alone.
    """

    needs: frozenset[str] = frozenset()
    retrieval: Retrieval | None = None
    label_space = "same"
    restarts: tuple[float, ...] = ()
    embedding_rates: tuple[float, ...] = (1.0,)
    momentum = 0.0
    bank_rows = 0
    bank_classes = 0
    bank_others = 0
    pixelwise = False
    chance: Mapping[str, float] = {}
    separable = False
    unlabelled = False
    before: Mapping[str, Any] = MappingProxyType({})
    paper = ""
    code = ""
    version = 1
    registered_name = ""
    config: dict[str, Any]

    def __new__(cls, *args: Any, **given: Any) -> Method:
        if args:
            raise TypeError(f"{cls.__name__} takes keyword arguments only")
        kinds = declared(cls)
        for name, value in given.items():
            if name in kinds:
                arguments.check(name, value, kinds[name], cls.registered_name or cls.__name__)
        self = super().__new__(cls)
        version = {"version": cls.version} if cls.version > 1 else {}
        object.__setattr__(self, "config", {"name": cls.registered_name, **version, **defaults(cls), **given})
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the method cannot train without a teacher."""
        return "teacher" in self.needs or self.needs_bank

    @property
    def needs_bank(self) -> bool:
        """Whether the teacher's memory bank is used."""
        return "bank" in self.needs or any(spec.source == "teacher" for spec in self.retrievals)

    @property
    def retrievals(self) -> tuple[Retrieval, ...]:
        """All requests for in-context samples; a combination of methods may have several."""
        return (self.retrieval,) if self.retrieval else ()

    def compared(self, samples: Samples) -> Samples:
        """Return the samples that the method compares.

        In segmentation, a pixelwise method compares the pixels, and all others the regions. In detection, a method that
        uses a bank compares the proposals that are matched to an annotation, and all others all proposals.
        """
        if self.pixelwise:
            return samples.finest
        return samples.known if self.needs_bank else samples

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        """Return the network that is trained; most methods return the student as it is.

        A method may create here what depends on the networks themselves, such as regressors between their maps
        (`models.map_shapes`), or return a network that contains the student. It is called before `setup`, once.

        Args:
            student: the student, initialised.
            teacher: the frozen teacher; None if there is none. A method must not keep it as a submodule.
            size: height and width of the training images.
        """
        return student

    def describe_bank(self, labels: Tensor, *, larger: bool, few_allowed: bool) -> None:
        """Set the attributes `bank_…` of the method and of the methods that it combines, before `setup` is called.

        Args:
            labels: class of each row of the teacher's bank, or of each training sample without such a bank; -1 for a
                sample without a label. int64, shape [N].
            larger: whether the rows are those of a given bank.
            few_allowed: whether samples may have fewer in-context samples than requested.
        """
        known = labels[labels >= 0]
        sizes = known.bincount()
        for part in self.modules():
            if isinstance(part, Method):
                part.bank_rows = larger * len(labels)
                part.bank_classes = int((sizes > 0).sum())
                exact = not few_allowed and len(known) == len(labels) > 0
                part.bank_others = len(labels) - int(sizes.max()) if exact else 0

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        """Create what depends on sizes, such as projectors with parameters, before the optimiser exists.

        Args:
            student_dim, teacher_dim: numbers of features of student and teacher (teacher_dim is 0 without a teacher).
            num_classes: number of classes, C.
            rows: number of training samples.
        """

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Return the loss as named, weighted scalar terms; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define forward(context) -> {{term: scalar}}")

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items() if key not in ("name", "version"))


class WithLabels(Method):
    """A method that adds terms to the task's own loss, which has the weight `ce`. A subclass defines `teach`."""

    def __init__(self, *, ce: NotNegative = 1.0) -> None:
        super().__init__()
        self.ce = ce

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms = self.teach(context)
        return {"ce": self.ce * context.supervised, **terms} if self.ce else terms

    def teach(self, context: Context) -> dict[str, Tensor]:
        """Return the weighted terms that are added to the task's own loss."""
        raise TypeError(f"{type(self).__name__} must define teach(context) -> {{term: scalar}}")


def _searched(source: TargetSource, spec: Retrieval) -> TargetSource:
    """Return the source of targets with the in-context samples of one request."""
    near, far = source.retrieved.get(spec, (None, None))
    return replace(source, positives=near, negatives=far)


def defaults(cls: type[Method]) -> dict[str, Any]:
    """Return the arguments of a method and their defaults, those of its base classes first."""
    return {parameter.name: parameter.default for parameter, _ in _parameters(cls)}


def declared(cls: type[Method]) -> dict[str, Any]:
    """Return the annotations of the arguments of a method; of one without annotation, the type of its default."""
    plain = {bool: bool, int: float, float: float, str: str}
    found = {}
    for parameter, init in _parameters(cls):
        kind = arguments.kinds(init).get(parameter.name, plain.get(type(parameter.default)))
        if kind is not None:
            found[parameter.name] = kind
    return found


def _parameters(cls: type[Method]) -> Iterator[tuple[inspect.Parameter, Callable[..., None]]]:
    """Yield the keyword arguments of a method and the constructor that has each, those of its base classes first."""
    for base in reversed(cls.__mro__):
        if issubclass(base, Method) and "__init__" in vars(base):
            for parameter in inspect.signature(base.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    yield parameter, base.__init__
