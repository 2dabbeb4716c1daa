"""What a method is: what it requires of a training step, and the loss terms that it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ickd_lib.methods.context import Context, Retrieval
from ickd_lib.models import Network
from ickd_lib.runtime import InputError, arguments
from ickd_lib.runtime.arguments import NotNegative
from ickd_lib.tasks import Samples

# "pixels" are the outputs at every pixel, which only segmentation has (`Samples.pixels`), and "pooled features" those
# that are the mean of a map of the whole image (`Samples.unpooled`), which only classification has.
NEEDS = frozenset(
    {"teacher", "features", "pooled features", "bank", "maps", "pixels", "classifiers", "strong", "partner"}
    | {"peers", "earlier"}
)
LABEL_SPACES = ("same", "shared", "any")


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
        bank_rows: number of written rows of the teacher's bank if a larger one than that of the training samples is
            given, else 0; it is set before `setup` is called.
        bank_classes: number of classes that rows of the teacher's bank have, which may be fewer than C: no row of a
            detector's bank has the background; it is set before `setup` is called, and 0 if that is not known.
        bank_others: smallest number of rows, over the classes, that have another class: fewer negatives exist for no
            sample. It is set before `setup` is called, and 0 if samples may have fewer negatives than requested.
        bank_same: smallest number of other rows of the class of a training sample: more positives do not exist for some
            sample. It is set before `setup` is called, and None if samples may have fewer positives than requested.
        pixelwise: whether the method compares each sample with its target alone, so that in segmentation it compares
            each pixel. All others compare class regions there.
        chance: for loss terms that compare a sample with others, the value for a student that cannot tell these apart.
            A note is printed if such a term ends near it. It may be set in `setup`.
        limits: for loss terms whose gradient is limited, the largest norm of it as a multiple of that of the other
            terms together (`limits.limited`).
        separable: whether the loss is a mean over samples, each of which is compared with its own targets alone. With
            several processes, each then computes the loss of its part of a batch. Any other method receives the samples
            of the whole batch in every process.
        unlabelled: whether the method can be trained with images that have no label (label -1).
        one_class: whether each image must have one class where the teacher has other classes than the student, so that
            mixup and cutmix are refused there.
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
    bank_same: int | None = None
    pixelwise = False
    chance: Mapping[str, float] = {}
    limits: Mapping[str, float] = MappingProxyType({})
    separable = False
    unlabelled = False
    one_class = False
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

    def describe_bank(self, labels: Tensor, *, larger: bool, few_allowed: bool, trained: Tensor | None = None) -> None:
        """Set the attributes `bank_…` of the method and of the methods that it combines, before `setup` is called.

        Args:
            labels: class of each written row of the teacher's bank, or of each training sample without such a bank; -1
                for a sample without a label. int64, shape [N].
            larger: whether the rows are those of a given bank.
            few_allowed: whether samples may have fewer in-context samples than requested.
            trained: class of each training sample, -1 for one without a label; None if these are the rows.
        """
        trained = labels if trained is None else trained
        known, present = labels[labels >= 0], trained.unique().tolist()
        sizes = known.bincount(minlength=max(present, default=0) + 1)
        for part in self.modules():
            if isinstance(part, Method):
                part.bank_rows = larger * len(labels)
                count = int((sizes > 0).sum())
                part.bank_classes = count * (count > 1 or len(known) == len(labels))  # the others may be of any class
                exact = not few_allowed and len(known) == len(labels) > 0
                part.bank_others = len(labels) - int(sizes.max()) if exact else 0
                others = max(0, int(sizes[present].min()) - 1) if exact and min(present, default=-1) >= 0 else None
                # A given bank without other rows of a class may have other labels, which are refused later.
                part.bank_same = None if larger and not others else others

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

    def unlimited(self, context: Context) -> dict[str, Tensor]:
        """Return the terms of `forward` before the gradients of those in `limits` are limited."""
        return self(context)

    @classmethod
    def recorded_arguments(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments from which a recorded method is created again, given its `config`."""
        return {key: value for key, value in {**cls.before, **config}.items() if key not in ("name", "version")}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items() if key in defaults(type(self)))


def named_terms(method: Method, terms: object) -> dict[str, Tensor]:
    """Return the loss terms that a method returned. Raise InputError if they are no dict."""
    if isinstance(terms, Mapping):
        return dict(terms)
    raise InputError(
        f"method {method.config['name'] or type(method).__name__!r} returned an object of type "
        f"{type(terms).__name__}; return a dict of named loss terms, such as {{'ce': context.supervised}}"
    )


class WithLabels(Method):
    """A method that adds terms to the task's own loss, which has the weight `ce`. A subclass defines `teach`."""

    def __init__(self, *, ce: NotNegative = 1.0) -> None:
        super().__init__()
        self.ce = ce

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms = named_terms(self, self.teach(context))
        return {"ce": self.ce * context.supervised, **terms} if self.ce else terms

    def teach(self, context: Context) -> dict[str, Tensor]:
        """Return the weighted terms that are added to the task's own loss."""
        raise TypeError(f"{type(self).__name__} must define teach(context) -> {{term: scalar}}")


def require_initialised(method: Method) -> None:
    """Raise InputError if the constructor of a method does not call that of its base class."""
    if "_modules" not in vars(method):
        name = method.config["name"] or type(method).__name__
        raise InputError(f"method {name!r}: its __init__ does not call super().__init__(); call it there first")


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
