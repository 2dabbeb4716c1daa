"""Approximate search with faiss for the negatives of a large bank, its recall, and how long each search takes."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.memory import retrieval
from ickd_lib.memory.search import CHUNK, Neighbours, Wanted, dot, write
from ickd_lib.runtime import InputError, arguments, choose, distributed

if TYPE_CHECKING:
    from ickd_lib.memory.bank import MemoryBank

POINTS = 40  # number of rows per list from which the centres of the lists are computed
PROBES = 64  # number of lists that are probed for a query
ITERATIONS = 10  # number of iterations of k-means for the centres
SAMPLE = 256  # number of queries from which the recall is measured
LARGE = 200_000  # from this number of rows on, a note on a CPU compares the times of both searches


@dataclass(frozen=True)
class Faiss:
    """Settings of an approximate search: an inverted file (IVF), in which a query is compared with a part of the rows.

    The rows are divided among lists by the nearest of as many centres, which k-means computes. A query is compared with
    the rows in the lists of the nearest centres, which are probed.

    lists: number of lists; 0 for 4 √N. There are at most N / 40.
    probes: number of lists that are probed for a query; 0 for 64. Some of these contain mostly rows of the query's own
        class, so that a few are not enough.
    seed: seed of k-means.
    """

    lists: int = 0
    probes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lists", "probes", "seed"):
            arguments.check(name, getattr(self, name), int, "Faiss")
        if self.lists < 0 or self.probes < 0:
            raise InputError(f"lists={self.lists} and probes={self.probes} must be 0 or more")

    def resolved(self, rows: int) -> Faiss:
        """Return the settings for a number of rows, with numbers instead of 0."""
        lists = min(self.lists or round(4 * math.sqrt(rows)), max(1, rows // POINTS))
        return replace(self, lists=lists, probes=min(self.probes or PROBES, lists))


def requested(search: str | Faiss) -> Faiss | None:
    """Return the settings of an approximate search, or None for "exact".

    Raises:
        InputError: the search is unknown, or faiss is not installed.
    """
    if not isinstance(search, Faiss):
        if choose(search, ("exact", "faiss"), "search") == "exact":
            return None
        search = Faiss()
    if importlib.util.find_spec("faiss") is None:
        raise InputError("search='faiss' needs faiss, which is not installed: run pip install faiss-cpu")
    return search


class Index:
    """A faiss index of the rows of a bank that have been written, in memory, in the precision of the bank's features.

    The rows are numbered by class, so that a class is a range of numbers. Those of a query's own class are left out
    during the search, so that nothing must be fetched beyond the k rows that are requested.

    Args:
        bank: the bank.
        settings: resolved settings.
    """

    def __init__(self, bank: MemoryBank, settings: Faiss) -> None:
        faiss = _faiss()
        self.bank, self.settings = bank, settings
        written = bank.filled.nonzero().squeeze(1)
        self.order = written[bank.labels[written].argsort(stable=True)]  # positions in the bank of the rows
        sizes = torch.bincount(bank.labels[written], minlength=len(bank.classes))
        self.ends = sizes.cumsum(0).tolist()
        generator = runtime.generator(settings.seed, "faiss")
        drawn = torch.randperm(len(self.order), generator=generator)[: POINTS * settings.lists]
        points = bank.features[self.order[drawn.sort().values.to(written.device)]].float().cpu()
        bank.release()
        centres = _centres(points, settings.lists, generator)
        dim, inner = bank.features.shape[1], faiss.METRIC_INNER_PRODUCT
        self._coarse = faiss.IndexFlatIP(dim)
        self._coarse.add(centres.numpy())
        if bank.features.dtype == torch.half:
            kind = faiss.ScalarQuantizer.QT_fp16
            self._lists = faiss.IndexIVFScalarQuantizer(self._coarse, dim, settings.lists, kind, inner, False)
            self._lists.train(points[:1].numpy())  # nothing is learned for this kind of number
        else:
            self._lists = faiss.IndexIVFFlat(self._coarse, dim, settings.lists, inner)
        number = torch.empty(len(bank), dtype=torch.long)
        number[self.order.cpu()] = torch.arange(len(self.order))
        nearest = torch.cat([_nearest(features.cpu(), centres, 1) for _, features in retrieval.parts(bank, written)])
        for place, size in enumerate(torch.bincount(nearest.squeeze(1), minlength=settings.lists).tolist()):
            self._lists.invlists.resize(place, size)  # so that a list, which grows by one row at a time, has room
            self._lists.invlists.resize(place, 0)
        done = 0
        for part, features in retrieval.parts(bank, written):
            rows, lists, numbers = features.cpu(), nearest[done : done + len(part)], number[part.cpu()]
            pointers = (faiss.swig_ptr(tensor.numpy()) for tensor in (rows, numbers, lists))
            self._lists.add_core(len(part), *pointers)
            done += len(part)

    def search_into(self, into: Neighbours, queries: Tensor, labels: Tensor) -> None:
        """Find rows of other classes near some queries and write them into `into`.

        Where the probed lists contain too few rows, four times as many are probed, until there are enough.

        Args:
            into: the neighbours of all Q queries.
            queries: features, unit length, shape [Q, D].
            labels: classes, shape [Q].
        """
        k = min(into.rows.shape[1], len(self.order))
        if k == 0:
            return
        for c in labels.unique().tolist():
            first, end = (self.ends[c - 1] if c else 0), self.ends[c]
            left, probes = (labels == c).nonzero().squeeze(1), self.settings.probes
            enough = min(k, len(self.order) - (end - first))
            while len(left):
                runtime.between_blocks()
                found = self._search(queries[left], k, probes, first, end)
                complete = (found >= 0).sum(1) >= enough
                done = complete if probes < self.settings.lists else torch.ones_like(complete)
                self._write(into, queries, left[done], found[done])
                left, probes = left[~done], min(4 * probes, self.settings.lists)

    def _search(self, queries: Tensor, k: int, probes: int, first: int, end: int) -> Tensor:
        """Return the numbers of the k rows that were found, [Q, k], without those from `first` to `end`; -1 if none."""
        faiss = _faiss()
        own = faiss.IDSelectorRange(first, end)
        chosen = faiss.SearchParametersIVF(nprobe=probes, sel=faiss.IDSelectorNot(own))
        _, found = self._lists.search(queries.cpu().contiguous().numpy(), k, params=chosen)
        return torch.from_numpy(found).to(queries.device)

    def _write(self, into: Neighbours, queries: Tensor, chosen: Tensor, found: Tensor) -> None:
        """Write the rows that were found, [Q, k], the most similar first; of equal ones the lower row comes first."""
        if not len(chosen):
            return
        rows = torch.where(found >= 0, self.order[found.clamp(min=0)], len(self.bank)).sort(dim=1).values
        missing = rows == len(self.bank)
        rows = rows.masked_fill(missing, 0)
        similarity = dot(queries[chosen], self.bank.features, rows).masked_fill_(missing, -torch.inf)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        write(into, chosen, similarity, rows.gather(1, order))
        self.bank.release()


def _faiss() -> Any:
    """Return the module faiss, which uses as many threads as torch: each has its own OpenMP library and threads."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _note(text: str) -> None:
    """Print a note, of several processes in the first one only."""
    if distributed.rank() == 0:
        runtime.notice(text)


