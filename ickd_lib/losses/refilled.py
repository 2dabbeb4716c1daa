"""REFILLED, Ye, Lu, Zhan 2022 (arXiv 2205.01915): a teacher whose classes are the student's, or some, or none of them.

First the embedding takes over how the teacher compares samples; then the classifier takes over how the teacher tells
the classes of a batch apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import distances, kl, masked_log_softmax


def refilled_embedding(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    margin: float = 0.2,
) -> Tensor:
    """Relationship matching: τ² KL(p^T ‖ p^S), with p = σ([-d_ap, -d_an, ...]/τ) over a tuple's distances.

    A tuple is an ordered (anchor, positive) pair of one label with its `semi_hard` negatives by the student's
    distances; that choice has no gradient. Distances are Euclidean, between features at unit length.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D'], of any length.
        labels: shape [B].
    Returns:
        A scalar: the mean over the tuples with a negative; 0, of gradient 0, for a batch without any.
    """
    student = distances(F.normalize(student_features, dim=-1))
    teacher = distances(F.normalize(teacher_features.detach(), dim=-1))
    static = labels.device.type != "cpu"  # a GPU is not asked how many tuples there are
    anchors, positives, negatives = semi_hard(student.detach(), labels, margin=margin, static=static)
    mask = F.pad(negatives, (1, 0), value=True)

    def prediction(distance: Tensor) -> Tensor:
        tuples = torch.cat([distance[anchors, positives][:, None], distance[anchors]], 1)
        return masked_log_softmax(-tuples / temperature, mask)

    each = kl(prediction(student), prediction(teacher), temperature)  # 0 for a tuple of the positive alone
    return each.sum() / negatives.any(1).sum().clamp(min=1)


def semi_hard(
    distances: Tensor, labels: Tensor, *, margin: float = 0.2, static: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """All T ordered pairs (anchor, positive) of equal label, anchor ≠ positive, and the semi-hard negatives of each:
    samples of another label with d_ap < d_an < d_ap + margin.

    Args:
        distances: of all pairs of samples, shape [B, B].
        labels: shape [B].
        static: T = B², whatever the labels are; the other pairs have no negatives.
    Returns:
        Anchors [T] and positives [T], as positions in the batch, and a mask [T, B], true where a sample is a negative.
    """
    same = labels[:, None] == labels
    different, pairs = ~same, same.fill_diagonal_(False)
    if static:
        every = torch.arange(len(labels), device=labels.device)
        anchors, positives = every.repeat_interleave(len(labels)), every.repeat(len(labels))
    else:
        anchors, positives = pairs.nonzero(as_tuple=True)
    near, far = distances[anchors, positives][:, None], distances[anchors]
    there = different[anchors] & pairs[anchors, positives][:, None]
    return anchors, positives, there & (near < far) & (far < near + margin)


def refilled_local(
    student_logits: Tensor, teacher_features: Tensor, centres: Tensor, labels: Tensor, *, temperature: float = 2.0
) -> Tensor:
    """τ² KL(σ(z^T/τ) ‖ σ(z^S/τ)) over the classes present in the batch, with z^T_ik = <f_i, c_k>.

    Args:
        student_logits: shape [B, C].
        teacher_features: f, *not* normalised, shape [B, D].
        centres: c, at unit length, the mean direction of the teacher's features of each of the student's classes,
            shape [C, D].
        labels: classes of the student, shape [B].
    Returns:
        A scalar: the mean over B.
    """
    teacher_logits = (teacher_features @ centres.T).detach()
    present = torch.zeros_like(student_logits[0], dtype=torch.bool).index_fill(0, labels, True)
    student, teacher = (masked_log_softmax(z / temperature, present) for z in (student_logits, teacher_logits))
    return kl(student, teacher, temperature).mean()
