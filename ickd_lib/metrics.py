"""Numbers for networks, banks and logit spaces. Fractions, not percent; plain floats, ready for JSON."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
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
        accuracy, top5, nll (nats), ece, and confidence, the mean of the largest probability: above the accuracy it is
        too high; with a teacher agreement, the share of equal predictions, and teacher_kl, the mean of
        KL(p^T ‖ p^S) in nats.
    """
    logits = logits.float()
    found = {
        "accuracy": accuracy(logits, labels),
        "top5": accuracy(logits, labels, 5),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": calibration_error(logits, labels),
        "confidence": logits.softmax(1).amax(1).double().mean().item(),
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

    space, means, to_own, to_other = _to_means(logits, labels, unit)
    labels = labels.cpu()
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


def margins(logits: Tensor, labels: Tensor, *, unit: bool = True) -> tuple[Tensor, Tensor]:
    """Of each sample, its distance to the mean of its class, and that to the nearest other class's mean less it.

    Args:
        logits, labels, unit: as for `separation`, whose within and margin are the means of these.
    Returns:
        Float64 on the CPU, [N] each; margins are infinite where there is one class only.
    """
    _, _, to_own, to_other = _to_means(logits, labels, unit)
    return to_own, to_other - to_own


def _to_means(logits: Tensor, labels: Tensor, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The space [N, C], the class means, and each sample's distance to its own and to the nearest other one [N]."""
    space = F.normalize(logits.double().cpu(), dim=1) if unit else logits.double().cpu()
    present, own = labels.cpu().unique(return_inverse=True)
    sums = torch.zeros(len(present), space.shape[1], dtype=torch.double).index_add_(0, own, space)
    means = sums / own.bincount()[:, None]
    distance = torch.cdist(space, means)
    to_own = distance.gather(1, own[:, None]).squeeze(1)
    return space, means, to_own, distance.scatter(1, own[:, None], torch.inf).min(1).values


def few_shot(
    features: Tensor,
    labels: Tensor,
    *,
    shots: int = 5,
    ways: int = 0,
    queries: int = 15,
    episodes: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Few-shot evaluation of an embedding: classify queries by a few labelled images of each class, many times.

    Each episode draws classes, `shots` images of each as the support and others as queries. Two classifiers see the
    features at unit length: the nearest class mean by cosine (Snell et al. 2017, arXiv 1703.05175), the mean brought
    to unit length too, and scikit-learn's logistic regression with C = 1, its default (as in Tian et al. 2020, arXiv
    2003.11539). The latter takes nearly all of the time: on one core 10 to 20 ms an episode of 5 ways, and 40 to 90 ms
    of 100 ways, by D and how busy the core is.

    Args:
        features: shape [N, D].  labels: shape [N], any integers.
        shots: labelled images of each class.
        ways: classes of an episode; 0 for all there are.
        queries: of each class, or as many as it has beside the shots.
        episodes: how many.
        seed: the draws are a function of it; torch's global generators are left alone.
    Returns:
        ncm and linear: the share of queries of an episode that is classified rightly, averaged over the episodes;
        ncm_interval and linear_interval: half the width of its 95% interval, 1.96 std / √episodes, nan for one episode.
    Raises:
        InputError: shapes differ; a feature is not finite; a number is out of its range; a class has not one image
            more than `shots`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"features {list(features.shape)} and labels {list(labels.shape)}; few_shot takes [N, D] and [N]"
        )
    if not features.isfinite().all():
        raise InputError("some features are nan or infinite; few_shot needs finite ones: look at the training")
    for name, value in (("shots", shots), ("queries", queries), ("episodes", episodes)):
        if value < 1:
            raise InputError(f"{name}={value}; few_shot needs at least 1")
    values, sizes = labels.cpu().unique(return_counts=True)
    if len(values) < 2 or not (ways == 0 or 2 <= ways <= len(values)):
        raise InputError(f"ways={ways} of {len(values)} classes; give 2 or more, at most the classes, or 0 for all")
    if sizes.min() <= shots:
        label, size = values[sizes.argmin()].item(), sizes.min().item()
        raise InputError(
            f"class {label} has {size} images, too few for shots={shots} and a query; lower shots or leave it out"
        )

    space = F.normalize(features.detach().float().cpu(), dim=1)
    rows = [(labels.cpu() == value).nonzero().squeeze(1) for value in values]
    generator = runtime.generator(seed, "few_shot")
    linear = LogisticRegression(C=1.0, max_iter=1000)
    right: dict[str, list[float]] = {"ncm": [], "linear": []}
    with threadpool_limits(1), warnings.catch_warnings():  # problems so small that threads would only wait
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(episodes):
            support, query, answer = _episode(rows, ways or len(rows), shots, queries, generator)
            means = F.normalize(space[support].mean(1), dim=1)
            right["ncm"].append(accuracy(space[query] @ means.T, answer))
            known = torch.arange(len(support)).repeat_interleave(shots)
            linear.fit(space[support].flatten(0, 1).numpy(), known.numpy())
            right["linear"].append(float(linear.score(space[query].numpy(), answer.numpy())))
    found = {}
    for name, shares in right.items():
        of = torch.tensor(shares, dtype=torch.double)
        found[name] = of.mean().item()
        found[f"{name}_interval"] = 1.96 * of.std().item() / episodes**0.5 if episodes > 1 else float("nan")
    return found


def _episode(
    rows: list[Tensor], ways: int, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the support [ways, shots] and of the queries [Q], and the classes of these [Q], from 0 to ways - 1."""
    support, query, answer = [], [], []
    for way, which in enumerate(torch.randperm(len(rows), generator=generator)[:ways].tolist()):
        drawn = rows[which][torch.randperm(len(rows[which]), generator=generator)[: shots + queries]]
        support.append(drawn[:shots])
        query.append(drawn[shots:])
        answer.append(torch.full((len(drawn) - shots,), way))
    return torch.stack(support), torch.cat(query), torch.cat(answer)


def freshness(bank: MemoryBank, *, step: int) -> dict[str, float]:
    """How full a bank in training is, and how old its rows are, in steps.

    Args:
        step: the last step that was taken (counted over all epochs, as `MemoryBank.update` was told).
    Returns:
        bank_fill, the share of rows that hold something; bank_age and bank_age_max, the mean and largest number of
        steps since they were written.
    """
    age = (step - bank.written[bank.filled]).double()
    mean, most = (age.mean().item(), age.max().item()) if len(age) else (0.0, 0.0)
    return {"bank_fill": bank.filled.double().mean().item(), "bank_age": mean, "bank_age_max": most}


def drift(bank: MemoryBank, rebuilt: MemoryBank, *, k: int = 8) -> dict[str, float]:
    """How far a bank that was written in training is from one built now, over the rows that both hold.

    Rows were written by the network as it was then, in training mode and from augmented images; a rebuilt bank is of
    clean ones.

    Args:
        bank: the one in training.
        rebuilt: of the same network now; of all images, or of some.
        k: neighbours that are compared.
    Returns:
        bank_drift, 1 - the mean cosine of a row's two features; bank_agreement, the share of rows whose logits have the
        same largest; bank_overlap, the share of each row's k nearest rows (among those compared) that both find.
    Raises:
        InputError: they share fewer than two rows.
    """
    rows = bank.rows(rebuilt.index)
    there = (rows >= 0) & bank.filled[rows]
    if there.sum() < 2:
        raise InputError(
            f"the banks share {int(there.sum())} rows; compare two of the same data, filled in two rows or more"
        )
    old, new = bank.subset(rows[there]), rebuilt.subset(there.nonzero().squeeze(1))
    k = min(k, len(old) - 1)
    near, again = (one.nearest(one.features, one.index, k=k).index for one in (old, new))
    return {
        "bank_drift": 1 - (old.features * new.features).sum(1).mean().item(),
        "bank_agreement": (old.logits.argmax(1) == new.logits.argmax(1)).double().mean().item(),
        "bank_overlap": (near[:, :, None] == again[:, None]).any(2).double().mean().item(),
    }
