"""Gradients of a method's loss terms with respect to a student's logits, and their parts from in-context samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import losses
from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank, Neighbours
from ickd_lib.methods import Context, InContextPair, Method, Retrieval, create, describe
from ickd_lib.methods.incontext import ICKD
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples

NODES = 8  # of the Gauss-Legendre quadrature between the student's logits and the aggregate
ROLES = ("positive", "negative", "own")  # of a bank row in the in-context terms of a training sample


def attributable(method: str | Method) -> bool:
    """Return whether the loss of a sample follows from its own logits, the bank and the label.

    Args:
        method: a method, or its name with arguments.
    """
    method = create(method) if isinstance(method, str) else method
    bank_only = all(
        spec.source == "teacher" and {spec.order, spec.negatives_order} <= {"nearest", "random"} and not spec.redraw
        for spec in method.retrievals
    )
    dynamic = any(spec.dynamic for spec in method.retrievals)
    learnt = next(method.parameters(), None) is not None  # such as the temperature of CTKD, which a run does not keep
    return method.separable and method.needs <= {"teacher"} and bank_only and not dynamic and not learnt


def require_attributable(method: Method) -> None:
    """Raise InputError if the method is not `attributable`."""
    if not attributable(method):
        raise InputError(
            f"the loss of {describe(method)} compares more than a sample's logits with its own targets and retrieved "
            "samples; contributions are defined for methods such as ce, kd, dkd and ickd"
        )


@dataclass(frozen=True)
class Retrieved:
    """The in-context samples of N training samples for one request, by their rows in the bank.

    near, far: positives and negatives, [N, k+] and [N, k-].
    own: row of each training sample itself, shape [N].
    """

    near: Neighbours
    far: Neighbours
    own: Tensor

    @classmethod
    def of(cls, bank: MemoryBank, spec: Retrieval, keys: Tensor, seed: int) -> Retrieved:
        """Return the in-context samples that training retrieves for the samples with these keys.

        Args:
            bank: the teacher's bank.
            spec: the request; a search by view is replaced by that of the images without augmentation.
            keys: keys of the training samples, shape [N].
            seed: the student's seed, on which random samples depend.
        """
        own = bank.rows(keys)
        some = own.unique()
        place = torch.searchsorted(some, own)
        rows = None if len(some) == len(bank) else some
        near, far = (one[place] for one in spec.tables(bank, seed=seed, rows=rows, allow_missing=True))
        valid = [one.mask & bank.filled[own, None] for one in (near, far)]
        return cls(replace(near, mask=valid[0]), replace(far, mask=valid[1]), own)

    def samples(self, bank: MemoryBank, like: Tensor) -> InContextPair:
        """Return the positives and negatives with their logits, in the data type of `like`."""
        logits, none = bank.logits.to(like), like.new_empty(*self.near.rows.shape, 0)
        near, far = (
            InContext(bank.index[one.rows], one.similarity.to(like), logits[one.rows], none, one.mask)
            for one in (self.near, self.far)
        )
        return replace(near, own=logits[self.own]), far


def term_gradients(
    method: Method,
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    retrieved: Mapping[Retrieval, InContextPair],
    *,
    epoch: int = 1,
    epochs: int = 1,
) -> dict[str, Tensor]:
    """Compute the gradient of each weighted loss term of N samples with respect to their logits.

    Args:
        method: a method for which `require_attributable` raises no error.
        logits: the student's logits, shape [N, C].
        labels: shape [N].
        teacher_logits: the teacher's logits of the same samples, shape [N, C]; None if the method needs none.
        retrieved: positives and negatives for each request of the method.
        epoch, epochs: the epoch, counted from 1, at whose end the loss is computed, and their number.
    Returns:
        For each term the gradient of each sample's own loss, shape [N, C].
    """
    with torch.enable_grad():
        logits = logits.detach().clone().requires_grad_()
        empty, none = logits.new_empty(len(labels), 0), torch.full_like(labels, -1)
        student = Samples(logits, empty, labels, none, none)
        context = Context(
            Batch(empty, labels, none, none),
            student,
            losses.cross_entropy(logits, labels),
            teacher=None if teacher_logits is None else replace(student, logits=teacher_logits.detach()),
            retrieved=retrieved,
            progress=epoch / epochs,
            epoch=epoch - 1,
            epochs=epochs,
        )
        terms = method(context.seen_by(method))
        found = {}
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
            found[name] = torch.zeros_like(logits) if gradient is None else gradient * len(logits)  # terms are means
    return found


def limit_scale(method: ICKD, *samples: Any, **epochs: Any) -> float:
    """Return the factor by which the limit of a method scales the gradient of NICD, with the samples as one batch.

    Args:
        method, samples, epochs: the arguments of `term_gradients`.
    """
    if not method.limits:
        return 1.0
    free = copy.copy(method)
    free.limits = {}
    limited, whole = (term_gradients(one, *samples, **epochs)["nicd"].norm() for one in (method, free))
    return float(limited / whole) if whole > 0 else 1.0


class Shares:
    """The gradient of an in-context method's PICD and NICD terms as a sum over the bank rows that act in them.

    NICD depends on the student's logits z through cosines c_j = cos(z, a_j) alone, so its gradient is
    Σ_j ∂L/∂c_j (â_j - c_j ẑ) / ‖z‖, a sum over the sample's own row and its negatives (with form="relational" also its
    positives). For "infonce", ∂L/∂c_j of a negative is its share of the denominator, divided by κ. PICD's gradient is
    τ (σ(z/τ) - σ(z̄/τ)). The difference is integrated along the line from z to the aggregate z̄ = Σ_k w_k z_k, which
    makes it linear in the positives: the share of positive k is -w_k ∫ J (z_k - z) dα, where J is the Jacobian of the
    softmax (integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365).

    Args:
        method: an in-context method with a teacher's bank.
        bank: the bank.
        retrieved: the in-context samples of N training samples.
        logits: the student's logits of these, shape [N, C].
        labels: their labels, shape [N]; -1 for a sample without one.
        scale: factor of NICD's gradient; see `limit_scale`.
    """

    def __init__(
        self,
        method: ICKD,
        bank: MemoryBank,
        retrieved: Retrieved,
        logits: Tensor,
        labels: Tensor,
        scale: float = 1.0,
    ) -> None:
        self.method, self.retrieved, self.logits, self.scale = method, retrieved, logits, scale
        self.near, self.far, self.own = retrieved.near, retrieved.far, retrieved.own
        self.rows = bank.logits.to(logits)  # the logits of the samples that act, by the numbers in near, far and own
        if method.corrected:  # positives and own rows are corrected, and negatives are not, but some are left out
            other = self.rows.argmax(1)[self.far.rows] != labels[:, None]
            self.far = replace(self.far, rows=self.far.rows + len(self.rows), mask=self.far.mask & other)
            as_given = len(self.rows) * (labels < 0).long()  # nothing is corrected without a label
            self.near = replace(self.near, rows=self.near.rows + as_given[:, None])
            self.own = self.own + as_given
            self.rows = torch.cat([losses.corrected(self.rows, bank.labels), self.rows])
        self.weights = losses.aggregation_weights(
            self.near.similarity.to(logits), self.near.mask, temperature=method.aggregation_temperature
        )
        self.unit = F.normalize(self.rows, dim=1)
        self.pool = self._cosines() if method.nicd else None

    def _cosines(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return rows, length and cosine of the vectors that NICD compares with z, and ∂L/∂c of each, [N, J] each.

        The columns are: the sample's own row or, with anchor="aggregate", the parts of the aggregate that its positives
        make up; then the negatives, and in the relational form the positives.
        """
        method, near, far, own = self.method, self.near, self.far, self.own
        student, weight = F.normalize(self.logits, dim=1), method.nicd * self.scale

        def cosine(rows: Tensor) -> Tensor:
            return torch.cat(
                [
                    (self.unit[r] @ s[:, :, None]).squeeze(2)
                    for r, s in zip(rows.split(1024), student.split(1024), strict=True)
                ]
            )

        anchor, length = own[:, None], torch.ones_like(self.logits[:, :1])
        mask = far.mask
        if method.anchor == "aggregate":
            if method.average != "logits":
                raise InputError("anchor='aggregate' has parts of single positives with average='logits' only")
            logits = self.rows
            mean = (self.weights[..., None] * logits[near.rows]).sum(1).norm(dim=1, keepdim=True)
            anchor, length = near.rows, self.weights * logits.norm(dim=1)[near.rows] / mean.clamp(min=1e-12)
            mask = mask & near.mask.any(1, keepdim=True)
        first = length * cosine(anchor)
        positive, negative = first.sum(1, keepdim=True), cosine(far.rows)
        rows, cosines = [anchor, far.rows], [first, negative]
        if method.form == "hinge":
            active = ((negative - positive + method.margin > 0) & mask).to(negative)
            one = active / mask.sum(1, keepdim=True).clamp(min=1)
            slopes = [-one.sum(1, keepdim=True).expand_as(first), one]
        else:
            scores, allowed = [positive, negative], [torch.ones_like(mask[:, :1]), mask]
            if method.form == "relational" and method.retrieval and method.retrieval.positives:
                rows.append(near.rows)
                cosines.append(cosine(near.rows))
                scores.append(cosines[-1])
                allowed.append(near.mask)
            valid = torch.cat(allowed, 1)

            def softmax(values: Tensor) -> Tensor:
                return values.masked_fill(~valid, -torch.inf).softmax(1)

            share = softmax(torch.cat(scores, 1) / method.kappa)
            target = torch.zeros_like(share)
            if method.form == "relational":
                of_teacher = [(self.unit[r] @ self.unit[own][:, :, None]).squeeze(2) for r in rows]
                target = softmax(torch.cat(of_teacher, 1) / method.kappa_teacher)
            else:
                target[:, 0] = 1
            slope = (share - target) / method.kappa
            slopes = [slope[:, :1].expand_as(first), slope[:, 1:]]
        lengths = [length, *(torch.ones_like(one) for one in cosines[1:])]
        return torch.cat(rows, 1), torch.cat(lengths, 1), torch.cat(cosines, 1), weight * torch.cat(slopes, 1)

    def along(self, direction: Tensor) -> dict[str, Tensor]:
        """Return the inner product of each share with a vector of logits.

        Args:
            direction: shape [C].
        Returns:
            The inner products by the role of the row: "positive" [N, k+], "negative" [N, k-], and "own", the sample's
            own row as anchor of NICD, [N, 1].
        """
        near, far = self.near, self.far
        found = {
            "positive": self._positives(direction) if self.method.picd else self.logits.new_zeros(near.rows.shape),
            "negative": self.logits.new_zeros(far.rows.shape),
            "own": self.logits.new_zeros(len(self.logits), 1),
        }
        if self.pool is not None:
            rows, length, cosine, slope = self.pool
            student = F.normalize(self.logits, dim=1) @ direction
            inner = slope * (length * (self.unit @ direction)[rows] - cosine * student[:, None])
            inner = inner / self.logits.norm(dim=1, keepdim=True).clamp(min=1e-12)
            k = far.rows.shape[1]
            first = inner.shape[1] - k if self.method.form != "relational" else 1
            found["positive" if self.method.anchor == "aggregate" else "own"] += inner[:, :first]
            found["negative"] = inner[:, first : first + k]
            if inner.shape[1] > first + k:
                found["positive"] = found["positive"] + inner[:, first + k :]
        return found

    def _positives(self, direction: Tensor) -> Tensor:
        """Return the inner product of each positive's share of PICD's gradient with a vector of logits, [N, k+]."""
        method, z, near = self.method, self.logits, self.near
        tau, found = method.temperature, []
        logits = self.rows
        factor = torch.full_like(z[:, 0], method.picd)
        if method.gate:
            factor = factor * losses.entropy_gate(logits[self.own], strength=method.gate)
        for some in torch.arange(len(z), device=z.device).split(1024):
            of, own, weights = logits[near.rows[some]], z[some], self.weights[some]
            if method.average == "probabilities":
                difference = (own / tau).softmax(1)[:, None] - (of / tau).softmax(2)
                inner = tau * weights * (difference @ direction)
            else:
                target = (weights[..., None] * of).sum(1)
                slope = torch.zeros_like(own)
                for node, share in zip(*np.polynomial.legendre.leggauss(NODES), strict=True):
                    at = own + (node + 1) / 2 * (target - own)
                    p = (at / tau).softmax(1)
                    slope += share / 2 * p * (direction - (p @ direction)[:, None])
                inner = -weights * ((of - own[:, None]) @ slope[:, :, None]).squeeze(2)
                whole = tau * ((own / tau).softmax(1) - (target / tau).softmax(1)) @ direction
                inner += weights * (whole - inner.sum(1))[:, None]  # the error of the quadrature
            found.append(factor[some, None] * inner)
        return torch.cat(found)
