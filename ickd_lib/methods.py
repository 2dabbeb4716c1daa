"""Methods: what each takes from a training step, and which losses it adds. Registered here, nowhere else."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from ickd_lib import losses, runtime
from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.models import Output
from ickd_lib.runtime import InputError

NEEDS = frozenset({"teacher", "retrieval", "bank"})


@dataclass(frozen=True)
class Retrieval:
    """Which in-context samples a method asks for.

    positives, negatives: how many of each.
    query: "row", a sample's own clean row of the bank (a table, made once); or "view", the teacher's features
        of the augmented image, searched for in every step.
    per_class: take the negatives from the best sample of each other class.
    order: "nearest"; or "random" samples under the same class constraints, the control for retrieval.
    """

    positives: int
    negatives: int
    query: str = "row"
    per_class: bool = False
    order: str = "nearest"


@dataclass(frozen=True)
class Context:
    """All that a method may see of a step. What it did not declare in `needs` is None.

    batch: B images with labels, data-set rows and views.
    student: logits [B, C] and features [B, D], with gradient.
    teacher: the same of the teacher for the same views, without.
    positives, negatives: the in-context samples of each image, from the bank.
    bank: the teacher's memory bank itself.
    progress: how much of the training is done, 0 to 1.
    """

    batch: Batch
    student: Output
    teacher: Output | None = None
    positives: InContext | None = None
    negatives: InContext | None = None
    bank: MemoryBank | None = None
    progress: float = 0.0


class Method(nn.Module):
    """A way to teach. A subclass writes `forward`; its keyword defaults are its configuration.

    needs: of NEEDS, what the loop must supply.  retrieval: with "retrieval" among them, what to retrieve.
    config: the name and every argument, defaults included; a run records it.
    """

    needs: frozenset[str] = frozenset()
    retrieval: Retrieval | None = None
    registered_name = ""
    config: dict[str, Any]

    def __new__(cls, *args: Any, **given: Any) -> Method:
        if args:
            raise TypeError(f"{cls.__name__} takes keyword arguments only")
        self = super().__new__(cls)
        object.__setattr__(self, "config", {"name": cls.registered_name, **defaults(cls), **given})
        return self

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


_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


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
        cls.registered_name = name
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The registered methods."""
    return list(_REGISTRY)


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

    Raises:
        InputError: an unknown name or argument (with the nearest one), or a value that cannot be.
    """
    name, given = parse(name)
    weights = given | weights
    cls = _REGISTRY[runtime.choose(name, _REGISTRY, "method")]
    known = defaults(cls)
    for key, value in weights.items():
        if key not in known:
            runtime.choose(key, known, f"argument of method {cls.registered_name!r}")
        numeric = isinstance(known[key], (int, float)) and not isinstance(known[key], bool)
        if numeric and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"{cls.registered_name}({key}={value!r}): expected a number like {known[key]!r}")
    return cls(**weights)


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


def describe(method: Method) -> str:
    """The method in the form that `create` reads, with only what differs from its defaults."""
    name = method.config["name"]
    known = defaults(type(method))
    changed = [f"{k}={v!r}" for k, v in method.config.items() if k != "name" and v != known[k]]
    return f"{name}({', '.join(changed)})" if changed else name


# ---------------------------------------------------------------------------------------------- the methods


@register("ce")
class CrossEntropy(Method):
    """Cross-entropy to the labels: the student alone."""

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ce": losses.cross_entropy(context.student.logits, context.batch.labels)}


@register("ls")
class LabelSmoothing(Method):
    """Cross-entropy to smoothed labels, Szegedy et al. 2016; alpha is the weight of the uniform part."""

    def __init__(self, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = _within("alpha", alpha, 0, 1)

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ls": losses.label_smoothing(context.student.logits, context.batch.labels, alpha=self.alpha)}


@register("kd")
class KD(Method):
    """Distillation of the teacher's softened logits, Hinton et al. 2015, beside cross-entropy."""

    needs = frozenset({"teacher"})

    def __init__(self, *, ce: float = 0.1, kd: float = 0.9, temperature: float = 4.0) -> None:
        super().__init__()
        self.ce, self.kd, self.temperature = ce, kd, _positive("temperature", temperature)

    def forward(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        logits = context.student.logits
        return {
            "ce": self.ce * losses.cross_entropy(logits, context.batch.labels),
            "kd": self.kd * losses.kd(logits, context.teacher.logits, temperature=self.temperature),
        }


@register("ickd")
class ICKD(Method):
    """In-context distillation: w_ce CE + w_kd KD + w_p PICD + w_n NICD.

    Zhu, Li, Wang 2025, arXiv 2501.07040. Its abstract fixes the idea: retrieve in-context samples from a bank
    of the teacher's features; pull the student's logits to the aggregate of the same-class ones (PICD), push
    them from the different-class ones (NICD). The rest is this project's reading, hence an argument:

    ce, kd, picd, nicd: weights of the terms; a term of weight 0 is not computed, nor what only it needs.
    temperature: of both KL terms.
    positives, negatives: in-context samples of each kind.
    aggregation_temperature: of the softmax of similarities that weighs the positives; None weighs them alike.
    average: aggregate "logits" or "probabilities".
    kappa: temperature of NICD.  form: "infonce", or "hinge" with its margin.
    anchor: NICD's positive: the "teacher"'s logits of the same view, or the positives' "aggregate".
    query: "row" or "view";  per_class: negatives as the best of each other class;  order: "nearest" or "random"
        (see Retrieval).
    """

    def __init__(
        self,
        *,
        ce: float = 0.1,
        kd: float = 0.9,
        picd: float = 0.3,
        nicd: float = 0.5,
        temperature: float = 4.0,
        positives: int = 8,
        negatives: int = 32,
        aggregation_temperature: float | None = 0.05,
        average: str = "logits",
        kappa: float = 0.1,
        form: str = "infonce",
        margin: float = 0.2,
        anchor: str = "teacher",
        query: str = "row",
        per_class: bool = False,
        order: str = "nearest",
    ) -> None:
        super().__init__()
        self.ce, self.kd, self.picd, self.nicd = ce, kd, picd, nicd
        self.temperature, self.kappa = _positive("temperature", temperature), _positive("kappa", kappa)
        if aggregation_temperature is not None:
            _positive("aggregation_temperature", aggregation_temperature)
        self.aggregation_temperature, self.margin = aggregation_temperature, margin
        self.average = runtime.choose(average, ("logits", "probabilities"), "average")
        self.form = runtime.choose(form, ("infonce", "hinge"), "form")
        self.anchor = runtime.choose(anchor, ("teacher", "aggregate"), "anchor")
        if not (ce or kd or picd or nicd):
            raise InputError("ce, kd, picd and nicd are all 0; nothing is left to learn from")
        query = runtime.choose(query, ("row", "view"), "query")
        order = runtime.choose(order, ("nearest", "random"), "order")
        if order == "random" and (query == "view" or per_class):
            raise InputError('order="random" draws once for each row of the bank; leave query="row", per_class=False')
        aggregates = bool(picd or (nicd and anchor == "aggregate"))
        if aggregates or nicd:
            kinds = (
                int(_positive("positives", positives)) * aggregates,
                int(_positive("negatives", negatives)) * bool(nicd),
            )
            self.retrieval = Retrieval(*kinds, query, per_class, order)
        sees_teacher = kd or (nicd and anchor == "teacher") or (self.retrieval and query == "view")
        self.needs = frozenset({"teacher"} if sees_teacher else ()) | frozenset({"retrieval"} if self.retrieval else ())

    def forward(self, context: Context) -> dict[str, Tensor]:
        logits, teacher, near, far = context.student.logits, context.teacher, context.positives, context.negatives
        terms = {}
        if self.ce:
            terms["ce"] = self.ce * losses.cross_entropy(logits, context.batch.labels)
        if self.kd:
            assert teacher is not None
            terms["kd"] = self.kd * losses.kd(logits, teacher.logits, temperature=self.temperature)
        if self.picd:
            assert near is not None
            terms["picd"] = self.picd * losses.picd(
                logits, near.logits, self._weights(near), temperature=self.temperature, average=self.average
            )
        if self.nicd:
            assert far is not None
            anchor = teacher.logits if self.anchor == "teacher" and teacher else self._aggregate(near)
            terms["nicd"] = self.nicd * losses.nicd(
                logits, anchor, far.logits, far.mask, kappa=self.kappa, form=self.form, margin=self.margin
            )
        return terms

    def _weights(self, near: InContext) -> Tensor:
        return losses.aggregation_weights(near.similarity, near.mask, temperature=self.aggregation_temperature)

    def _aggregate(self, near: InContext | None) -> Tensor:
        assert near is not None
        weights = self._weights(near)
        return losses.aggregate(near.logits, weights, temperature=self.temperature, average=self.average)[0]


@register("picd")
class PICD(ICKD):
    """The positive half of IC-KD alone, beside cross-entropy; see ICKD."""

    def __init__(self, *, ce: float = 0.1, kd: float = 0.0, picd: float = 0.9, nicd: float = 0.0, **choices: Any):
        super().__init__(ce=ce, kd=kd, picd=picd, nicd=nicd, **choices)


@register("nicd")
class NICD(ICKD):
    """The negative half of IC-KD alone, beside cross-entropy; see ICKD."""

    def __init__(self, *, ce: float = 1.0, kd: float = 0.0, picd: float = 0.0, nicd: float = 1.0, **choices: Any):
        super().__init__(ce=ce, kd=kd, picd=picd, nicd=nicd, **choices)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise InputError(f"{name}={value} must be above 0")
    return value


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise InputError(f"{name}={value} must lie between {low} and {high}")
    return value
