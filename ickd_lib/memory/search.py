"""Exact nearest neighbours: a float32 product proposes, double precision decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # columns of scores of which the largest is compared first
POSITIVES, NEGATIVES = 8, 128  # default numbers of in-context samples
FIELDS = ("index", "similarity", "logits", "features", "mask")  # the tensors of in-context samples
SCRATCH = 2**25  # numbers in double precision that the exact scores of one block of queries may take


@dataclass(frozen=True)
class Neighbours:
    """The rows of a bank that were retrieved for Q queries, k each, the most similar first.

    rows: positions in the bank, shape [Q, k].  similarity: cosine to the query, shape [Q, k].
    mask: False where a query has fewer than k neighbours, shape [Q, k]; the other two are meaningless there.
    """

    rows: Tensor
    similarity: Tensor
    mask: Tensor

    def __getitem__(self, queries: Tensor) -> Neighbours:
        return Neighbours(self.rows[queries], self.similarity[queries], self.mask[queries])


@dataclass(frozen=True)
class InContext:
    """The in-context samples of B queries, k each, the most similar first.

    index: key of each sample in its data set, shape [B, k]; -1 where a sample is a class mean.
    similarity: cosine to the query, shape [B, k].
    logits: the teacher's logits, shape [B, k, C].
    features: the teacher's features at unit length, shape [B, k, D]; [B, k, 0] where they were not requested.
    mask: False where a query has fewer than k samples, shape [B, k]; the other fields are meaningless there.
    unit: whether the logits are scaled to unit length, for a method that uses their cosines only.
    """

    index: Tensor
    similarity: Tensor
    logits: Tensor
    features: Tensor
    mask: Tensor
    unit: bool = False

    def first(self, k: int) -> InContext:
        """The most similar k of each query."""
        index, similarity, logits, features, mask = (getattr(self, name)[:, :k] for name in FIELDS)
        return InContext(index, similarity, logits, features, mask, self.unit)


def fields(neighbours: Neighbours) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, similarities and mask of neighbours, [Q, k] each."""
    return neighbours.rows, neighbours.similarity, neighbours.mask