def _centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the centres of k-means for points of unit length, [P, D], scaled to unit length: [count, D].

    It is computed here and not by faiss, whose matrix products took five times as long.
    """
    centres = points[torch.randperm(len(points), generator=generator)[:count]]
    for _ in range(ITERATIONS):
        nearest = _nearest(points, centres, 1).squeeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        used = torch.bincount(nearest, minlength=count) > 0
        centres = torch.where(used[:, None], F.normalize(sums, dim=1), centres)
    return centres.contiguous()


def _nearest(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return which centres [L, D] have the largest inner products with each point [P, D], [P, count]."""
    found = []
    for some in points.split(CHUNK):
        runtime.between_blocks()
        found.append((some @ centres.T).topk(count, dim=1).indices)
    return torch.cat(found)


@torch.no_grad()
def recall(bank: MemoryBank, rows: Tensor | None, found: Neighbours, settings: Faiss) -> float:
    """Measure which share of the nearest negatives a table contains, on a sample of its queries, and print it.

    Args:
        bank: the bank.
        rows: positions of the M rows that are the queries; None for all rows.
        found: their negatives, [M, k].
        settings: the resolved settings of the search.
    Returns:
        recall@k, by an exact search for the sample, whose draw is a function of the seed in `settings`.
    """
    count = len(found.rows)
    drawn = torch.randperm(count, generator=runtime.generator(settings.seed, "recall"))[:SAMPLE].sort().values
    drawn = drawn.to(found.rows.device)
    asked, k = drawn if rows is None else rows[drawn], found.rows.shape[1]
    wanted = Wanted(0, k, allow_missing=True)
    _, exact = retrieval.search(bank, bank.features[asked], bank.labels[asked], asked, wanted)
    hits = total = 0
    for i in range(len(drawn)):
        true = exact.rows[i][exact.mask[i]]
        hits += int(torch.isin(found.rows[drawn[i]][found.mask[drawn[i]]], true).sum())
        total += len(true)
    share = hits / max(1, total)
    _note(
        f"search='faiss' found {share:.2%} of the {k} nearest negatives of {len(drawn)} queries, where "
        f"{settings.probes} of {settings.lists} lists are probed"
    )
    return share


