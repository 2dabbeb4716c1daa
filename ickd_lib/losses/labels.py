"""Losses that depend on the labels and not on a teacher network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl, masked_log_softmax


def cross_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy to the targets.

    Args:
        student_logits: shape [B, C].
        targets: classes [B], with -1 where there is none, or probabilities [B, C] as Mixup and CutMix produce them.
    Returns:
        A scalar: the mean over the samples that have a target; 0 if there is none.
    """
    if targets.ndim > 1:
        return F.cross_entropy(student_logits, targets)
    loss = F.cross_entropy(student_logits, targets, ignore_index=-1)
    return loss.masked_fill((targets < 0).all(), 0.0)  # instead of NaN


def label_smoothing(student_logits: Tensor, targets: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Compute the cross-entropy to (1 - alpha) · target + alpha · uniform (Szegedy et al. 2016).

    Args:
        student_logits: shape [B, C].
        targets: classes [B], which are made one-hot, or probabilities [B, C].
        alpha: weight of the uniform distribution.
    Returns:
        A scalar: the mean over B.
    """
    return F.cross_entropy(student_logits, targets, label_smoothing=alpha)


def tfkd(student_logits: Tensor, labels: Tensor, *, temperature: float = 20.0, correct: float = 0.99) -> Tensor:
    """Compute the regulariser of Tf-KD with a virtual teacher that is always right (Yuan et al. 2020).

    The label has the probability `correct`, and each other class an equal part of the rest. As in
    the authors' code, the target is the softmax of these probabilities divided by τ (not of their logarithms), so that
    it is close to uniform. The student's temperature is 1, and there is no factor τ².

    Args:
        student_logits: shape [B, C], with C at least 2.
        labels: class of each sample, shape [B].
        temperature: τ, of the virtual teacher alone.
        correct: the virtual teacher's probability of the label.
    Returns:
        A scalar: KL(target ‖ student) / C, the mean over B.
    """
    classes = student_logits.shape[1]
    right = labels[:, None] == torch.arange(classes, device=labels.device)
    virtual = torch.full_like(student_logits, (1 - correct) / (classes - 1)).masked_fill(right, correct)
    divergence = kl(F.log_softmax(student_logits, 1), F.log_softmax(virtual / temperature, 1), 1.0)
    return divergence.mean() / classes


def uskd(student_logits: Tensor, weak_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three terms of universal self-distillation, USKD (Yang et al. 2023, arXiv 2303.13005).

    With p the student's and w the weak logits' probabilities and y the label, the soft labels of a sample are
    1 + p_y² - (the batch's mean of p_y²) for the label, and Zipf's law 1/rank, normalised, for the other classes. The
    ranks are those of the sum of a weak and a strong score. As in the authors' code, these are w_c / (1 - w_y) and
    log p_c / (1 - log p_y); the paper has p in the place of log p. The soft labels have no gradient.

    Args:
        student_logits: shape [B, C], with C at least 2.
        weak_logits: the logits of a classifier on an earlier stage's features, shape [B, C].
        labels: class of each sample, shape [B].
    Returns:
        Three scalars, each the mean over B: the cross-entropy of the label; the cross-entropy of the other classes,
        among themselves; and the cross-entropy of the weak logits to the smoothed label, 0.9 · one-hot + 0.1 / C.
    """
    own = labels[:, None]
    log_p = F.log_softmax(student_logits, 1)
    confidence = log_p.detach().gather(1, own).exp().square()
    target = -((1 + confidence - confidence.mean()) * log_p.gather(1, own)).mean()

    def relative(score: Tensor) -> Tensor:
        return score / (1 - score.gather(1, own) + 1e-6)

    score = relative(F.softmax(weak_logits.detach(), 1)) + relative(log_p.detach())
    rank = 1 + score.argsort(1, descending=True).argsort(1)  # of the label, too: it leaves a gap in the others' ranks
    zipf = rank.to(score.dtype).reciprocal().scatter(1, own, 0)
    others = torch.ones_like(rank, dtype=torch.bool).scatter(1, own, False)
    log_others = masked_log_softmax(student_logits, others)
    non_target = -(zipf / zipf.sum(1, keepdim=True) * log_others).sum(1).mean()
    return target, non_target, F.cross_entropy(weak_logits, labels, label_smoothing=0.1)
