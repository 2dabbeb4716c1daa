"""Comparison of several predictors on the same queries: a teacher, aggregates of in-context samples, a student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ickd_lib.memory import InContext, MemoryBank


def predictor_scores(
    logits: Mapping[str, Tensor], labels: Tensor, *, temperature: float
) -> dict[str, dict[str, float]]:
    """Compute how well each predictor predicts the labels.

    Args:
        logits: logits of each predictor, shape [N, C].
        labels: class of each sample, shape [N].
        temperature: temperature of the softmax for the probabilities.
    Returns:
        For each predictor `accuracy`, and `true_class`, the mean probability of the true class.
    """
    return {
        name: {
            "accuracy": (z.argmax(1) == labels).double().mean().item(),
            "true_class": true_class_probability(z, labels, temperature=temperature).double().mean().item(),
        }
        for name, z in logits.items()
    }


def true_class_probability(logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Compute the probability of each sample's true class.

    Args:
        logits: shape [N, C].
        labels: class of each sample, shape [N].
        temperature: temperature of the softmax.
    Returns:
        Shape [N].
    """
    return (logits / temperature).softmax(1).gather(1, labels[:, None]).squeeze(1)


def changes(logits: Mapping[str, Tensor], labels: Tensor, *, reference: str = "teacher") -> dict[str, Any]:
    """Count on how many samples each predictor is right where a reference is wrong, and the reverse.

    Args:
        logits: logits of each predictor, shape [N, C].
        labels: class of each sample, shape [N].
        reference: name of one of the predictors.
    Returns:
        `errors` and `correct`, the numbers of samples that the reference classifies wrongly and correctly; and for each
        other predictor `corrected`, how many of the errors it classifies correctly, and `broken`, how many of the
        correct ones it classifies wrongly.
    """
    right = {name: z.argmax(1) == labels for name, z in logits.items()}
    wrong = ~right[reference]
    found: dict[str, Any] = {"errors": int(wrong.sum()), "correct": int((~wrong).sum())}
    for name, is_right in right.items():
        if name != reference:
            found[name] = {"corrected": int((wrong & is_right).sum()), "broken": int((~wrong & ~is_right).sum())}
    return found


def notable_queries(
    teacher: Tensor, aggregate: Tensor, student: Tensor, labels: Tensor, *, temperature: float
) -> dict[str, int]:
    """Choose three samples: two on which teacher and aggregate differ most, and one that is hard for the student.

    Args:
        teacher, aggregate, student: logits, shape [N, C] each.
        labels: class of each sample, shape [N].
        temperature: temperature of the softmax for all probabilities.
    Returns:
        By description, the positions of three samples: those on which the aggregate raises and lowers the probability
        of the true class most, relative to the teacher, and the student's error with the highest probability. Where
        the student makes no error, the third is its prediction with the lowest probability.
    """
    gain = true_class_probability(aggregate, labels, temperature=temperature)
    gain = gain - true_class_probability(teacher, labels, temperature=temperature)
    confidence, predicted = (student / temperature).softmax(1).max(1)
    wrong = predicted != labels
    hardest = "The student's prediction with the lowest probability (it makes no error)"
    at = confidence.argmin()
    if bool(wrong.any()):
        hardest = "The student's error with the highest probability"
        at = confidence.masked_fill(~wrong, -torch.inf).argmax()
    return {
        "The aggregate raises the probability of the true class most": int(gain.argmax()),
        "The aggregate lowers the probability of the true class most": int(gain.argmin()),
        hardest: int(at),
    }


def negative_classes(bank: MemoryBank, negatives: InContext, labels: Tensor) -> Tensor:
    """Compute how the negatives of each class's queries are distributed over the classes.

    Args:
        bank: the bank from which the negatives were retrieved, with C classes.
        negatives: negatives of B queries, [B, k].
        labels: class of each query, shape [B].
    Returns:
        Share of the negatives of class c's queries that are of class d, float64, shape [C, C]. A row sums to 1, or is 0
        where there is no query of the class.
    """
    classes = len(bank.classes)
    found = bank.labels[bank.rows(negatives.index)]
    pairs = (labels[:, None] * classes + found)[negatives.mask]
    counts = pairs.bincount(minlength=classes * classes).double().view(classes, classes)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def own_superclass_share(bank: MemoryBank, negatives: InContext, labels: Tensor, superclass_of: Sequence[int]) -> float:
    """Compute the share of all negatives that have the superclass of their query.

    Args:
        bank, negatives, labels: as in `negative_classes`.
        superclass_of: superclass of each of the C classes.
    Returns:
        A fraction of all valid negatives.
    """
    upper = torch.tensor(superclass_of, device=labels.device)
    same = upper[bank.labels[bank.rows(negatives.index)]] == upper[labels][:, None]
    return same[negatives.mask].double().mean().item()
