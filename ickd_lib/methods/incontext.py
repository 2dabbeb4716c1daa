"""In-context distillation, offline, online and without a teacher; each choice of this project's reading an argument."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ickd_lib import losses, runtime
from ickd_lib.memory import InContext
from ickd_lib.methods.base import SOURCES, Context, Guide, Method, Retrieval, positive, register, within
from ickd_lib.runtime import InputError


@register("ickd")
class ICKD(Method):
    """In-context distillation: w_ce CE + w_kd KD + w_p PICD + w_n NICD.

    Zhu, Li, Wang 2025, arXiv 2501.07040. Its abstract fixes the idea: retrieve in-context samples from a bank
    of the teacher's features; pull the student's logits to the aggregate of the same-class ones (PICD), push
    them from the different-class ones (NICD). The rest is this project's reading, hence an argument:

    ce, kd, picd, nicd: weights of the terms; a term of weight 0 is not computed, nor what only it needs.
    temperature: of both KL terms.
    positives, negatives: in-context samples of each kind; of negatives at most a third of the images, so that they are
        near ones among few images too, and with per_class at most one of each other class.
    aggregation_temperature: of the softmax of similarities that weighs the positives; None weighs them alike.
    average: aggregate "logits" or "probabilities".
    kappa: temperature of NICD.  form: "infonce", or "hinge" with its margin.
    anchor: NICD's positive: the "teacher"'s logits of the same view, or the positives' "aggregate".
    query: "row" or "view";  per_class: negatives as the best of each other class;  order: "nearest" or "random"
        (see Retrieval).
    source: who teaches: a pretrained "teacher" (offline); the "peers", each with the bank that it fills as it trains,
        the mean over them (online); or the student's own earlier "self" (teacher-free). Whoever it is takes the
        teacher's place above.
    warmup: share of the training before PICD and NICD start.
    momentum: how much of a row stays when the bank of a student with this method is written again.
    """

    def __init__(
        self,
        *,
        ce: float = 0.1,
        kd: float = 0.9,
        picd: float = 0.3,
        nicd: float = 5.0,
        temperature: float = 4.0,
        positives: int = 8,
        negatives: int = 128,
        aggregation_temperature: float | None = 0.05,
        average: str = "logits",
        kappa: float = 0.1,
        form: str = "infonce",
        margin: float = 0.2,
        anchor: str = "teacher",
        query: str = "row",
        per_class: bool = False,
        order: str = "nearest",
        source: str = "teacher",
        warmup: float = 0.0,
        momentum: float = 0.0,
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
        self.source, self.momentum = runtime.choose(source, SOURCES, "source"), within("momentum", momentum, 0, 1)
        if self.source != "teacher":
            query = "view"
        elif momentum:
            raise InputError(f"momentum={momentum} is for a bank in training; with source='teacher' leave it at 0")
        if order == "random" and (per_class or (query == "view" and self.source == "teacher")):
            raise InputError('order="random" draws once for each row of the bank; leave query="row", per_class=False')
        aggregates = bool(picd or (nicd and anchor == "aggregate"))
        if aggregates or nicd:
            self.retrieval = Retrieval(
                int(positive("positives", positives)) * aggregates,
                int(positive("negatives", negatives)) * bool(nicd),
                query,
                per_class,
                order,
                self.source,
                within("warmup", warmup, 0, 1),
            )
        needs = {"retrieval"} if self.retrieval else set()
        if self.source != "teacher":
            needs.add({"peers": "peers", "self": "earlier"}[self.source])
        elif kd or (nicd and anchor == "teacher") or (self.retrieval and query == "view"):
            needs.add("teacher")
        self.needs = frozenset(needs)

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if spec := self.retrieval:
            most = num_classes - 1 if spec.per_class else max(1, rows // 3)
            self.retrieval = replace(spec, negatives=min(spec.negatives, most))

    def forward(self, context: Context) -> dict[str, Tensor]:
        guides = context.guides(self.source)
        logits, terms = context.student.logits, {}
        if self.ce:
            terms["ce"] = self.ce * losses.cross_entropy(logits, context.batch.targets)
        for name, term in (("kd", self._kd), ("picd", self._picd), ("nicd", self._nicd)):
            if weight := getattr(self, name):
                terms[name] = weight * torch.stack([term(logits, guide) for guide in guides]).mean()
        return terms

    def _kd(self, logits: Tensor, guide: Guide) -> Tensor:
        return losses.kd(logits, guide.output.logits, temperature=self.temperature)

    def _picd(self, logits: Tensor, guide: Guide) -> Tensor:
        near = guide.positives
        if near is None:
            return 0 * logits.sum()
        return losses.picd(logits, near.logits, self._weights(near), temperature=self.temperature, average=self.average)

    def _nicd(self, logits: Tensor, guide: Guide) -> Tensor:
        near, far = guide.positives, guide.negatives
        if far is None:
            return 0 * logits.sum()
        if self.anchor == "teacher":
            anchor, mask = guide.output.logits, far.mask
        else:
            assert near is not None  # without a positive there is nothing to be drawn to, and nothing is added
            anchor, mask = self._aggregate(near), far.mask & near.mask.any(1, keepdim=True)
        return losses.nicd(logits, anchor, far.logits, mask, kappa=self.kappa, form=self.form, margin=self.margin)

    def _weights(self, near: InContext) -> Tensor:
        return losses.aggregation_weights(near.similarity, near.mask, temperature=self.aggregation_temperature)

    def _aggregate(self, near: InContext) -> Tensor:
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


@register("ickd_online")
class OnlineICKD(ICKD):
    """In-context distillation between students that train together from scratch; see ICKD."""

    def __init__(
        self,
        *,
        ce: float = 1.0,
        kd: float = 1.0,
        picd: float = 1.0,
        nicd: float = 0.1,
        temperature: float = 4.0,
        negatives: int = 32,
        source: str = "peers",
        warmup: float = 0.1,
        momentum: float = 0.5,
        **choices: Any,
    ) -> None:
        super().__init__(
            ce=ce,
            kd=kd,
            picd=picd,
            nicd=nicd,
            temperature=temperature,
            negatives=negatives,
            source=source,
            warmup=warmup,
            momentum=momentum,
            **choices,
        )


@register("ickd_self")
class SelfICKD(OnlineICKD):
    """In-context distillation from the student's own earlier features and logits, without a teacher; see ICKD."""

    def __init__(self, *, kd: float = 0.0, anchor: str = "aggregate", source: str = "self", **choices: Any) -> None:
        super().__init__(kd=kd, anchor=anchor, source=source, **choices)
