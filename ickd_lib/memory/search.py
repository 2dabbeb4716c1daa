"""Exact nearest neighbours: a float32 matrix product proposes rows, and double precision orders them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ickd_lib import runtime

CHUNK = 1024  # number of queries in one product; their similarities to 50,000 rows take 200 MB
BLOCK = 32  # number of columns of scores in a block; the maxima of the blocks are compared first
POSITIVES, NEGATIVES = 8, 128  # default numbers of in-context samples
FIELDS = ("index", "similarity", "logits", "features", "mask")  # the tensors of in-context samples
SCRATCH = 2**25  # largest number of float64 values that are used at once to compute exact scores


@dataclass(frozen=True)
class Neighbours:
    """The rows of a bank that were retrieved for Q queries, k each, the most similar first.

    rows: positions in the bank, shape [Q, k].
    similarity: cosine to the query, shape [Q, k].
    mask: False where a query has fewer than k neighbours, shape [Q, k]; the other two fields are meaningless there.
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
    logits: logits in the bank, shape [B, k, C].
    features: features in the bank, at unit length, shape [B, k, D]; [B, k, 0] if they were not requested.
    mask: False where a query has fewer than k samples, shape [B, k]; the other fields are meaningless there.
    unit: whether the logits are scaled to unit length, for a method that uses their cosines only.
    own: logits in each query's own row, shape [B, C]; None if they were not requested.
    """

    index: Tensor
    similarity: Tensor
    logits: Tensor
    features: Tensor
    mask: Tensor
    unit: bool = False
    own: Tensor | None = None

    def first(self, k: int) -> InContext:
        """Return the k most similar samples of each query."""
        index, similarity, logits, features, mask = (getattr(self, name)[:, :k] for name in FIELDS)
        return InContext(index, similarity, logits, features, mask, self.unit, self.own)


def fields(neighbours: Neighbours) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, similarities and mask of neighbours, [Q, k] each."""
    return neighbours.rows, neighbours.similarity, neighbours.mask


def nothing(queries: int, k: int, like: Tensor) -> Neighbours:
    """Return neighbours that are all masked, [queries, k], on the device of `like`; `search_into` fills them."""
    rows = torch.zeros(queries, k, dtype=torch.long, device=like.device)
    return Neighbours(rows, torch.zeros(queries, k, device=like.device), torch.zeros_like(rows, dtype=torch.bool))


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products in full float32 inside the context; the error bound of the search assumes this."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def search_into(
    into: Neighbours,
    queries: Tensor,
    chosen: Tensor,
    features: Tensor,
    pool: Tensor,
    blocked: Tensor | Sequence[tuple[slice, Tensor]],
    scratch: Tensor | None = None,
) -> None:
    """Find the nearest rows of `pool` for some queries and write them into `into`.

    A float32 product proposes a few rows more than requested, and double precision orders them. A row that was not
    proposed can exceed the last proposal by no more than the rounding error of the product. Where this leaves the k-th
    place open (with duplicates, for example), all rows within the rounding error are scored in double precision.

    Args:
        into: the neighbours of all A queries; those at `chosen` are written.
        queries: features of all queries, unit length, shape [A, D].
        chosen: positions of the queries to search for, shape [Q].
        features: features of all rows of the bank, unit length, shape [N, D].
        pool: positions of the rows to choose from, shape [P].
        blocked: True for each query and row of the pool that must not be returned, shape [Q, P]; or pairs of a slice of
            the queries and the places in `pool` that are blocked for all of them, which is faster where these are few.
        scratch: a buffer of at least Q rows and P columns, which is overwritten. Allocating one for every product would
            double the time.
    """
    k = into.rows.shape[1]
    if k == 0 or len(pool) == 0:
        return
    members = (features if len(pool) == len(features) else features[pool]).float()
    similarity, places = nearest_members(queries[chosen], members, k, blocked, scratch)
    _write(into, chosen, similarity, pool[places])


def _write(into: Neighbours, chosen: Tensor, similarity: Tensor, rows: Tensor) -> None:
    """Write similarities in float64, -inf where there is no neighbour, and rows, [Q, up to k], into neighbours."""
    found = similarity.shape[1]
    into.rows[chosen, :found] = rows
    into.similarity[chosen, :found] = similarity.float().masked_fill(similarity == -torch.inf, 0)
    into.mask[chosen, :found] = similarity > -torch.inf


