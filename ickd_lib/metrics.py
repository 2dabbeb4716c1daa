"""Metrics of networks, memory banks and logit spaces: plain floats for JSON, with shares as fractions, not percent."""

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
    """Compute the share of samples whose label is among the k largest logits.

    Args:
        logits: shape [N, C].
        labels: shape [N].
        k: number of largest logits that count; all of them if k is above C.
    """
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2).

    Args:
        logits: shape [N, C].
        labels: shape [N].
        bins: number of bins of equal width into which confidences from 0 to 1 are sorted.
    Returns:
        The absolute difference between accuracy and mean confidence in each bin, averaged with the bins' shares of the
        samples as weights.
    """
    confidence, predicted = logits.softmax(1).max(1)
    gap = (predicted == labels).double() - confidence.double()
    position = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.double, device=logits.device).index_add_(0, position, gap)
    return (sums.abs().sum() / len(labels)).item()


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
        student_log, teacher_log = logits.log_softmax(1), teacher_logits.float().log_softmax(1)
        found["teacher_kl"] = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True).item()
    return found


def retrieval(bank: MemoryBank, images: Images, *, k: int = 8, features: Tensor | None = None) -> dict[str, float]:
    """Compute how often the k nearest rows of a memory bank have the query's class and superclass.

    Args:
        bank: the memory bank that is searched; rows of all classes can be found.
        images: the N images of the queries, with their labels and superclasses.
        k: number of neighbours.
        features: features of the queries, shape [N, D]. With None, each row of the bank is a query for the other rows,
            and `images` must be those that the bank was built from.
    Returns:
        precision@k: share of the k neighbours that have the query's class.
        precision@1: the same for the nearest row alone.
        chance: expected precision of randomly drawn rows.
        superclass_precision@k: share of the k neighbours that have the query's superclass, if there are superclasses.
    Raises:
        InputError: a query has fewer than k other rows.
    """
    if features is None:
        found, labels = bank.nearest(bank.features, bank.index, k=k), bank.labels
    else:
        found, labels = bank.nearest(features, None, k=k), images.labels
    if not found.mask.all():
        raise InputError(f"k={k}, but some queries have only {int(found.mask.sum(1).min())} other rows; lower k")
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
    """Measure how far apart the classes are in logit space, by Euclidean distances.

    Args:
        logits: shape [N, C], with samples of two or more classes.
        labels: shape [N].
        unit: scale each sample's logits to unit length first, so that networks whose logits differ in scale are
            comparable.
        samples: largest number of samples for the silhouette, whose cost is quadratic in it; they are the first ones
            of a fixed permutation.
    Returns:
        within: mean distance of a sample to the mean of its class.
        between: mean distance between two class means.
        ratio: between / within.
        silhouette: mean silhouette coefficient (Rousseeuw 1987), from -1 to 1.
        margin: mean over samples of the distance to the nearest mean of another class minus the distance to the
            mean of the sample's class.
        negative_margin: share of samples whose margin is below 0.
    """
    from sklearn.metrics import silhouette_score

    space, means, to_own, to_other = _to_means(logits, labels, unit)
    labels = labels.cpu()
    within, between = to_own.mean().item(), F.pdist(means).mean().item()
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return {
        "within": within,
        "between": between,
        "ratio": between / within,
        "silhouette": float(silhouette_score(space[chosen].numpy(), labels[chosen].numpy())),
        "margin": (to_other - to_own).mean().item(),
        "negative_margin": (to_other < to_own).double().mean().item(),
    }


def margins(logits: Tensor, labels: Tensor, *, unit: bool = True) -> tuple[Tensor, Tensor]:
    """Compute each sample's distance to the mean of its class, and its margin.

    `separation` returns the means of both, as within and margin.

    Args:
        logits: shape [N, C].
        labels: shape [N].
        unit: scale each sample's logits to unit length first.
    Returns:
        Distances [N] and margins [N] in float64 on the CPU. A margin is the distance to the nearest mean of another
        class minus the distance to the mean of the sample's class; it is infinite if there is only one class.
    """
    _, _, to_own, to_other = _to_means(logits, labels, unit)
    return to_own, to_other - to_own


def _to_means(logits: Tensor, labels: Tensor, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the distances between samples and the means of the K classes that occur, in float64 on the CPU.

    Returns:
        The logits [N, C], of unit length if `unit`; the class means [K, C]; each sample's distance to the mean of its
        class [N]; and its distance to the nearest mean of another class [N].
    """
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
    """Evaluate features by few-shot classification over many episodes.

    Each episode draws `ways` classes, and of each class `shots` labelled images (the support) and other images as
    queries. Two classifiers are fitted to the support. Both use features of unit length:

    - ncm: the nearest class mean by cosine similarity (Snell et al. 2017, arXiv 1703.05175);
    - linear: scikit-learn's logistic regression with C = 1, its default (as in Tian et al. 2020, arXiv 2003.11539).

    The logistic regression takes nearly all of the time: on one CPU core, 10 to 20 ms for an episode of 5 ways and 40
    to 90 ms for one of 100 ways.

    Args:
        features: shape [N, D].
        labels: shape [N], any integers.
        shots: number of labelled images of each class.
        ways: number of classes in an episode; 0 uses all classes.
        queries: number of queries of each class; all its other images if it has fewer.
        episodes: number of episodes.
        seed: determines all draws; torch's global generators are not used.
    Returns:
        ncm, linear: share of an episode's queries that are classified correctly, averaged over the episodes.
        ncm_interval, linear_interval: half the width of the 95% interval of that mean, 1.96 std / √episodes; nan with
            one episode.
    Raises:
        InputError: shapes differ; a feature is not finite; a number is out of its range; or a class has no more than
            `shots` images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"features have shape {list(features.shape)} and labels {list(labels.shape)}; few_shot takes [N, D] and [N]"
        )
    if not features.isfinite().all():
        raise InputError(
            "some features are NaN or infinite; few_shot needs finite ones, so check the network that computed them"
        )
    for name, value in (("shots", shots), ("queries", queries), ("episodes", episodes)):
        if value < 1:
            raise InputError(f"{name}={value}, but few_shot needs at least 1")
    values, sizes = labels.cpu().unique(return_counts=True)
    if len(values) < 2:
        raise InputError(f"the labels contain {len(values)} class; few_shot needs 2 or more")
    if ways != 0 and not 2 <= ways <= len(values):
        raise InputError(
            f"ways={ways}, but the labels contain {len(values)} classes; give 2 to {len(values)}, or 0 for all"
        )
    if sizes.min() <= shots:
        label, size = values[sizes.argmin()].item(), sizes.min().item()
        raise InputError(
            f"class {label} has {size} images, but shots={shots} and a query need {shots + 1}; lower shots or drop it"
        )

    space = F.normalize(features.detach().float().cpu(), dim=1)
    rows = [(labels.cpu() == value).nonzero().squeeze(1) for value in values]
    generator = runtime.generator(seed, "few_shot")
    linear = LogisticRegression(C=1.0, max_iter=1000)
    shares: dict[str, list[float]] = {"ncm": [], "linear": []}
    with threadpool_limits(1), warnings.catch_warnings():  # the problems are so small that several threads are slower
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(episodes):
            support, query, answer = _episode(rows, ways or len(rows), shots, queries, generator)
            means = F.normalize(space[support].mean(1), dim=1)
            shares["ncm"].append(accuracy(space[query] @ means.T, answer))
            support_classes = torch.arange(len(support)).repeat_interleave(shots)
            linear.fit(space[support].flatten(0, 1).numpy(), support_classes.numpy())
            shares["linear"].append(float(linear.score(space[query].numpy(), answer.numpy())))
    found = {}
    for name, per_episode in shares.items():
        correct = torch.tensor(per_episode, dtype=torch.double)
        found[name] = correct.mean().item()
        found[f"{name}_interval"] = 1.96 * correct.std().item() / episodes**0.5 if episodes > 1 else float("nan")
    return found


def _episode(
    rows: list[Tensor], ways: int, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one episode.

    Args:
        rows: for each class, the rows of its images.
    Returns:
        The rows of the support [ways, shots]; the rows of the Q queries [Q]; and their classes [Q], 0 to ways - 1.
    """
    support, query, answer = [], [], []
    for way, label in enumerate(torch.randperm(len(rows), generator=generator)[:ways].tolist()):
        drawn = rows[label][torch.randperm(len(rows[label]), generator=generator)[: shots + queries]]
        support.append(drawn[:shots])
        query.append(drawn[shots:])
        answer.append(torch.full((len(drawn) - shots,), way))
    return torch.stack(support), torch.cat(query), torch.cat(answer)


