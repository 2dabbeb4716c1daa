"""Losses between features.

The classes of teacher and student may differ in all of them, and so may the number of features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import distances, unit_length


def rkd_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the distance loss of relational KD (Park et al. 2019, eq. 4-5).

    It is the Huber loss between the student's and the teacher's distances of all pairs of samples, each divided by the
    mean of those that are not 0.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar: the mean over all B² entries, including the zeros of the diagonal.
    """
    student, teacher = distances(student_features), distances(teacher_features.detach())
    return F.smooth_l1_loss(_relative(student), _relative(teacher))


def rkd_angle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the angle loss of relational KD (Park et al. 2019, eq. 6-7).

    It is the Huber loss between the student's and the teacher's cosines <e_ij, e_ik> over all triples of samples, where
    e_ij is the unit vector from i to j. It needs memory for B² (B + D) numbers.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar: the mean over all B³ entries, including the zeros of triples in which two samples coincide.
    """
    student, teacher = _directions(student_features), _directions(teacher_features.detach())
    return F.smooth_l1_loss(student @ student.mT, teacher @ teacher.mT)


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the loss of probabilistic knowledge transfer (Passalis & Tefas 2018).

    It is Σ_ij p^T_ij log((p^T_ij + ε) / (p^S_ij + ε)) / B², with p_ij = (1 + cos_ij) / 2 divided by the sum of its row
    and ε = 1e-7. The diagonal is included, as in the authors' code.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'].
    Returns:
        A scalar.
    """
    student, teacher = _affinities(student_features), _affinities(teacher_features.detach())
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def _relative(distance: Tensor) -> Tensor:
    """Divide distances [B, B] by the mean of those that are not 0; all stay 0 where all samples coincide."""
    return distance / (distance.sum() / (distance > 0).sum().clamp(min=1)).clamp(min=1e-12)


def _directions(features: Tensor) -> Tensor:
    """Compute the unit vectors from i to j, 0 where the two coincide, from [B, D] to [B, B, D]."""
    difference = features - features[:, None]
    length = difference.norm(dim=-1, keepdim=True)
    # Dividing by infinity makes the gradient 0 where samples coincide; a small ε would make it 1 / ε.
    return difference / length.masked_fill(length == 0, torch.inf)


def _affinities(features: Tensor) -> Tensor:
    """Compute (1 + cos_ij) / 2 divided by the sum of its row, from [B, D] to [B, B]."""
    unit = unit_length(features)
    affinity = (1 + unit @ unit.T) / 2
    return affinity / affinity.sum(1, keepdim=True)