def nearest_members(
    selected: Tensor,
    members: Tensor,
    k: int,
    blocked: Tensor | Sequence[tuple[slice, Tensor]],
    scratch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cosines in float64 of the nearest members to some queries, the largest first, and their places.

    Args:
        selected: features of the queries, unit length, shape [Q, D].
        members: features of the rows to choose from, unit length, shape [P, D].
        k: number of members.
        blocked, scratch: as in `search_into`.
    Returns:
        Cosines, -inf where there is no member, and places in `members`, of equal cosines the lower one first: each of
        shape [Q, k], or [Q, P] if P is smaller.
    Raises:
        KeyboardInterrupt: see `runtime.between_blocks`.
    """
    runtime.between_blocks()
    rough = selected @ members.T if scratch is None else torch.mm(selected, members.T, out=scratch[: len(selected)])
    if isinstance(blocked, Tensor):
        rough.masked_fill_(blocked, -torch.inf)
    else:
        for some, columns in blocked:
            rough[some].index_fill_(1, columns, -torch.inf)
    wide = min(k + 8, len(members))
    proposed, places = _top(rough, wide)
    places = places.sort(dim=1).values  # lower rows first, so that a stable sort settles ties
    exact = dot(selected, members, places).masked_fill_(rough.gather(1, places) == -torch.inf, -torch.inf)
    found = min(k, wide)
    similarity, order = exact.sort(dim=1, descending=True, stable=True)
    similarity, places = similarity[:, :found].clone(), places.gather(1, order[:, :found])
    if wide < len(members):
        rounding = 2 * members.shape[1] * 2.0**-24
        worst = proposed.min(1).values
        unsettled = ((similarity[:, -1] <= worst + rounding) & (worst > -torch.inf)).nonzero().squeeze(1)
        for some in unsettled.split(16 if rough.device.type == "cpu" else 512) if len(unsettled) else ():
            within = rough[some] >= (similarity[some, -1:] - rounding).float()
            width = int(within.sum(1).max())
            reach = rough[some].masked_fill(~within, -torch.inf).topk(width, dim=1).indices.sort(dim=1).values
            scores = dot(selected[some], members, reach).masked_fill_(~within.gather(1, reach), -torch.inf)
            top, order = scores.sort(dim=1, descending=True, stable=True)
            similarity[some], places[some] = top[:, :found], reach.gather(1, order[:, :found])
    return similarity, places


def search_in_parts(
    into: Neighbours,
    queries: Tensor,
    chosen: Tensor,
    parts: Iterable[tuple[Tensor, Tensor]],
    blocked: Callable[[Tensor, Tensor], Tensor | Sequence[tuple[slice, Tensor]]],
) -> None:
    """Find what `search_into` finds, with one part of the rows in memory at a time. The result is the same.

    Args:
        into, queries, chosen: as in `search_into`.
        parts: positions [P] of the rows of each part, which ascend over all parts, and their features [P, D], float32.
        blocked: returns the rows of a part that are blocked, in the form that `search_into` takes, for positions of
            queries and positions of rows.
    """
    k = into.rows.shape[1]
    if k == 0:
        return
    similarity = torch.full((len(chosen), k), -torch.inf, dtype=torch.double, device=queries.device)
    rows = torch.zeros(len(chosen), k, dtype=torch.long, device=queries.device)
    for pool, members in parts:
        for start in range(0, len(chosen), CHUNK):
            some = slice(start, start + CHUNK)
            found, places = nearest_members(queries[chosen[some]], members, k, blocked(chosen[some], pool))
            both = torch.cat([similarity[some], found], 1)  # rows of earlier parts are lower, so a stable sort suffices
            both, order = both.sort(dim=1, descending=True, stable=True)
            similarity[some] = both[:, :k]
            rows[some] = torch.cat([rows[some], pool[places]], 1).gather(1, order[:, :k])
    _write(into, chosen, similarity, rows)


def own_class(labels: Tensor, pool_labels: Tensor) -> list[tuple[slice, Tensor]]:
    """Return, for queries sorted by class, the slice of each class and the places in the pool that have this class.

    Args:
        labels: classes of the queries, sorted, shape [Q].
        pool_labels: classes of the rows of the pool, shape [P].
    """
    own, counts = labels.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [
        (slice(end - count, end), (pool_labels == c).nonzero().squeeze(1))
        for c, count, end in zip(own.tolist(), counts.tolist(), ends, strict=True)
    ]


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row of [Q, P] and their places, in no particular order, [Q, k] each.

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


def dot(queries: Tensor, members: Tensor, places: Tensor) -> Tensor:
    """Compute inner products in float64 of each query [Q, D] with the members [P, D] at places [Q, w]: [Q, w]."""
    rows = max(1, SCRATCH // max(1, places.shape[1] * members.shape[1]))
    if queries.device.type == "cpu":
        rows = min(16, rows)  # a few fit into the cache
    parts = [
        members[p].double().mul_(q.double()[:, None]).sum(-1)
        for q, p in zip(queries.split(rows), places.split(rows), strict=True)
    ]
    return torch.cat(parts)
