"""Losses that contrast the embedding of a sample with the rows of a memory.

The classes of teacher and student may differ in all of them. The embeddings of student and teacher have the same number
of features, which projectors provide.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import masked_log_softmax, unit_length

EPSILON = 1e-7  # of the authors' code of CRD


def crd(
    positive: Tensor, negative: Tensor, mask: Tensor, *, rows: int, log_normaliser: Tensor, temperature: float = 0.07
) -> Tensor:
    """Compute one direction of contrastive representation distillation (Tian et al. 2020, eq. 18), as in its code.

    An anchor, the embedding of a sample by one network, is compared with the memory of the other network. With
    u = exp(cosine / τ) / Z and n = N/M + ε, the posterior probability that a pair is the positive one is u / (u + n).
    The loss is -log(u⁺ / (u⁺ + n)) - Σ_valid log((N/M) / (u⁻ + n)), where N is the number of valid negatives of the
    sample and ε = 1e-7. The arguments are cosines, not embeddings, so that a caller can compute them for all rows in
    one product instead of copying N embeddings for each sample.

    Args:
        positive: cosines of the anchors and the memory's rows of the same samples, shape [B].
        negative: cosines of the anchors and N' ≥ N drawn rows, shape [B, N'].
        mask: true where an entry of `negative` is a valid negative of the sample, shape [B, N'].
        rows: M, the number of rows of the memory.
        log_normaliser: log Z, a constant that the caller estimates once; shape [].
        temperature: τ.
    Returns:
        A scalar: the mean over B.
    """
    noise = mask.sum(1, keepdim=True, dtype=positive.dtype) / rows
    # log u minus the log of n is the logit of the posterior.
    offset = log_normaliser.detach() + (noise + EPSILON).log()
    repelled = F.softplus(negative / temperature - offset) + torch.log1p(EPSILON / noise)
    attracted = F.softplus(offset.squeeze(1) - positive / temperature)
    return (attracted + repelled.masked_fill(~mask, 0).sum(1)).mean()


def crd_bank(
    student: Tensor,
    positives: Tensor,
    negatives: Tensor,
    mask: Tensor,
    *,
    rows: int,
    log_normaliser: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """Compute the loss of `crd` in one direction, with negatives that the batch shares and without its ε.

    It is noise-contrastive estimation against rows of a memory bank. With log u = <s, t>/τ - log Z, the posterior
    probability that a pair is the positive one is u / (u + N/M). The loss is
    -log posterior(positive) - Σ_valid log(1 - posterior(negative)), where N counts the masked rows too.
    `positives` and `negatives` are not detached: they may carry the gradient of the projector on the teacher's side.

    Args:
        student: projected features of unit length, shape [B, E].
        positives: the teacher's projected features of the same samples, of unit length, shape [B, E].
        negatives: N ≥ 1 rows of the bank, of unit length, which all samples of the batch share, shape [N, E].
        mask: true where a row of `negatives` is a valid negative of the sample, shape [B, N].
        rows: M, the number of rows of the bank from which the negatives are drawn.
        log_normaliser: log Z, a constant that the caller estimates once; shape [].
        temperature: τ.
    Returns:
        A scalar: the mean over B.
    """
    # log u minus the log of the noise density N/M is the logit of the posterior.
    offset = log_normaliser.detach() + math.log(len(negatives) / rows)
    positive = (student * positives).sum(1) / temperature - offset
    negative = student @ negatives.T / temperature - offset
    return (F.softplus(-positive) + F.softplus(negative).masked_fill(~mask, 0).sum(1)).mean()


def seed(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    mask: Tensor,
    *,
    student_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> Tensor:
    """Compute the loss of SEED (Fang et al. 2021, eq. 1-3).

    A network's similarity distribution of a sample is the softmax, at the network's temperature, of the cosines of its
    features with the teacher's features of the same sample and with the rows of the queue. The loss is the
    cross-entropy of the teacher's and the student's distribution, that is, their KL divergence plus the entropy of the
    teacher's, which is constant. It contains no factor of the temperatures, as published.

    Args:
        student: projected features of any norm, shape [B, D'].
        teacher: features of any norm, shape [B, D'].
        queue: the teacher's features of K earlier samples, of unit length, shape [K, D'].
        mask: true for each row of the queue that was written, shape [K].
        student_temperature, teacher_temperature: temperatures of the two distributions.
    Returns:
        A scalar: the mean over B. It is 0 if no row of the queue was written.
    """
    teacher, queue = F.normalize(teacher.detach(), dim=1), queue.detach()
    given = torch.cat([mask.new_ones(1), mask])

    def log_distribution(features: Tensor, temperature: float) -> Tensor:
        cosines = torch.cat([(features * teacher).sum(1, keepdim=True), features @ queue.T], 1)
        return masked_log_softmax(cosines / temperature, given)

    target = log_distribution(teacher, teacher_temperature).exp()
    return -(target * log_distribution(unit_length(student), student_temperature)).sum(1).mean()
