"""The two losses of REFILLED (Ye, Lu, Zhan 2022, arXiv 2205.01915).

The teacher's classes may be the student's, overlap with them or be disjoint from them. The first stage trains the
student so that the distances between its features have the same relations as those between the teacher's features. The
second stage trains the student's classifier to match the teacher's predictions over the classes that are present in the
batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import distances, kl, masked_log_softmax, unit_length


def refilled_embedding(
    student_features: Tensor,
    teacher_features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    margin: float = 0.2,
    merged: bool = True,
) -> Tensor:
    """Compute the loss of relationship matching, τ² KL(p^T ‖ p^S), with p = σ([-d_ap, -d_an, ...]/τ) over a tuple.

    A tuple is an ordered pair (anchor, positive) of samples with the same label, together with its `semi_hard`
    negatives. These are selected by the student's distances; the selection has no gradient. The distances d are
    Euclidean, between features of unit length.

    Args:
        student_features, teacher_features: shapes [B, D] and [B, D']; they are scaled to unit length here.
        labels: class of each sample, shape [B].
        temperature: τ.
        margin: upper bound on d_an - d_ap for a semi-hard negative.
        merged: whether the negatives of a pair form one tuple, as in the paper, or each a tuple of its own (a triplet).
    Returns:
        A scalar: the mean over the tuples with at least one negative. It is 0, with gradient 0, for a batch without
        such a tuple.
    """
    student = distances(unit_length(student_features))
    teacher = distances(unit_length(teacher_features.detach()))
    static = labels.device.type != "cpu"  # on a GPU, reading the number of tuples would wait for all queued kernels
    anchors, positives, negatives = semi_hard(student.detach(), labels, margin=margin, static=static)
    if not merged:
        negatives = negatives[..., None]
    mask = F.pad(negatives, (1, 0), value=True)

    def log_prediction(distance: Tensor) -> Tensor:
        ahead = distance[anchors, positives][:, None] - distance[anchors]  # d_ap - d_an; the positive's own is 0
        scores = F.pad(ahead if merged else ahead[..., None], (1, 0))
        return masked_log_softmax(scores / temperature, mask)

    # A tuple without negatives has a single entry, so that its divergence is 0.
    divergence = kl(log_prediction(student), log_prediction(teacher), temperature)
    return divergence.sum() / negatives.any(-1).sum().clamp(min=1)


def semi_hard(
    distances: Tensor, labels: Tensor, *, margin: float = 0.2, static: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the semi-hard negatives of every ordered pair (anchor, positive) of samples with the same label.

    These are the samples with another label for which d_ap < d_an < d_ap + margin.

    Args:
        distances: distances of all pairs of samples, shape [B, B].
        labels: class of each sample, shape [B].
        margin: upper bound on d_an - d_ap, in the unit of the distances.
        static: whether to return all B² pairs, whatever the labels are, so that the shapes do not depend on the data;
            pairs of different labels, or of a sample with itself, then have no negatives.
    Returns:
        anchors [T] and positives [T], as positions in the batch, and a mask [T, B] that is true at the negatives. T is
        the number of pairs.
    """
    same = labels[:, None] == labels
    different, pairs = ~same, same.fill_diagonal_(False)
    if static:
        positions = torch.arange(len(labels), device=labels.device)
        anchors, positives = positions.repeat_interleave(len(labels)), positions.repeat(len(labels))
    else:
        anchors, positives = pairs.nonzero(as_tuple=True)
    d_ap, d_an = distances[anchors, positives][:, None], distances[anchors]
    candidates = different[anchors] & pairs[anchors, positives][:, None]
    return anchors, positives, candidates & (d_ap < d_an) & (d_an < d_ap + margin)


def refilled_local(
    student_logits: Tensor, teacher_features: Tensor, centres: Tensor, labels: Tensor, *, temperature: float = 2.0
) -> Tensor:
    """Compute τ² KL(σ(z^T/τ) ‖ σ(z^S/τ)) over the classes present in the batch, with z^T_ik = <f_i, c_k>.

    Args:
        student_logits: shape [B, C].
        teacher_features: f, *not* normalised, shape [B, D].
        centres: c, one for each of the student's classes: the mean of the teacher's features over that class, scaled to
            unit length, shape [C, D].
        labels: class of each sample among the student's classes, shape [B].
        temperature: τ.
    Returns:
        A scalar: the mean over B.
    """
    teacher_logits = (teacher_features @ centres.T).detach()
    present = torch.zeros(student_logits.shape[1], dtype=torch.bool, device=labels.device).index_fill(0, labels, True)
    student, teacher = (masked_log_softmax(z / temperature, present) for z in (student_logits, teacher_logits))
    return kl(student, teacher, temperature).mean()
