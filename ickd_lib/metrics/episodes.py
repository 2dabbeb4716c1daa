"""Few-shot classification over many random episodes."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.metrics.predictions import accuracy
from ickd_lib.runtime import InputError


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
        ncm_interval, linear_interval: half the width of the 95% interval of that mean, t std / √episodes with the
            quantile t of Student's distribution; nan with one episode.
    Raises:
        InputError: shapes differ; a feature is not finite; a number is out of its range; or a class has no more than
            `shots` images.
    """
    from scipy.stats import t
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
    quantile = float(t.ppf(0.975, episodes - 1))
    for name, per_episode in shares.items():
        correct = torch.tensor(per_episode, dtype=torch.double)
        found[name] = correct.mean().item()
        found[f"{name}_interval"] = quantile * correct.std().item() / episodes**0.5 if episodes > 1 else float("nan")
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
