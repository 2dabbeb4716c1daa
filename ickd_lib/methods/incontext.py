"""In-context distillation; `paradigms` has its forms with one term alone, online, and without a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.memory import NEGATIVES, POSITIVES, InContext
from ickd_lib.methods.base import Method
from ickd_lib.methods.context import Context, Order, Retrieval, Source, TargetSource
from ickd_lib.methods.limits import limited
from ickd_lib.methods.registry import register
from ickd_lib.runtime import InputError, notice
from ickd_lib.runtime.arguments import Count, Natural, NotNegative, Positive, Share
from ickd_lib.tasks import Samples

Anchor = Literal["teacher", "aggregate"]


@register("ickd")
class ICKD(Method):
    """In-context distillation: cross-entropy, KD, and PICD and NICD on retrieved samples, Zhu, Li, Wang 2025.

    Source: arXiv 2501.07040. The loss is w_ce CE + w_kd KD + w_p PICD + w_n NICD. The abstract of the paper states the
    idea: in-context samples are retrieved from a memory bank of the teacher's features; PICD matches the student's
    logits to the aggregate of the samples of the same class, and NICD separates them from samples of other classes.
    Everything else is this project's interpretation, and each choice is an argument:

    ce, kd, picd, nicd: weights of the terms. A term of weight 0 is not computed, nor is what only that term needs.
    temperature: temperature of both KL terms.
    positives, negatives: number of in-context samples of each kind. At most a third of the rows of the bank become
        negatives, so that these are near the query in a small data set too, and never more than there are rows outside
        the most frequent class; with per_class, at most one sample of each other class. Positives are at most the
        other rows of the smallest class. A note is printed if a number is smaller than requested.
    aggregation_temperature: temperature of the softmax over similarities that weights the positives; None gives equal
        weights.
    average: whether to aggregate "logits" or "probabilities".
    kappa: temperature of NICD.
    form: "infonce" or "hinge"; or "relational", whose target is the teacher's softmax over the cosines with the pool of
        the sample itself, its positives and its negatives (`losses.relational_nicd`). All `positives` are in this pool,
        also if no other term uses them; positives=0 leaves them out, which only NICD without PICD allows.
    margin: margin of the hinge form.
    kappa_teacher: temperature of the teacher's softmax in the relational form.
    anchor: the positive of NICD: "teacher" for the target source's logits of the same view, or "aggregate" for the
        aggregate of the positives.
    query, per_class, order, redraw: see `Retrieval`.
    negatives_order: see `Retrieval`; by default the same as `order`.
    source: the source of targets. "teacher": a pretrained teacher (offline). "peers": the peers, each with a bank that
        is filled during training, with the mean of the terms over them (online). "self": the student's own earlier
        outputs (teacher-free).
    warmup: share of the training before PICD and NICD start.
    momentum: weight of the old content when a row in the bank of a student with this method is written again.
    residual: λ of KD's target z^T + λ (z̄ - z^T_row): the teacher's logits of the view, plus λ times the difference
        between the aggregate of the positives and the sample's own row in the bank (`losses.residual_target`). With 0
        it is the usual target z^T.
    gate: strength, from 0 to 1, of a gate on PICD: the term of a sample is multiplied by 1 - gate + gate H / log C,
        where H is the entropy of the source's prediction for the view (`losses.entropy_gate`). Certain predictions,
        which are most of those of an accurate teacher, then count less, so that PICD may need a larger weight.
    dynamic: whether the teacher's rows are written again in training, each with the teacher's output for the view of
        the last visit; see `Retrieval`. With images that are mixed, the rows then contain outputs for mixed images.
    limit: largest norm of NICD's gradient, as a multiple of that of all other terms of the loss together, those of
        combined methods included; None for no limit. Both are gradients at the student's logits of a batch (in
        segmentation at the network's whole map, in detection at those of all proposals or anchors). The gradient of a
        cosine is large where logits are small, as at the start of a training and with few classes; without a limit,
        NICD then prevents the other terms from being learned. The value of the term is not changed.
    corrected: whether the source's logits are corrected by the labels (`losses.corrected`), so that a source that is
        often wrong does not teach its mistakes: where the most probable class of an output or of a positive is not its
        label, these two logits are exchanged, and negatives for which the source predicts the sample's own class are
        left out. Outputs for mixed images are not corrected.

    In segmentation, KD and PICD act on every pixel, PICD with the aggregate of the pixel's region, and NICD acts on the
    regions. In detection, KD acts on all proposals, and PICD and NICD on those that are matched to an annotated box.
    With `residual`, KD acts on the latter alone.
    """

    separable = True
    before = MappingProxyType({"limit": None, "corrected": False})
    paper = "Zhu, Li & Wang 2025, arXiv 2501.07040"

    def __init__(
        self,
        *,
        ce: NotNegative = 0.1,
        kd: NotNegative = 0.9,
        picd: NotNegative = 0.3,
        nicd: NotNegative = 5.0,
        temperature: Positive = 3.0,
        positives: Natural = POSITIVES,
        negatives: Count = NEGATIVES,
        aggregation_temperature: Positive | None = 0.05,
        average: Literal["logits", "probabilities"] = "logits",
        kappa: Positive = 0.1,
        form: Literal["infonce", "hinge", "relational"] = "infonce",
        margin: float = 0.2,
        anchor: Anchor = "teacher",
        query: Literal["row", "view"] = "row",
        per_class: bool = False,
        order: Order = "nearest",
        negatives_order: Order | Literal[""] = "",
        redraw: bool = False,
        source: Source = "teacher",
        warmup: Share = 0.0,
        momentum: Share = 0.0,
        kappa_teacher: Positive = 0.03,
        residual: float = 0.0,
        gate: Share = 0.0,
        dynamic: bool = False,
        limit: NotNegative | None = 1.0,
        corrected: bool = True,
    ) -> None:
        super().__init__()
        self.ce, self.kd, self.picd, self.nicd = ce, kd, picd, nicd
        self.temperature, self.kappa = temperature, kappa
        self.aggregation_temperature, self.margin = aggregation_temperature, margin
        self.average, self.form, self.kappa_teacher = average, form, kappa_teacher
        self.residual, self.gate, self.corrected = residual, gate, corrected
        self.anchor, self.source, self.momentum = anchor, source, momentum
        if not (ce or kd or picd or nicd):
            raise InputError("ce, kd, picd and nicd are all 0; give at least one of them a weight")
        self.unlabelled = self.source == "teacher" and not dynamic
        if momentum and self.source == "teacher":
            raise InputError(
                f"momentum={momentum} is for a bank that is written during training; with source='teacher' give 0"
            )
        aggregates = bool(picd or residual or (nicd and anchor == "aggregate"))
        pooled = bool(nicd) and form == "relational"  # the positives are in NICD's pool
        if not positives and (aggregates or not pooled):
            raise InputError("positives=0 must be 1 or more, except for NICD with form='relational' alone")
        request = Retrieval(
            positives * (aggregates or pooled),
            negatives * bool(nicd),
            query if self.source == "teacher" else "view",
            per_class,
            order,
            negatives_order or order,
            redraw,
            self.source,
            warmup,
            unit_negatives=True,
            own=bool(residual),
            dynamic=dynamic,
        )
        _check_orders(request)
        self._check_variants(bool(aggregates or nicd), dynamic)
        self.retrieval = request if aggregates or nicd else None
        needs = set()
        if self.source != "teacher":
            needs.add({"peers": "peers", "self": "earlier"}[self.source])
        elif kd or gate or dynamic or (nicd and anchor == "teacher") or (self.retrieval and query == "view"):
            needs.add("teacher")
        self.needs = frozenset(needs)
        if nicd and limit is not None:
            self.limits = {"nicd": limit}

    def _check_variants(self, retrieves: bool, dynamic: bool) -> None:
        """Raise InputError if an argument would have no effect, or has no meaning beside another one."""
        if self.residual and (not self.kd or self.source != "teacher"):
            raise InputError(
                f"residual={self.residual} changes the target of KD from a teacher; give kd a weight, and leave source "
                "at 'teacher'"
            )
        if self.gate and not self.picd:
            raise InputError(f"gate={self.gate} is a factor of PICD; give picd a weight")
        if self.form == "relational" and self.anchor != "teacher":
            raise InputError(
                "form='relational' compares the samples with the target source's own logits; give anchor='teacher'"
            )
        if dynamic and (self.source != "teacher" or not retrieves):
            raise InputError(
                "dynamic=True is for in-context samples from a teacher's bank (those of students are always written in "
                "training); leave source at 'teacher', and give picd, nicd or residual a weight"
            )

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self._limit_positives()
        spec = self.retrieval
        if self.nicd and self.form != "relational" and self.bank_classes == 1:
            raise InputError(
                f"{self.config['name']} needs negatives of other classes, and all samples have one class; give nicd=0"
            )
        if not spec or spec.negatives_order == "class":
            return
        if spec.source == "teacher":
            rows = self.bank_rows or rows
        most, why = rows // 3, f"at most a third of the {rows} samples"
        if spec.per_class:
            most = (self.bank_classes or num_classes) - 1
            why = f"at most one of each of the {most} other classes"
        elif spec.source == "teacher" and 0 < self.bank_others < most:
            most, why = self.bank_others, f"only {self.bank_others} samples are not of the most frequent class"
        most = max(1, most)
        if spec.negatives > most:
            notice(f"{self.config['name']} uses {most} negatives instead of {spec.negatives}: {why}")
            self.retrieval = spec = replace(spec, negatives=most)
        if self.form == "infonce" and spec.negatives:
            self.chance = {"nicd": self.nicd * math.log(1 + spec.negatives)}

    def _limit_positives(self) -> None:
        """Request as many positives as each class has, and raise InputError if a class has none."""
        spec, most = self.retrieval, self.bank_same
        if not spec or spec.source != "teacher" or spec.order == "class" or most is None or spec.positives <= most:
            return
        name = self.config["name"]
        if not most:
            changes = {"residual=0": self.residual, "anchor='teacher'": self.nicd and self.anchor == "aggregate"}
            changes |= {"picd=0": self.picd, "gate=0": self.gate}
            changes |= {"positives=0": self.nicd and self.form == "relational"}
            without = ", ".join(change for change, needed in changes.items() if needed)
            raise InputError(
                f"{name} needs positives, and a class has a single image, without another one to be its positive; use "
                f"more images of each class, or ickd with {without}, which needs no positives"
            )
        notice(f"{name} uses {most} positives instead of {spec.positives}: a class has only {most + 1} samples")
        self.retrieval = replace(spec, positives=most)

    def forward(self, context: Context) -> dict[str, Tensor]:
        return limited(self.unlimited(context), self.limits, context)

    def unlimited(self, context: Context) -> dict[str, Tensor]:
        sources = context.sources(self.source)
        if self.corrected:
            sources = [_corrected(one, context.student.labels) for one in sources]
        terms = {}
        if self.ce:
            terms["ce"] = self.ce * context.supervised
        for name, term in (("kd", self._kd), ("picd", self._picd), ("nicd", self._nicd)):
            if weight := getattr(self, name):
                terms[name] = weight * torch.stack([term(context.student, source) for source in sources]).mean()
        return terms

    def _kd(self, student: Samples, source: TargetSource) -> Tensor:
        output, near = source.output, source.positives
        if self.residual and near is not None:
            assert near.own is not None
            parts = self._aggregate(near), near.own, near.mask.any(1)
            if student.pixels is not None:
                student, output = student.finest, output.finest
                parts = parts[0][student.key], parts[1][student.key], parts[2][student.key]
            target = losses.residual_target(self._outputs(output), *parts, residual=self.residual)
        else:
            if student.pixels is None or output.pixels is not None:  # a student's own bank has no pixels
                student, output = student.finest, output.finest
            target = self._outputs(output)
        return losses.kd(student.logits, target, temperature=self.temperature)

    def _picd(self, student: Samples, source: TargetSource) -> Tensor:
        near = source.positives
        if near is None:
            return 0 * student.logits.sum()
        pixels = student.finest if student.pixels else None
        return losses.picd(
            pixels.logits if pixels else student.logits,
            near.logits,
            self._weights(near),
            temperature=self.temperature,
            average=self.average,
            gate=losses.entropy_gate(source.output.logits, strength=self.gate) if self.gate else None,
            query=pixels.key if pixels else None,
        )

    def _nicd(self, student: Samples, source: TargetSource) -> Tensor:
        logits, near, far = student.logits, source.positives, source.negatives
        if far is None:
            return 0 * logits.sum()
        if self.form == "relational":
            return self._relational(logits, self._outputs(source.output), near, far)
        if self.anchor == "teacher":
            anchor, mask = self._outputs(source.output), far.mask
        else:
            assert near is not None
            # A sample without a valid positive has no aggregate, so all its negatives are masked.
            anchor, mask = self._aggregate(near), far.mask & near.mask.any(1, keepdim=True)
        return losses.nicd(
            logits,
            anchor,
            far.logits,
            mask,
            kappa=self.kappa,
            form=self.form,
            margin=self.margin,
            normalised=far.unit,
        )

    def _relational(self, logits: Tensor, own: Tensor, near: InContext | None, far: InContext) -> Tensor:
        pooled = near if self.retrieval and self.retrieval.positives else None
        return losses.relational_nicd(
            logits,
            own,
            far.logits,
            far.mask,
            positive_logits=pooled.logits if pooled else None,
            positive_mask=pooled.mask if pooled else None,
            kappa=self.kappa,
            kappa_teacher=self.kappa_teacher,
            normalised=far.unit,
        )

    def _outputs(self, samples: Samples) -> Tensor:
        """Return the logits of samples of a target source, corrected by the labels if the method does so."""
        if not self.corrected or samples.soft is not None:
            return samples.logits
        return losses.corrected(samples.logits, samples.labels)

    def _weights(self, near: InContext) -> Tensor:
        return losses.aggregation_weights(near.similarity, near.mask, temperature=self.aggregation_temperature)

    def _aggregate(self, near: InContext) -> Tensor:
        weights = self._weights(near)
        return losses.aggregate(near.logits, weights, temperature=self.temperature, average=self.average)[0]


def _corrected(source: TargetSource, labels: Tensor) -> TargetSource:
    """Correct the positives of samples by their labels, and leave out the negatives predicted as the sample's class."""
    near, far = source.positives, source.negatives
    if near is not None:
        own = near.own if near.own is None else losses.corrected(near.own, labels)
        near = replace(near, logits=losses.corrected(near.logits, labels[:, None].expand(near.mask.shape)), own=own)
    if far is not None:
        own = labels.clamp(min=0)[:, None, None].expand(-1, far.logits.shape[1], 1)
        # On a CPU this takes a seventh of the time of argmax.
        predicted = (far.logits.gather(2, own) == far.logits.amax(2, keepdim=True)).squeeze(2) & (labels >= 0)[:, None]
        far = replace(far, mask=far.mask & ~predicted)
    return replace(source, positives=near, negatives=far)


def _check_orders(spec: Retrieval) -> None:
    """Raise InputError if the bank cannot provide in-context samples in the requested orders."""
    orders = {spec.order, spec.negatives_order}
    if spec.redraw and "random" not in orders:
        raise InputError("redraw=True is for random in-context samples; give order='random' as well")
    if spec.redraw and spec.source != "teacher":
        raise InputError("a bank that is written during training is drawn from anew in every step; leave redraw out")
    if orders == {"nearest"}:
        return
    if spec.per_class:
        raise InputError("per_class=True needs the nearest samples; leave order at 'nearest', or per_class at False")
    if spec.source == "teacher" and spec.query == "view":
        raise InputError("query='view' searches for the nearest samples; leave order at 'nearest', or query at 'row'")
    if spec.source != "teacher" and (orders != {"random"}):
        raise InputError(
            "a bank that is written during training has no class means, and positives and negatives share one order; "
            "give order='nearest' or order='random', without negatives_order"
        )
