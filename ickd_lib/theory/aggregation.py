"""The error of a target that is the weighted mean of the neighbours' targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ickd_lib.runtime import InputError
from ickd_lib.theory.toy import ToyTeacher


def neighbour_weights(
    similarity: Tensor, k: int, *, temperature: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k most similar other samples of each sample, and their weights softmax(s_ij / τ_a).

    Args:
        similarity: s, [n, n].
        k: number of neighbours; at most n − 1, and with `labels` at most the size of the smallest class less 1.
        temperature: τ_a; with infinity all weights are equal.
        labels: class of each sample, [n]. If given, only samples of the same label are neighbours.
    Returns:
        The positions of the neighbours [n, k] and their weights [n, k]. Each row of weights sums to 1; its effective
        number of neighbours k_eff is 1 / Σ_j w_ij².
    Raises:
        InputError: k is less than 1, or a sample has fewer than k neighbours.
    """
    largest = len(similarity) - 1 if labels is None else int(labels.unique(return_counts=True)[1].min()) - 1
    if not 1 <= k <= largest:
        raise InputError(f"k={k} was given; use k from 1 to {largest}, the number of neighbours of every sample here")
    allowed = similarity.clone().fill_diagonal_(-math.inf)
    if labels is not None:
        allowed.masked_fill_(labels[:, None] != labels, -math.inf)
    best, index = allowed.topk(k, dim=1)
    return index, (best / temperature).softmax(1)


def aggregate(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted mean of the neighbours' values, Σ_j w_ij v_j.

    Args:
        values: v, [n, C].
        index, weights: [n, k] each, from `neighbour_weights`.
    Returns:
        [n, C].
    """
    # One n×n product takes less memory than gathering the values as [n, k, C].
    return values.new_zeros(len(values), len(values)).scatter_(1, index, weights) @ values


def predicted_error(
    truth: Tensor, index: Tensor, weights: Tensor, *, variance: float | Tensor, correlation: float
) -> tuple[float, float]:
    """Predict the mean squared error of aggregated targets as the sum of a variance and a squared bias.

    With errors e_j of variance σ² and correlation ρ between neighbours, the variance of Σ_j w_ij e_j is
    σ² (ρ + (1 − ρ)/k_eff), where 1/k_eff = Σ_j w_ij². The bias is that of kernel regression, Σ_j w_ij v_j − v_i for the
    true values v. The teacher's own target has the error σ², so the aggregate is better where
    bias² < σ² (1 − ρ)(1 − 1/k_eff). This assumes that the errors do not depend on how the neighbours are chosen. A
    teacher that has memorised labels makes the same error on all neighbours of the same label, and averaging over more
    of them does not reduce it.

    Args:
        truth: v, [n, C].
        index, weights: [n, k] each, from `neighbour_weights`.
        variance: σ², one number or one for each sample, [n].
        correlation: ρ, between the errors of neighbours.
    Returns:
        The variance and the squared bias, each the mean over samples and classes.
    """
    remaining = variance * (correlation + (1 - correlation) * weights.square().sum(1))
    bias = aggregate(truth, index, weights) - truth
    return remaining.mean().item(), bias.square().mean().item()


def aggregation_errors(
    teachers: Mapping[str, ToyTeacher],
    similarity: Tensor,
    labels: Tensor,
    *,
    sizes: Sequence[int],
    temperatures: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Measure the error of aggregated targets, and compute `predicted_error`, for each k and each choice of neighbours.

    Args:
        teachers: from `toy_teachers`, for n points.
        similarity: s, [n, n].
        labels: class of each sample, [n].
        sizes: values of k.
        temperatures: τ_a of each weighting by its name.
    Returns:
        One row for each weighting, choice of neighbours ("all classes" or "same label"), k and teacher: `measured`,
        `predicted` and `bias` (the squared bias), all divided by the error of the teacher's own target. `predicted` is
        None where the teacher's errors depend on the label by which the neighbours are chosen.
    """
    rows = []
    for weighting, temperature in temperatures.items():
        for neighbours, given in {"all classes": None, "same label": labels}.items():
            for k in sizes:
                near = neighbour_weights(similarity, k, temperature=temperature, labels=given)
                for name, teacher in teachers.items():
                    truth = teacher.truth.repeat(1, teacher.values.shape[1] // teacher.truth.shape[1])
                    measured = (aggregate(teacher.values, *near) - truth).square().mean()
                    variance, correlation = teacher.variance, teacher.correlation
                    spread, bias = predicted_error(teacher.truth, *near, variance=variance, correlation=correlation)
                    scale = variance.mean().item() if isinstance(variance, Tensor) else variance
                    holds = not teacher.errs_by_label or given is None
                    row = {"teacher": name, "weighting": weighting, "neighbours": neighbours, "k": k}
                    row |= {"measured": (measured / (teacher.values - truth).square().mean()).item()}
                    rows.append(row | {"bias": bias / scale, "predicted": (spread + bias) / scale if holds else None})
    return rows


def divergences(
    teachers: Mapping[str, ToyTeacher], near: Mapping[str, tuple[Tensor, Tensor]], log_posterior: Tensor
) -> dict[str, dict[str, float]]:
    """Compute the KL divergence of each teacher's own and aggregated targets from the Bayes posterior, in nats.

    Logits are aggregated, as in IC-KD.

    Args:
        teachers: from `toy_teachers`, for n points.
        near: results of `neighbour_weights`, [n, k] each, by the name of the choice of neighbours.
        log_posterior: log p(y | x), [n, C].
    Returns:
        For each teacher, the divergence of "own target" and of each entry of `near`, as means over samples and draws.
    """
    found: dict[str, dict[str, float]] = {}
    for name, teacher in teachers.items():
        targets = {"own target": teacher.logits}
        targets |= {kind: aggregate(teacher.logits, *weights) for kind, weights in near.items()}
        found[name] = {}
        for kind, logits in targets.items():
            log_p = logits.reshape(len(logits), -1, log_posterior.shape[1]).log_softmax(2)
            gap = log_posterior.exp()[:, None] * (log_posterior[:, None] - log_p)
            found[name][kind] = gap.sum(2).mean().item()
    return found


def break_even(truth: Tensor, index: Tensor, weights: Tensor, *, correlation: float) -> float:
    """Compute the error σ below which a teacher's own target is better than the aggregate.

    It is the solution of bias² = σ² (1 − ρ)(1 − 1/k_eff) for σ (see `predicted_error`).

    Args:
        truth: the true logits, [n, C].
        index, weights: [n, k] each, from `neighbour_weights`.
        correlation: ρ, between the errors of neighbours, less than 1.
    Returns:
        σ, in the unit of the logits.
    """
    inverse, bias = predicted_error(truth, index, weights, variance=1.0, correlation=0.0)
    return math.sqrt(bias / ((1 - correlation) * max(1 - inverse, 1e-12)))
