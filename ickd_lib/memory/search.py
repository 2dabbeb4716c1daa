"""Exact nearest neighbours: a float32 product proposes, double precision decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # columns of scores that are compared by their largest


@dataclass(frozen=True)
class Neighbours:
    """The rows retrieved for Q queries: positions in the bank, similarities and validity, [Q, k] each."""

    rows: Tensor
    similarity: Tensor
    mask: Tensor

    def __getitem__(self, queries: Tensor) -> Neighbours:
        return Neighbours(self.rows[queries], self.similarity[queries], self.mask[queries])


@dataclass(frozen=True)
class InContext:
    """The in-context samples of B queries, k each, most similar first.

    index: row in the data set, [B, k].  similarity: cosine to the query, [B, k].
    logits: the teacher's, [B, k, C].  features: the teacher's, unit length, [B, k, D].
    mask: false where a query has fewer than k samples, [B, k]; what stands there means nothing.
    """

    index: Tensor
    similarity: Tensor
    logits: Tensor
    features: Tensor
    mask: Tensor


def fields(neighbours: Neighbours) -> tuple[Tensor, Tensor, Tensor]:
    return neighbours.rows, neighbours.similarity, neighbours.mask


def nothing(queries: int, k: int, like: Tensor) -> Neighbours:
    rows = torch.zeros(queries, k, dtype=torch.long, device=like.device)
    return Neighbours(rows, torch.zeros(queries, k, device=like.device), torch.zeros_like(rows, dtype=torch.bool))


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 or bf16 inside: the margin of error below assumes float32 products."""
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
    """Write the nearest rows of `pool` for the queries at `asking` into `into`, except where they are blocked.

    `blocked` says so for each query and row, [Q, P]; or it names queries (a slice of `asking`) and places in `pool`
    that are blocked for all of them, which costs next to nothing where these are few. `scratch`, of as many rows as
    queries or more and as many columns as `pool`, is written over: new memory for every product doubles its time.

    A float32 product proposes a few rows more than wanted, double precision orders them. A row that was not
    proposed scores below the last proposal, give or take the product's rounding; where that does not settle
    the k-th place (duplicates, say), every row within reach is scored for that query.
    """
    k = into.rows.shape[1]
    if k == 0 or len(pool) == 0:
        return
    whole = len(pool) == len(features)
    members = features if whole else features[pool]
    asked = queries[asking]
    rough = asked @ members.T if scratch is None else torch.mm(asked, members.T, out=scratch[: len(asked)])
    if isinstance(blocked, Tensor):
        rough.masked_fill_(blocked, -torch.inf)
    else:
        for some, columns in blocked:
            rough[some].index_fill_(1, columns, -torch.inf)
    wide = min(k + 8, len(pool))
    proposed, places = _top(rough, wide)
    places = places.sort(dim=1).values  # lower rows first, so that a stable sort settles ties
    exact = _dot(asked, members, places).masked_fill_(rough.gather(1, places) == -torch.inf, -torch.inf)
    found = min(k, wide)
    similarity, order = exact.sort(dim=1, descending=True, stable=True)
    similarity, places = similarity[:, :found].clone(), places.gather(1, order[:, :found])
    if wide < len(pool):
        rounding = 2 * features.shape[1] * 2.0**-24
        worst = proposed.min(1).values
        unsettled = (similarity[:, -1] <= worst + rounding) & (worst > -torch.inf)
        for q in unsettled.nonzero().squeeze(1).tolist():
            reach = (rough[q] >= float(similarity[q, -1]) - rounding).nonzero().squeeze(1)
            scores = _dot(asked[q : q + 1], members, reach[None])[0]
            top = scores.sort(descending=True, stable=True).indices[:found]
            similarity[q], places[q] = scores[top], reach[top]
    into.rows[asking, :found] = pool[places]
    into.similarity[asking, :found] = similarity.float().masked_fill(similarity == -torch.inf, 0)
    into.mask[asking, :found] = similarity > -torch.inf


def own_class(labels: Tensor, theirs: Tensor) -> list[tuple[slice, Tensor]]:
    """For queries sorted by class [Q]: those of each class, and the places in a pool [P] that are of it."""
    own, counts = labels.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [
        (slice(end - count, end), (theirs == c).nonzero().squeeze(1))
        for c, count, end in zip(own.tolist(), counts.tolist(), ends, strict=True)
    ]


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores [Q, P] and their places, in no order, [Q, k] each.

    Of many columns, blocks are compared by their largest first: the k largest scores lie in the k blocks with the
    largest maxima (or equal scores do), and a maximum is read faster than a selection.
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
    parts = [
        members[p].double().mul_(q.double()[:, None]).sum(-1)
        for q, p in zip(queries.split(16), places.split(16), strict=True)  # few at a time stay in a CPU's cache
    ]
    return torch.cat(parts)
