"""In-context distillation: the losses of IC-KD, each choice of this project's reading an argument."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ickd_lib import losses, runtime
from ickd_lib.memory import InContext
from ickd_lib.methods.base import Context, Method, Retrieval, positive, register
from ickd_lib.runtime import InputError


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
        self.temperature, self.kappa = positive("temperature", temperature), positive("kappa", kappa)
        if aggregation_temperature is not None:
            positive("aggregation_temperature", aggregation_temperature)
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
                int(positive("positives", positives)) * aggregates,
                int(positive("negatives", negatives)) * bool(nicd),
            )
            self.retrieval = Retrieval(*kinds, query, per_class, order)
        sees_teacher = kd or (nicd and anchor == "teacher") or (self.retrieval and query == "view")
        self.needs = frozenset({"teacher"} if sees_teacher else ()) | frozenset({"retrieval"} if self.retrieval else ())

    def forward(self, context: Context) -> dict[str, Tensor]:
        logits, teacher, near, far = context.student.logits, context.teacher, context.positives, context.negatives
        terms = {}
        if self.ce:
            terms["ce"] = self.ce * losses.cross_entropy(logits, context.batch.targets)
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