def freshness(bank: MemoryBank, *, step: int) -> dict[str, float]:
    """Measure how full a memory bank is during training, and how old its rows are.

    Args:
        bank: a memory bank that training updates.
        step: number of the last step, counted over all epochs as in `MemoryBank.update`.
    Returns:
        bank_fill: share of rows that have been written.
        bank_age, bank_age_max: mean and largest number of steps since each of these rows was last written; 0 if no
            row has been written.
    """
    age = (step - bank.written[bank.filled]).double()
    mean, most = (age.mean().item(), age.max().item()) if len(age) else (0.0, 0.0)
    return {"bank_fill": bank.filled.double().mean().item(), "bank_age": mean, "bank_age_max": most}


def drift(bank: MemoryBank, rebuilt: MemoryBank, *, k: int = 8) -> dict[str, float]:
    """Measure how far a memory bank that training updates is from one built with the current network.

    The rows of the first were written by earlier states of the network, in training mode and from augmented images. The
    rows of the second come from images without augmentation. Only rows that both banks contain are compared.

    Args:
        bank: the memory bank that training updates.
        rebuilt: a memory bank built now with the same network, from all its images or some of them.
        k: number of nearest rows that are compared; all other rows if there are fewer.
    Returns:
        bank_drift: 1 minus the mean cosine similarity of a row's two features.
        bank_agreement: share of rows whose largest logit belongs to the same class in both banks.
        bank_overlap: share of a row's k nearest rows, among the compared ones, that are the same in both banks.
    Raises:
        InputError: the banks have fewer than two written rows in common.
    """
    rows = bank.rows(rebuilt.index)
    common = (rows >= 0) & bank.filled[rows]
    if common.sum() < 2:
        raise InputError(
            f"the banks have {int(common.sum())} written rows in common, but drift compares 2 or more; give two banks "
            "of the same data, the first with rows that training has written"
        )
    old, new = bank.subset(rows[common]), rebuilt.subset(common.nonzero().squeeze(1))
    k = min(k, len(old) - 1)
    old_nearest, new_nearest = (one.nearest(one.features, one.index, k=k).index for one in (old, new))
    return {
        "bank_drift": 1 - (old.features * new.features).sum(1).mean().item(),
        "bank_agreement": (old.logits.argmax(1) == new.logits.argmax(1)).double().mean().item(),
        "bank_overlap": (old_nearest[:, :, None] == new_nearest[:, None]).any(2).double().mean().item(),
    }
