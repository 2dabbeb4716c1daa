"""Losses between features: none needs a shared label space, and only `crd` that both sides have the same D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import distances


def rkd_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs, each over the mean of those that are not 0.

    Relational KD, Park et al. 2019, eq. 4-5.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar: the mean over all B² entries, the diagonal's 0 among them.
    """
    student, teacher = distances(student_features), distances(teacher_features.detach())
    return F.smooth_l1_loss(_over_mean(student), _over_mean(teacher))


def rkd_angle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles at i in all triples, <e_ij, e_ik> with e_ij from i to j.

    Relational KD, Park et al. 2019, eq. 6-7. Takes memory for B² (B + D) numbers.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar: the mean over all B³ entries, those where two of a triple coincide among them; they are 0.
    """
    student, teacher = _directions(student_features), _directions(teacher_features.detach())
    return F.smooth_l1_loss(student @ student.mT, teacher @ teacher.mT)


def sp(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """|G^S - G^T|² / B², with G = A Aᵀ of the flattened maps A, its rows at unit length.

    Similarity-preserving KD, Tung & Mori 2019.

    Args:
        student_maps, teacher_maps: shape [B, ...], beyond B of any shape each.
    Returns:
        A scalar.
    """
    student, teacher = student_maps.flatten(1), teacher_maps.detach().flatten(1)
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Σ_ij p^T_ij log((p^T_ij + ε) / (p^S_ij + ε)) / B², with p_ij = (1 + cos_ij) / 2 over its row's sum, ε = 1e-7.

    Probabilistic knowledge transfer, Passalis & Tefas 2018; the diagonal stays in, as in the authors' code.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar.
    """
    student, teacher = _affinities(student_features), _affinities(teacher_features.detach())
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def crd(
    student: Tensor,
    positives: Tensor,
    negatives: Tensor,
    mask: Tensor,
    *,
    rows: int,
    log_normaliser: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """Noise-contrastive estimation against the rows of a memory bank. Contrastive representation distillation,
    Tian et al. 2020, eq. 18 as the authors' code counts it, in one of its two directions.

    With log u = <s, t>/τ - log Z, a sample is the positive with posterior u / (u + N/M), and the loss is
    -log posterior(positive) - Σ_valid log(1 - posterior(negative)).
    Neither `positives` nor `negatives` is detached: they may carry the gradient of the teacher side's projector.

    Args:
        student: projected features of unit length, shape [B, E].
        positives: the same sample's on the teacher's side, unit length, shape [B, E].
        negatives: N ≥ 1 rows of the bank, unit length, shared by the batch, shape [N, E].
        mask: true where a negative may be used for a query, shape [B, N].
        rows: M, the size of the bank that the negatives are drawn from.
        log_normaliser: log Z, a constant that its caller estimates once; shape [].
    Returns:
        A scalar: the mean over B.
    """
    # Relative to the noise's density N/M, log u is the posterior's logit.
    offset = log_normaliser.detach() + math.log(len(negatives) / rows)
    positive = (student * positives).sum(1) / temperature - offset
    negative = student @ negatives.T / temperature - offset
    return (F.softplus(-positive) + F.softplus(negative).masked_fill(~mask, 0).sum(1)).mean()


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over stages of the mean of (a^S - a^T)², with a the mean over channels of the squared map, at unit length.

    Zagoruyko & Komodakis 2017, eq. 2 with squared differences, as in the authors' code. Where sizes differ, the larger
    map is first averaged down to the smaller.

    Args:
        student_maps, teacher_maps: a stage's map each, from the shallowest to the deepest, shapes [B, channels, H, W];
            the longer sequence's first ones are left out.
    Returns:
        A scalar: the mean over the batch and positions, the sum over stages.
    """
    stages = []
    for student, teacher in zip(reversed(student_maps), reversed(teacher_maps), strict=False):
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        stages.append(F.mse_loss(_attention(student, size), _attention(teacher.detach(), size)))
    return torch.stack(stages).sum()


def _over_mean(distance: Tensor) -> Tensor:
    """Distances over the mean of those that are not 0; all 0 where all samples coincide. [B, B]; returns [B, B]."""
    return distance / (distance.sum() / (distance > 0).sum().clamp(min=1)).clamp(min=1e-12)


def _directions(features: Tensor) -> Tensor:
    """The unit vectors from i to j, 0 where the two coincide. [B, D]; returns [B, B, D]."""
    difference = features - features[:, None]
    length = difference.norm(dim=-1, keepdim=True)
    return difference / length.masked_fill(length == 0, torch.inf)  # of gradient 0 there too, not of 1 / ε


def _affinities(features: Tensor) -> Tensor:
    """(1 + cos_ij) / 2 over its row's sum. [B, D]; returns [B, B]."""
    unit = F.normalize(features, dim=-1)
    affinity = (1 + unit @ unit.T) / 2
    return affinity / affinity.sum(1, keepdim=True)


def _attention(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The attention over positions, at unit length. [B, channels, H, W]; returns [B, size's product]."""
    if maps.shape[2:] != size:
        maps = F.adaptive_avg_pool2d(maps, size)
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)
