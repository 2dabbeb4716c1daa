"""What a method is: what it declares, what it is shown of a step, and the names by which methods are made."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from ickd_lib import losses, runtime
from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.models import Output
from ickd_lib.runtime import InputError

NEEDS = frozenset({"teacher", "features", "retrieval", "bank", "maps", "partner", "peers", "earlier"})
SOURCES = ("teacher", "peers", "self")
LABEL_SPACES = ("same", "shared", "any")


@dataclass(frozen=True)
class Retrieval:
    """Which in-context samples a method asks for.

    positives, negatives: how many of each.
    query: "row", a sample's own clean row of the bank (a table, made once); or "view", the features of the augmented
        image, searched for in every step. A bank in training is always searched by view.
    per_class: take the negatives from the best sample of each other class.
    order: "nearest"; or "random" samples under the same class constraints, the control for retrieval.
    source: whose bank: the "teacher"'s; or one that is written in training: of the "peers", or of the student "self".
    start: share of the training before which nothing is retrieved.
    """

    positives: int
    negatives: int
    query: str = "row"
    per_class: bool = False
    order: str = "nearest"
    source: str = "teacher"
    start: float = 0.0


@dataclass(frozen=True)
class Guide:
    """Whose word a student takes on a batch: the teacher's, a peer's, or its own of the last time it saw each image.

    output: logits [B, C] and features [B, D], without gradient. Of an earlier self, the row of its bank (with momentum,
        a mean over visits); for an image not seen before, what it says now, which draws it nowhere.
    positives, negatives: the in-context samples of each image in its bank; None where they were not asked for, or it is
        too early. Of a bank in training, `mask` is false where it holds too few rows.
    """

    output: Output
    positives: InContext | None = None
    negatives: InContext | None = None


@dataclass(frozen=True)
class Context:
    """All that a method may see of a step. What it did not declare in `needs` is None.

    batch: B images with labels, data-set rows and views. Where images are mixed (Mixup, CutMix), cross-entropy takes
        `batch.targets`; what else goes by label or row takes those of the image with the largest share.
    student: logits [B, C] and features [B, D], with gradient; its stages' maps where they were declared.
    teacher: the same of the teacher for the same views, without; its features where they were declared (where they were
        not, they may be empty, [B, 0]).
    positives, negatives: the in-context samples of each image, from the teacher's bank.
    bank: the teacher's memory bank itself.
    partner: the student's own output, without gradient, for another image of the class of each.
    peers: the other students that train beside this one, each with its output for the same views and, where retrieval
        from peers was declared, in-context samples from its bank.
    earlier: the student itself, when it last saw each image, with in-context samples from its own bank.
    common: positions, in the student's logits and in the teacher's, of the classes that both know, [K] each; None
        where the label spaces are the same.
    phase: how many of the method's `restarts` are behind.
    progress: how much of the training is done, 0 to 1; in training a scalar tensor, which a step that a GPU replays can
        follow. (A method that branches on it is not replayed.)
    """

    batch: Batch
    student: Output
    teacher: Output | None = None
    positives: InContext | None = None
    negatives: InContext | None = None
    bank: MemoryBank | None = None
    partner: Output | None = None
    peers: tuple[Guide, ...] = ()
    earlier: Guide | None = None
    common: tuple[Tensor, Tensor] | None = None
    phase: int = 0
    progress: Tensor | float = 0.0

    def guides(self, source: str) -> Sequence[Guide]:
        """Whoever teaches under a name of SOURCES: the teacher, the peers, or the student's earlier self."""
        if source == "peers":
            return self.peers
        if source == "self":
            assert self.earlier is not None
            return [self.earlier]
        return [Guide(self.teacher, self.positives, self.negatives)]  # type: ignore[arg-type]  # None if not declared

    def shared_logits(self) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits of the classes that both know, [B, K] each."""
        assert self.teacher is not None
        if self.common is None:
            return self.student.logits, self.teacher.logits
        ours, theirs = self.common
        return self.student.logits[:, ours], self.teacher.logits[:, theirs]


class Method(nn.Module):
    """A way to teach. A subclass writes `forward`; its keyword defaults are its configuration.

    needs: of NEEDS, what the loop must supply.  retrieval: with "retrieval" among them, what to retrieve.
    label_space: which classes the teacher must know: the student's ("same"), some of them ("shared"), or none
        ("any": only features are compared).
    restarts: shares of the training at which the learning-rate schedule starts anew and a new phase begins.
    embedding_rates: for each phase (or all) the learning rate of all layers but the last, relative to the last one's.
    momentum: how much of a row stays when the student's own bank, where one is kept, is written.
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
        """Whether there is nothing to learn without a teacher."""
        return "teacher" in self.needs or self.needs_bank

    @property
    def needs_bank(self) -> bool:
        """Whether the teacher's memory bank is used."""
        return "bank" in self.needs or (self.retrieval is not None and self.retrieval.source == "teacher")

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        """Make what depends on sizes (projectors, as parameters) before the optimiser exists.

        Args:
            student_dim, teacher_dim: length of their features (teacher_dim 0 without a teacher).
            num_classes: C.
            rows: training samples.
        """

    def forward(self, context: Context) -> dict[str, Tensor]:
        """The loss as named scalar terms, already weighted; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define forward(context) -> {{term: scalar}}")

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config.items() if key != "name")


class WithLabels(Method):
    """A method that stands beside cross-entropy to the labels, of weight `ce`; a subclass writes `teach`."""

    def __init__(self, *, ce: float = 1.0) -> None:
        super().__init__()
        self.ce = ce

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms = self.teach(context)
        if self.ce:
            labels = self.ce * losses.cross_entropy(context.student.logits, context.batch.targets)
            return {"ce": labels, **terms}
        return terms

    def teach(self, context: Context) -> dict[str, Tensor]:
        """The terms beside cross-entropy, weighted."""
        raise TypeError(f"{type(self).__name__} must define teach(context) -> {{term: scalar}}")


class Combined(Method):
    """Several methods at once, as in "ickd+dist": the sum of their terms, with the first one's cross-entropy.

    Raises:
        InputError: one of them, beyond the first, is nothing but cross-entropy, or two ask for different in-context
            samples, or for phases.
    """

    def __init__(self, *, parts: Sequence[Method]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        name = "+".join([describe(parts[0]), *(describe(part, ce=0.0) for part in parts[1:])])
        object.__setattr__(self, "config", {"name": name, "parts": [part.config for part in parts]})
        self.needs = frozenset().union(*(part.needs for part in parts))
        asked = {part.retrieval for part in parts if part.retrieval}
        phased = [part for part in parts if part.restarts]
        if len(asked) > 1 or len(phased) > 1:
            what = "different in-context samples" if len(asked) > 1 else "phases of its own each"
            raise InputError(f"{self.config['name']} asks for {what}; combine methods of which one does")
        self.retrieval = next(iter(asked), None)
        self.momentum = max(part.momentum for part in parts)
        if phased:
            self.restarts, self.embedding_rates = phased[0].restarts, phased[0].embedding_rates
        taught = [part.label_space for part in parts if part.needs_teacher]
        self.label_space = min(taught, key=LABEL_SPACES.index, default="same")

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        for part in self.parts:
            part.setup(student_dim, teacher_dim, num_classes, rows)  # type: ignore[operator]
        asked: list[Any] = [part.retrieval for part in self.parts if part.retrieval]
        self.retrieval = next(iter(asked), None)

    def forward(self, context: Context) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for part in self.parts:
            for name, value in part(context).items():
                while name in terms:
                    name = f"{part.registered_name} {name}"
                terms[name] = value
        return terms


_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])
N = TypeVar("N", int, float)


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a Method known as `name`.

    Raises:
        InputError: another class has the name, or the class declares a need that the loop does not know.
    """

    def add(cls: M) -> M:
        taken = _REGISTRY.get(name)
        if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"method {name!r} is already {taken.__module__}.{taken.__qualname__}; choose another name")
        for need in cls.needs:
            runtime.choose(need, NEEDS, "need")
        runtime.choose(cls.label_space, LABEL_SPACES, "label space")
        cls.registered_name = name
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The registered methods, sorted."""
    return sorted(_REGISTRY)


def defaults(cls: type[Method]) -> dict[str, Any]:
    """A method's arguments and their defaults, its bases' first."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Method) and "__init__" in vars(base):
            for parameter in inspect.signature(base.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    found[parameter.name] = parameter.default
    return found


def create(name: str, **weights: Any) -> Method:
    """A method by name; arguments may stand in the name, as in "ickd(nicd=0, positives=4)".

    "ickd+dist" is both at once, with the cross-entropy of the first (a later one's `ce` is 0 unless given).

    Raises:
        InputError: an unknown name or argument (with the nearest one), or a value that cannot be.
    """
    parts = _parts(name)
    if len(parts) > 1:
        if weights:
            raise InputError(f"arguments for {name!r} belong in the name, behind the method that they are for")
        later = [parse(part) for part in parts[1:]]
        for part, _ in later:
            if "ce" not in defaults(_REGISTRY[runtime.choose(part, _REGISTRY, "method")]):
                raise InputError(f"{part!r} has nothing to add to {parts[0]!r}; it is a loss of the labels alone")
        return Combined(parts=[create(parts[0]), *(create(part, **{"ce": 0.0} | given) for part, given in later)])
    name, given = parse(name)
    weights = given | weights
    cls = _REGISTRY[runtime.choose(name, _REGISTRY, "method")]
    known = defaults(cls)
    for key, value in weights.items():
        if key not in known:
            runtime.choose(key, known, f"argument of method {cls.registered_name!r}")
        if isinstance(known[key], bool) and not isinstance(value, bool):
            raise InputError(f"{cls.registered_name}({key}={value!r}): expected True or False")
        numeric = isinstance(known[key], (int, float)) and not isinstance(known[key], bool)
        if numeric and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"{cls.registered_name}({key}={value!r}): expected a number like {known[key]!r}")
    return cls(**weights)


def _parts(text: str) -> list[str]:
    """ "ickd(a=1e+2)+dist" cut at each + that is in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "+" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """("ickd", {"nicd": 0}) of "ickd(nicd=0)"; the values are literals."""
    name, bracket, _ = text.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(text)
        return name.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise InputError(f"cannot read method {text!r}; write it like ickd(nicd=0.5, positives=4)") from None


def describe(method: Method, **assumed: Any) -> str:
    """The method in the form that `create` reads, with only what differs from its defaults (or from `assumed`)."""
    name = method.config["name"]
    if isinstance(method, Combined):
        return name
    known = defaults(type(method)) | assumed
    changed = [f"{k}={v!r}" for k, v in method.config.items() if k != "name" and v != known[k]]
    return f"{name}({', '.join(changed)})" if changed else name


def positive(name: str, value: N) -> N:
    """`value`, when it is above 0; else an InputError that names it."""
    if not value > 0:
        raise InputError(f"{name}={value} must be above 0")
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """`value`, when it lies between the two; else an InputError that names it."""
    if not low <= value <= high:
        raise InputError(f"{name}={value} must lie between {low} and {high}")
    return value
