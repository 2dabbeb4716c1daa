"""Numbers for networks, banks and logit spaces. Fractions, not percent; plain floats, ready for JSON."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of samples whose label is among the k largest logits. Shapes: [N, C], [N]."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of confidence, Guo et al. 2017. Shapes: [N, C], [N]."""
    confidence, predicted = logits.softmax(1).max(1)
    gap = (predicted == labels).double() - confidence.double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.double, device=logits.device).index_add_(0, which, gap)
    return (sums.abs().sum() / len(labels)).item()


def classification(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Accuracy and calibration, and fidelity to the teacher where its logits are given.

    Args:
        logits: shape [N, C].  labels: shape [N].  teacher_logits: shape [N, C].
    Returns:
        accuracy, top5, nll and ece (nats); with a teacher agreement, the share of equal predictions, and
        teacher_kl, the mean of KL(p^T ‖ p^S) in nats.
    """
    logits = logits.float()
    found = {
        "accuracy": accuracy(logits, labels),
        "top5": accuracy(logits, labels, 5),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": calibration_error(logits, labels),
    }
    if teacher_logits is not None:
        found["agreement"] = (logits.argmax(1) == teacher_logits.argmax(1)).double().mean().item()
        ours, theirs = logits.log_softmax(1), teacher_logits.float().log_softmax(1)
        found["teacher_kl"] = F.kl_div(ours, theirs, reduction="batchmean", log_target=True).item()
    return found


def retrieval(bank: MemoryBank, images: Images, *, k: int = 8, features: Tensor | None = None) -> dict[str, float]:
    """How often the k nearest rows of the bank, of any class, share the query's class and superclass.

    Args:
        bank: what is searched.
        images: gives labels and superclasses of the queries.
        features: the queries', shape [N, D]; by default each row of the bank queries all others, and
            `images` are those the bank was built from.
    Returns:
        precision@k and precision@1 by class; superclass_precision@k where there are superclasses; and chance,
        the precision that random neighbours would have.
    """
    if features is None:
        found, labels = bank.nearest(bank.features, bank.index, k=k), bank.labels
    else:
        found, labels = bank.nearest(features, None, k=k), images.labels
    neighbours = bank.labels[bank.rows(found.index)]
    same = neighbours == labels[:, None]
    share = torch.bincount(bank.labels, minlength=len(bank.classes)).double() / len(bank)
    numbers = {
        f"precision@{k}": same.double().mean().item(),
        "precision@1": same[:, 0].double().mean().item(),
        "chance": share[labels].mean().item(),
    }
    if images.superclasses:
        upper = torch.tensor(images.superclass_of, device=labels.device)
        numbers[f"superclass_precision@{k}"] = (upper[neighbours] == upper[labels][:, None]).double().mean().item()
    return numbers


def separation(logits: Tensor, labels: Tensor, *, unit: bool = True, samples: int = 5000) -> dict[str, float]:
    """How far apart the classes lie in logit space.

    Args:
        logits: shape [N, C].  labels: shape [N].
        unit: compare logits of unit length, so that networks of different scale are comparable.
        samples: the silhouette, quadratic in N, is taken on at most so many (the first ones of a fixed shuffle).
    Returns:
        within: mean distance of a sample to its class's mean.  between: mean distance of two class means.
        ratio: between / within.  silhouette: Rousseeuw 1987, -1 to 1.  margin: the distance to the nearest
        other class's mean less that to the own, averaged; negative_margin: the share of samples below 0.
    """
    from sklearn.metrics import silhouette_score

    space = F.normalize(logits.double().cpu(), dim=1) if unit else logits.double().cpu()
    labels = labels.cpu()
    present, own = labels.unique(return_inverse=True)
    means = torch.stack([space[own == c].mean(0) for c in range(len(present))])
    distance = torch.cdist(space, means)
    to_own = distance.gather(1, own[:, None]).squeeze(1)
    to_other = distance.scatter(1, own[:, None], torch.inf).min(1).values
    within, between = to_own.mean().item(), F.pdist(means).mean().item()
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return {
        "within": within,
        "between": between,
        "ratio": between / within,
        "silhouette": float(silhouette_score(space[some].numpy(), labels[some].numpy())),
        "margin": (to_other - to_own).mean().item(),
        "negative_margin": (to_other < to_own).double().mean().item(),
    }
