"""Distances between samples and class means in logit space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.metrics.predictions import check_shapes
from ickd_lib.runtime import InputError


def separation(logits: Tensor, labels: Tensor, *, unit: bool = True, samples: int = 5000) -> dict[str, float]:
    """Measure how far apart the classes are in logit space, by Euclidean distances.

    Args:
        logits: shape [N, C], with samples of two or more classes.
        labels: shape [N], of 0 or more.
        unit: scale each sample's logits to unit length first, so that networks whose logits differ in scale are
            comparable.
        samples: largest number of samples for the silhouette, whose cost is quadratic in it; they are the first ones
            of a fixed permutation.
    Returns:
        within: mean distance of a sample to the mean of its class.
        between: mean distance between two class means.
        ratio: between / within; infinite if no class has two different samples.
        silhouette: mean silhouette coefficient (Rousseeuw 1987), from -1 to 1; NaN if no class has two samples.
        margin: mean over samples of the distance to the nearest mean of another class minus the distance to the
            mean of the sample's class.
        negative_margin: share of samples whose margin is below 0.
    Raises:
        InputError: the shapes disagree, there is no sample, or a sample has no label.
    """
    from sklearn.metrics import silhouette_score

    space, means, to_own, to_other = _to_means(logits, labels, unit)
    labels = labels.cpu()
    within, between = to_own.mean().item(), F.pdist(means).mean().item()
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    several = 1 < len(labels[chosen].unique()) < len(chosen)
    return {
        "within": within,
        "between": between,
        "ratio": between / within if within else math.inf,
        "silhouette": float(silhouette_score(space[chosen].numpy(), labels[chosen].numpy())) if several else math.nan,
        "margin": (to_other - to_own).mean().item(),
        "negative_margin": (to_other < to_own).double().mean().item(),
    }


def margins(logits: Tensor, labels: Tensor, *, unit: bool = True) -> tuple[Tensor, Tensor]:
    """Compute each sample's distance to the mean of its class, and its margin.

    `separation` returns the means of both, as within and margin.

    Args:
        logits: shape [N, C].
        labels: shape [N], of 0 or more.
        unit: scale each sample's logits to unit length first.
    Returns:
        Distances [N] and margins [N] in float64 on the CPU. A margin is the distance to the nearest mean of another
        class minus the distance to the mean of the sample's class; it is infinite if there is only one class.
    Raises:
        InputError: as for `separation`.
    """
    _, _, to_own, to_other = _to_means(logits, labels, unit)
    return to_own, to_other - to_own


def _to_means(logits: Tensor, labels: Tensor, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the distances between samples and the means of the K classes that occur, in float64 on the CPU.

    Returns:
        The logits [N, C], of unit length if `unit`; the class means [K, C]; each sample's distance to the mean of its
        class [N]; and its distance to the nearest mean of another class [N].
    """
    check_shapes(logits, labels)
    if int(labels.min()) < 0:
        raise InputError(f"the smallest label is {int(labels.min())}, below 0; leave samples without a label out")
    space = F.normalize(logits.double().cpu(), dim=1) if unit else logits.double().cpu()
    present, own = labels.cpu().unique(return_inverse=True)
    sums = torch.zeros(len(present), space.shape[1], dtype=torch.double).index_add_(0, own, space)
    means = sums / own.bincount()[:, None]
    distance = torch.cdist(space, means)
    to_own = distance.gather(1, own[:, None]).squeeze(1)
    return space, means, to_own, distance.scatter(1, own[:, None], torch.inf).min(1).values