def nothing(queries: int, k: int, like: Tensor) -> Neighbours:
    """Neighbours that are all invalid, [queries, k], on the device of `like`; `search_into` fills them."""
    rows = torch.zeros(queries, k, dtype=torch.long, device=like.device)
    return Neighbours(rows, torch.zeros(queries, k, device=like.device), torch.zeros_like(rows, dtype=torch.bool))


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside the context, matrix products use full float32; the error bound of the search assumes that."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def search_into(
    into: Neighbours,
    queries: Tensor,
    asking: Tensor,
    features: Tensor,
    pool: Tensor,
    blocked: Tensor | Sequence[tuple[slice, Tensor]],
    scratch: Tensor | None = None,
) -> None:
    """Find the nearest rows of `pool` for some queries and write them into `into`.

    A float32 product proposes a few rows more than requested, and double precision orders them. A row that was not
    proposed scores below the last proposal up to the rounding of the product. Where that does not settle the k-th place
    (with duplicates, for example), all rows within the rounding error are scored for these queries.

    Args:
        into: the neighbours of all queries; those at `asking` are written.
        queries: unit length, shape [all, D].
        asking: positions of the queries to search for, shape [Q].
        features: of all rows of the bank, unit length, shape [N, D].
        pool: positions of the rows to choose from, shape [P].
        blocked: True for each query and row of the pool that must not be returned, shape [Q, P]; or pairs of a slice of
            the queries and the places in `pool` that are blocked for all of them, which is faster where these are few.
        scratch: a buffer of at least Q rows and P columns that is overwritten; allocating one for every product would
            double its time.
    """
    k = into.rows.shape[1]
    if k == 0 or len(pool) == 0:
        return
    whole = len(pool) == len(features)
    members = features if whole else features[pool]
    chosen = queries[asking]
    rough = chosen @ members.T if scratch is None else torch.mm(chosen, members.T, out=scratch[: len(chosen)])
    if isinstance(blocked, Tensor):
        rough.masked_fill_(blocked, -torch.inf)
    else:
        for some, columns in blocked:
            rough[some].index_fill_(1, columns, -torch.inf)
    wide = min(k + 8, len(pool))
    proposed, places = _top(rough, wide)
    places = places.sort(dim=1).values  # lower rows first, so that a stable sort settles ties
    exact = _dot(chosen, members, places).masked_fill_(rough.gather(1, places) == -torch.inf, -torch.inf)
    found = min(k, wide)
    similarity, order = exact.sort(dim=1, descending=True, stable=True)
    similarity, places = similarity[:, :found].clone(), places.gather(1, order[:, :found])
    if wide < len(pool):
        rounding = 2 * features.shape[1] * 2.0**-24
        worst = proposed.min(1).values
        unsettled = ((similarity[:, -1] <= worst + rounding) & (worst > -torch.inf)).nonzero().squeeze(1)
        for some in unsettled.split(16 if rough.device.type == "cpu" else 512) if len(unsettled) else ():
            within = rough[some] >= (similarity[some, -1:] - rounding).float()
            width = int(within.sum(1).max())
            reach = rough[some].masked_fill(~within, -torch.inf).topk(width, dim=1).indices.sort(dim=1).values
            scores = _dot(chosen[some], members, reach).masked_fill_(~within.gather(1, reach), -torch.inf)
            top, order = scores.sort(dim=1, descending=True, stable=True)
            similarity[some], places[some] = top[:, :found], reach.gather(1, order[:, :found])
    into.rows[asking, :found] = pool[places]
    into.similarity[asking, :found] = similarity.float().masked_fill(similarity == -torch.inf, 0)
    into.mask[asking, :found] = similarity > -torch.inf


def own_class(labels: Tensor, theirs: Tensor) -> list[tuple[slice, Tensor]]:
    """For queries sorted by class: the slice of each class, and the places in the pool that have this class.

    Args:
        labels: classes of the queries, sorted, shape [Q].
        theirs: classes of the rows of the pool, shape [P].
    """
    own, counts = labels.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [
        (slice(end - count, end), (theirs == c).nonzero().squeeze(1))
        for c, count, end in zip(own.tolist(), counts.tolist(), ends, strict=True)
    ]


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row of [Q, P] and their places, in no particular order, [Q, k] each.

    With many columns, blocks of columns are compared by their maxima first: the k largest scores lie in the k blocks
    with the largest maxima (or scores equal to them do), and computing maxima is faster than selecting.
    """
    whole = scores.shape[1] // BLOCK * BLOCK
    if whole < 4 * k * BLOCK:
        return scores.topk(k, dim=1, sorted=False)
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
    best = blocks.amax(2).topk(k, dim=1, sorted=False).indices
    each = torch.arange(len(scores), device=scores.device)[:, None]
    left = torch.cat([blocks[each, best].flatten(1), scores[:, whole:]], 1)
    values, at = left.topk(k, dim=1, sorted=False)
    block = best.gather(1, (at // BLOCK).clamp_max(k - 1))
    return values, torch.where(at < k * BLOCK, block * BLOCK + at % BLOCK, whole + at - k * BLOCK)


def _dot(queries: Tensor, members: Tensor, places: Tensor) -> Tensor:
    """Inner products in double precision of each query [Q, D] with members [P, D] at places [Q, w]: [Q, w]."""
    rows = max(1, min(16, SCRATCH // max(1, places.shape[1] * members.shape[1])))  # few at a time stay in a CPU's cache
    parts = [
        members[p].double().mul_(q.double()[:, None]).sum(-1)
        for q, p in zip(queries.split(rows), places.split(rows), strict=True)
    ]
    return torch.cat(parts)
