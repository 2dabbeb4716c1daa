"""Measurements of retrieval: similarity to queries, precision, and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import LabelledImages, loader
from ickd_lib.memory.bank import MemoryBank
from ickd_lib.memory.search import InContext, Neighbours
from ickd_lib.runtime import InputError


def nearest_similarities(positives: InContext, negatives: InContext) -> dict[str, float]:
    """Summarise the cosine of each query to its nearest row of its own class and of another class.

    Args:
        positives, negatives: in-context samples of B queries, as `MemoryBank.retrieve` returns them.
    Returns:
        own, other: mean cosine to the nearest row of the query's class and of another class.
        other_nearer: share of queries for which the row of another class is at least as similar.
    """
    own, other = positives.similarity[:, 0], negatives.similarity[:, 0]
    return {
        "own": own.mean().item(),
        "other": other.mean().item(),
        "other_nearer": (other >= own).double().mean().item(),
    }


def pixel_features(images: LabelledImages, *, largest: int = 32, side: int = 16) -> Tensor:
    """Return the pixels of all images as features, with which those of a network can be compared.

    Args:
        images: N images.
        largest: images with a longer side are averaged to `side` × `side`, so that the features of many images fit into
            memory.
        side: see `largest`.
    Returns:
        Floats in [0, 1], shape [N, 3 H W] or [N, 3 side²].
    """
    rows = range(len(images))
    parts = []
    for pixels in loader.pixels(images, [slice(at, min(at + 512, rows.stop)) for at in rows[::512]]):
        small = pixels if max(images.size) <= largest else F.adaptive_avg_pool2d(pixels, side)
        parts.append(small.flatten(1))
    return torch.cat(parts)


def precision_at(
    bank: MemoryBank,
    features: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    *,
    ks: Sequence[int],
    group_of: Tensor | None = None,
) -> Tensor:
    """Compute, for each query, the share of its k nearest rows that have its class. The search does not use labels.

    Args:
        bank: the memory bank that is searched; rows of every class can be found.
        features: features of the queries, shape [B, D].
        labels: class of each query, shape [B].
        index: keys of the queries, shape [B], if they are rows of the bank, so that a query never finds its own row.
        ks: M numbers of neighbours.
        group_of: group of each class, such as its superclass, shape [C]; the groups are then compared instead of the
            classes.
    Returns:
        Shares in float64, shape [B, M].
    Raises:
        InputError: a number of neighbours is below 1, or the bank has fewer rows.
    """
    if min(ks) < 1:
        raise InputError(f"ks={list(ks)}; the number of neighbours must be 1 or more")
    found = bank.nearest(features, index, k=max(ks))
    if not bool(found.mask.all()):
        raise InputError(f"a query has only {int(found.mask.sum(1).min())} other rows, not {max(ks)}; lower ks")
    group = torch.arange(len(bank.classes), device=labels.device) if group_of is None else group_of
    same = group[bank.labels[bank.rows(found.index)]] == group[labels][:, None]
    counts = torch.tensor(ks, device=labels.device)
    return same.double().cumsum(1)[:, counts - 1] / counts


def chance_precision(bank: MemoryBank, labels: Tensor, group_of: Tensor | None = None) -> float:
    """Compute the expected precision of randomly drawn rows, whatever their number.

    Args:
        bank: the memory bank.
        labels: class of each query, shape [B].
        group_of: as in `precision_at`.
    """
    group = torch.arange(len(bank.classes), device=labels.device) if group_of is None else group_of
    share = torch.bincount(group[bank.labels], minlength=int(group.max()) + 1).double() / len(bank)
    return share[group[labels]].mean().item()


@torch.no_grad()
def retrieval_seconds(
    sizes: Sequence[int],
    *,
    dim: int,
    classes: int,
    positives: int,
    negatives: int,
    batch: int = 64,
    repeats: int = 7,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, list[float]]:
    """Measure the time of a retrieval from banks of several sizes, filled with random vectors.

    The time depends on the sizes only, not on the contents of the bank.

    Args:
        sizes: numbers of rows, M of them.
        dim: number of features.
        classes: number of classes, which have equal numbers of rows or numbers that differ by one.
        positives, negatives: number of in-context samples of each kind.
        batch: number of queries in a batch.
        repeats: number of measurements, of which the median is returned.
        device: the device of the banks.
        seed: seed of the random vectors.
    Returns:
        Seconds per query for each size, [M], by kind of retrieval: a search for one query, a search for a batch, and
        copying the content of a batch's neighbours, when their rows are known from a table.
    """
    names = ("search, one query", f"search, batch of {batch}", f"table, batch of {batch}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    generator = runtime.generator(seed, "retrieval_seconds")
    for rows in sizes:
        vectors = torch.randn(rows, dim, generator=generator).to(device)
        index = torch.arange(rows, device=device)
        logits = torch.zeros(rows, classes, device=device)
        bank = MemoryBank(vectors, logits, index % classes, index, tuple(map(str, range(classes))))
        entries = torch.randint(rows, (batch, positives + negatives), generator=generator).to(device)
        table = Neighbours(entries, entries.float(), entries >= 0)
        calls = (partial(_search, bank, 1, positives, negatives), partial(_search, bank, batch, positives, negatives))
        for name, call, queries in zip(names, (*calls, partial(bank.gather, table)), (1, batch, batch), strict=True):
            seconds[name].append(_median_seconds(call, repeats) / queries)
    return seconds


def _search(bank: MemoryBank, queries: int, positives: int, negatives: int) -> InContext:
    features, labels = bank.features[:queries], bank.labels[:queries]
    near, _ = bank.retrieve(features, labels, positives=positives, negatives=negatives, allow_missing=True)
    return near


def _median_seconds(call: Callable[[], InContext], repeats: int) -> float:
    """Return the median seconds of a call, including the time until its result has been computed on the device."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        float(call().similarity.sum())  # reading a number waits for a GPU to finish
        found.append(time.perf_counter() - start)
    return statistics.median(found)