# ------------------------------------------------------------------------------------------ which is faster

# Measured with 1,280,000 rows and 512 features, as multiples of the time of a comparison in a large product:
OVERHEAD = 2.1  # a comparison in an exact search, including everything else
BUILD = 1.3  # a comparison of a row with a centre
CENTRE, SCAN = 5, 15  # faiss: a comparison of a query with a centre, and with a row in a list
RESCORE = 400  # the computation and ordering of the cosine of a neighbour in double precision


def operations(rows: int, queries: int, negatives: int, settings: Faiss | None = None) -> float:
    """Return the time of a search in units of one comparison, a query with a row in a large matrix product.

    Args:
        rows: number of rows of the bank.
        queries: number of queries.
        negatives: number of negatives of a query.
        settings: those of an approximate search; None for an exact one.
    """
    if settings is None:
        return OVERHEAD * queries * rows
    chosen = settings.resolved(rows)
    building = BUILD * chosen.lists * (ITERATIONS * min(rows, POINTS * chosen.lists) + rows)
    probed = CENTRE * chosen.lists + SCAN * rows * chosen.probes / chosen.lists + RESCORE * negatives
    return building + queries * probed


def suggest(bank: MemoryBank, queries: int, negatives: int) -> None:
    """Print once which search would be faster, before an exact search of a large bank on a CPU.

    The time of a small product is measured, and that of both searches follows from it (`operations`).

    Args:
        bank: the bank.
        queries: number of queries.
        negatives: number of negatives of a query.
    """
    if len(bank) < LARGE or bank.labels.device.type != "cpu":
        return
    some = F.normalize(bank.features[:: max(1, len(bank) // 8192)][:8192].float(), dim=1)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        some[:1024] @ some.T
        taken.append(time.perf_counter() - start)
    each = min(taken) / (len(some[:1024]) * len(some))
    exact, fast = (each * operations(len(bank), queries, negatives, s) / 60 for s in (None, Faiss()))
    faster = "faiss" if fast < exact else "exact"
    _note(
        f"the exact search for {queries:,} rows takes about {exact:,.0f} minutes, and the approximate one "
        f"(search='faiss') about {fast:,.0f} minutes, estimated from a small matrix product; {faster} is faster"
    )
