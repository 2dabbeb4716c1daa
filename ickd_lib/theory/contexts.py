"""The part of the effect on a query that comes from its most similar samples, compared with random samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ickd_lib.runtime import InputError
from ickd_lib.theory.tangent import shares


def by_similarity(features: Tensor, rows: Tensor) -> Tensor:
    """Order all samples except the query by the cosine of their features with the query's, the most similar first.

    Args:
        features: features of the samples, [N, D].
        rows: position of each query among the samples, [Q].
    Returns:
        Positions of samples, [Q, N−1]. Of samples with equal similarity, the one at the lower position is first.
    """
    unit = F.normalize(features, dim=1)
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows), device=rows.device), rows] = -math.inf
    return similarity.argsort(stable=True, dim=1, descending=True)[:, :-1]


def shuffled(order: Tensor, *, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
    """Shuffle each row of `order`. With `labels`, only samples of the same class exchange their positions.

    With labels, the first k samples of a row are, for every k, a random set with the same number of samples of each
    class as the first k of `order`. As a control, this removes the similarity and keeps the labels.

    Args:
        order: positions of samples, [Q, M].
        generator: a CPU generator.
        labels: class of each sample, [N].
    Returns:
        [Q, M].
    """
    draw = torch.rand(order.shape, generator=generator).to(order.device)
    if labels is None:
        return order.gather(1, draw.argsort(1))
    classes = labels[order]
    places = classes.argsort(stable=True, dim=1)  # grouped by class; within a class, as in `order`
    drawn = draw.argsort(1)
    drawn = drawn.gather(1, classes.gather(1, drawn).argsort(stable=True, dim=1))  # grouped by class; within, random
    return torch.empty_like(order).scatter_(1, places, order.gather(1, drawn))


def residuals(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute the difference between the teacher's soft labels and three targets that use less of the teacher.

    "uniform", p^T − 1/C, is what distillation adds to label smoothing; its largest part is the label's entry. "label",
    p^T − onehot, is what distillation adds to the label. "class mean", p^T less the mean p^T over the label's class, is
    what the sample's own soft label adds to one soft label for each class.

    Args:
        probabilities: p^T, [N, C].
        labels: class of each sample, [N].
    Returns:
        Three residuals of shape [N, C]; each row sums to 0.
    """
    hard = F.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    by_class = (hard.T @ probabilities) / hard.sum(0).clamp(min=1)[:, None]
    return {
        "uniform": probabilities - 1 / probabilities.shape[1],
        "label": probabilities - hard,
        "class mean": probabilities - by_class[labels],
    }


def cumulative_shares(
    share: Tensor, order: Tensor, labels: Tensor, *, draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Compute the share of the k nearest samples and of k random samples, for every k.

    Args:
        share: the share of each sample, [Q, N], from `shares`.
        order: positions of the samples by similarity, [Q, N−1], from `by_similarity`.
        labels: class of each sample, [N].
        draws: number of random sets for each query and k, over which the shares are averaged.
        generator: a CPU generator.
    Returns:
        Three tensors [Q, N−1], in which column k − 1 is for k samples: "nearest"; "same classes", random samples with
        the same number from each class as the nearest; and "any", random samples.
    """

    def running(*orders: Tensor) -> Tensor:
        return torch.stack([share.gather(1, one).cumsum(1) for one in orders]).mean(0)

    return {
        "nearest": running(order),
        "same classes": running(*(shuffled(order, generator=generator, labels=labels) for _ in range(draws))),
        "any": running(*(shuffled(order, generator=generator) for _ in range(draws))),
    }


class ContextShares(NamedTuple):
    """How the effect of one residual is divided among the samples.

    Attributes:
        share: the share of each sample, [Q, N].
        own: the share of the query itself, the mean over the queries.
        length: ‖R_i‖, the mean over the queries.
        running: the result of `cumulative_shares`.
    """

    share: Tensor
    own: float
    length: float
    running: dict[str, Tensor]


def context_shares(
    network: nn.Module,
    images: Tensor,
    rows: Tensor,
    order: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    *,
    draws: int,
    generator: torch.Generator,
) -> dict[str, ContextShares]:
    """Compute the shares of the nearest and of random samples for each of the three `residuals`.

    Args:
        network: the student, as for `shares`.
        images: the samples, [N, 3, H, W].
        rows: position of each query among the samples, [Q].
        order: positions of the samples by similarity, [Q, N−1], from `by_similarity`.
        labels: class of each sample, [N].
        probabilities: the teacher's soft labels p^T, [N, C].
        draws: number of random sets for each query and number of samples.
        generator: a CPU generator. All residuals use the same random sets.
    Returns:
        One entry for each residual.
    """
    state, found = generator.get_state(), {}
    for name, residual in residuals(probabilities, labels).items():
        generator.set_state(state)
        share, total = shares(network, images[rows], images, residual)
        found[name] = ContextShares(
            share,
            share.gather(1, rows[:, None]).mean().item(),
            total.norm(dim=1).mean().item(),
            cumulative_shares(share, order, labels, draws=draws, generator=generator),
        )
    return found


def mean_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean over queries and the half-width of its 95% interval, 1.96 standard errors.

    Args:
        values: one row for each of Q ≥ 2 queries, [Q, ...].
    Returns:
        The mean and the half-width, [...] each.
    Raises:
        InputError: there are fewer than two queries.
    """
    if len(values) < 2:
        raise InputError(f"an interval needs two or more queries, not {len(values)}; raise queries")
    return values.mean(0), 1.96 * values.std(0) / math.sqrt(len(values))
