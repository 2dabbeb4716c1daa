"""Accuracy and calibration of a classifier's outputs, and their agreement with a teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.runtime import InputError, NotFinite, arguments
from ickd_lib.runtime.arguments import check_tensor, refuse_probabilities


def check(logits: Tensor, labels: Tensor) -> None:
    """Raise InputError unless there are logits [N, C], and for each sample a label from 0 to C - 1.

    Raises:
        NotFinite: a logit is NaN or infinity. One of -infinity is that of a class with the probability 0.
    """
    check_shapes(logits, labels)
    if not bool((logits < torch.inf).all()):
        raise NotFinite("the logits contain NaN or infinity; check the network that computed them")
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, but the logits have the classes 0 to "
            f"{logits.shape[1] - 1}; leave samples without a label out"
        )


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise InputError unless there are logits [N, C] and labels [N], with N above 0."""
    check_tensor("logits", logits, [None, None])
    check_tensor("labels", labels, [len(logits)], torch.long)
    if not len(labels):
        raise InputError("there are no samples; give the logits and labels of one or more")


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Compute the share of samples whose label is among the k largest logits.

    Args:
        logits: shape [N, C].
        labels: shape [N].
        k: number of largest logits that count, 1 or more; all of them if k is above C.
    Raises:
        InputError: there is no sample, a label is none of the C classes, or k is below 1.
        NotFinite: a logit is NaN or infinity.
    """
    check(logits, labels)
    arguments.check("k", k, arguments.Count)
    return _accuracy(logits, labels, k)


def _accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2).

    Args:
        logits: shape [N, C].
        labels: shape [N].
        bins: number of bins of equal width, 1 or more, into which confidences from 0 to 1 are sorted.
    Returns:
        The absolute difference between accuracy and mean confidence in each bin, averaged with the bins' shares of the
        samples as weights.
    Raises:
        InputError: there is no sample, a label is none of the C classes, or `bins` is below 1; or the logits are
            probabilities.
        NotFinite: a logit is NaN or infinity.
    """
    found = reliability(logits, labels, bins)
    gap = (found["accuracy"] - found["confidence"]).abs() * found["count"]
    return (gap.sum() / len(labels)).item()


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Tensor]:
    """Sort samples into bins by the probability of the predicted class, and compute the accuracy in each bin.

    Args:
        logits, labels, bins: as for `calibration_error`.
    Returns:
        count: number of samples in each bin, float64, shape [bins].
        confidence, accuracy: mean probability of the predicted class, and share of correct predictions, in each bin,
            float64, shape [bins]; 0 in a bin without samples.
    Raises:
        InputError, NotFinite: as for `calibration_error`.
    """
    check(logits, labels)
    arguments.check("bins", bins, arguments.Count)
    refuse_probabilities("these", logits)
    confidence, predicted = logits.softmax(1).max(1)
    position = (confidence * bins).long().clamp(max=bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, predicted == labels]).double()
    count, *sums = values.new_zeros(3, bins).index_add_(1, position, values)
    confident, right = (total / count.clamp(min=1) for total in sums)
    return {"count": count, "confidence": confident, "accuracy": right}


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature with the lowest negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    The negative log-likelihood is convex in the inverse of the temperature, so the root of its derivative is found by
    bisection, in float64.

    Args:
        logits: shape [N, C], with N above 0.
        labels: shape [N].
    Returns:
        A temperature from 0.05 to 20, by which logits are divided; of several that are equally good, the lowest. It is
        0.05 if the likelihood grows up to there, as it does where all samples are classified correctly.
    Raises:
        InputError: there is no sample, a label is none of the C classes, or the logits are probabilities.
        NotFinite: a logit is NaN or infinite.
    """
    check(logits, labels)
    if not bool(logits.isfinite().all()):
        raise NotFinite("the logits have values that are not finite; give the network's logits as they are")
    refuse_probabilities("these", logits)
    logits = logits.double()
    # Relative to the label's logit, no sample that is right makes the derivative positive, also where the softmax is
    # rounded to 0 and 1; the difference of two means would be lost to rounding.
    relative = logits - logits.gather(1, labels[:, None])
    low, high = 0.05, 20.0
    for _ in range(60):
        inverse = (low * high) ** 0.5
        derivative = ((logits * inverse).softmax(1) * relative).sum(1).mean()
        low, high = (inverse, high) if derivative <= 0 else (low, inverse)
    return 1 / (low * high) ** 0.5


def classification(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Compute accuracy, calibration and, with a teacher's logits, agreement with the teacher.

    Args:
        logits: shape [N, C].
        labels: shape [N].
        teacher_logits: shape [N, C], or None.
    Returns:
        accuracy: share of samples whose largest logit is the label's.
        top5: share of samples whose label is among the five largest logits.
        nll: mean negative log-likelihood in nats.
        ece: see `calibration_error`.
        confidence: mean of the largest probability; a value above the accuracy means overconfidence.
        agreement: with a teacher only, share of samples for which student and teacher predict the same class.
        teacher_kl: with a teacher only, mean of KL(p^T ‖ p^S) in nats.
        teacher_accuracy: with a teacher only, share of samples that it classifies correctly.
    Raises:
        InputError: there is no sample, a label is none of the C classes, or the logits are probabilities; or the
            teacher's logits have another shape.
        NotFinite: a logit is NaN or infinite.
    """
    logits = logits.float()
    if not bool(logits.isfinite().all()):
        raise NotFinite("the network's logits have values that are not finite")
    found = {
        "accuracy": accuracy(logits, labels),
        "top5": accuracy(logits, labels, 5),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": calibration_error(logits, labels),
        "confidence": logits.softmax(1).amax(1).double().mean().item(),
    }
    if teacher_logits is not None:
        check_tensor("teacher_logits", teacher_logits, logits.shape)
        found["agreement"] = (logits.argmax(1) == teacher_logits.argmax(1)).double().mean().item()
        student_log, teacher_log = logits.log_softmax(1), teacher_logits.float().log_softmax(1)
        found["teacher_accuracy"] = _accuracy(teacher_logits, labels)  # a teacher's logits may be NaN
        found["teacher_kl"] = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True).item()
    return found
