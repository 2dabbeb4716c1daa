"""The choice of in-context samples from a bank: the nearest rows, random rows, or class means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.memory.rows import PART, Rows
from ickd_lib.memory.search import (
    CHUNK,
    InContext,
    Neighbours,
    Wanted,
    fields,
    full_precision,
    nothing,
    own_class,
    search_in_parts,
    search_into,
)
from ickd_lib.runtime import InputError, distributed, shown

if TYPE_CHECKING:
    from ickd_lib.memory.approximate import Index
    from ickd_lib.memory.bank import MemoryBank

GROUP = 2**14  # number of rows that are queries at once where rows are converted to float32
WHOLE = 2**18  # up to this number of rows, a CPU computes the similarities to all rows in one product
FEW = 256  # up to this number, queries are compared with all rows at once; more are searched class by class


@torch.no_grad()
def search(
    bank: MemoryBank, features: Tensor, labels: Tensor, rows: Tensor, wanted: Wanted, index: Index | None = None
) -> tuple[Neighbours, Neighbours]:
    """Return the nearest rows of the class of each query and of all other classes; see `MemoryBank.retrieve`.

    Args:
        rows: position of each query in the bank, shape [B]; -1 for a query that is not in the bank.
        wanted: numbers of in-context samples.
        index: an index that searches for the negatives approximately; None to search exactly.
    """
    queries = F.normalize(features.float(), dim=1)
    written = bank.filled.nonzero().squeeze(1)
    few = len(queries) <= FEW and not _in_parts(bank, len(written))
    present = [] if wanted.allow_missing and few else labels.unique().tolist()
    if present and not 0 <= present[0] <= present[-1] < len(bank.classes):
        wrong = present[0] if present[0] < 0 else present[-1]
        raise InputError(f"a query has the label {wrong}; labels must be positions of the {len(bank.classes)} classes")
    if not wanted.allow_missing:
        require(bank, present, labels, rows, wanted)
    near, far = (nothing(len(queries), k, queries) for k in (wanted.positives, wanted.negatives))
    with full_precision():
        if wanted.positives:
            _find_positives(bank, near, queries, labels, rows, None if few else present)
        if not wanted.negatives:
            pass
        elif wanted.per_class:
            _best_of_each_class(bank, far, queries, labels)
        elif index is not None:
            index.search_into(far, queries, labels)
        else:
            _find_negatives(bank, far, queries, labels, written, few)
    bank.release()
    return near, far


def _find_positives(
    bank: MemoryBank, into: Neighbours, queries: Tensor, labels: Tensor, rows: Tensor, present: list[int] | None
) -> None:
    """Write the nearest rows of each query's class, searched class by class or, if `present` is None, all at once."""
    filled = bank.filled
    if present is None:
        groups = [(torch.arange(len(queries), device=queries.device), filled.nonzero().squeeze(1))]
    else:
        members = ((c, bank.class_rows[c]) for c in present)
        groups = [((labels == c).nonzero().squeeze(1), pool[filled[pool]]) for c, pool in members]
    for chosen, pool in groups:
        blocked = (labels[chosen, None] != bank.labels[pool]) | (rows[chosen, None] == pool)
        search_into(into, queries, chosen, bank.features, pool, blocked)
        bank.release()


def _find_negatives(
    bank: MemoryBank, into: Neighbours, queries: Tensor, labels: Tensor, written: Tensor, few: bool
) -> None:
    """Write the nearest rows of all other classes."""
    # The queries are sorted by class, so that a chunk has few classes, and few columns must be excluded for each.
    by_class = labels.argsort(stable=True)
    if _in_parts(bank, len(written)):
        search_in_parts(
            into, queries, by_class, parts(bank, written), lambda some, p: own_class(labels[some], bank.labels[p])
        )
        return
    classes = bank.labels[written]
    scratch = None if few else queries.new_empty(min(CHUNK, len(queries)), len(written))
    for chosen in by_class.split(CHUNK):
        own = labels[chosen, None] == classes if few else own_class(labels[chosen], classes)
        search_into(into, queries, chosen, bank.features, written, own, scratch)


def _in_parts(bank: Rows, count: int) -> bool:
    """Return whether `count` rows of a bank are searched in parts, and not all at once."""
    return bank.stored or (count > WHOLE and bank.labels.device.type == "cpu")


def parts(bank: Rows, pool: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the positions [P] and the features [P, D] in float32 of some rows, in parts."""
    for part in pool.split(PART):
        first, last = int(part[0]), int(part[-1])
        whole = last - first + 1 == len(part)
        yield part, bank.features[slice(first, last + 1) if whole else part].float()
        bank.release()


def table(
    bank: MemoryBank, rows: Tensor | None, wanted: Wanted, index: Index | None = None
) -> tuple[Neighbours, Neighbours]:
    """Return the neighbours of rows of the bank; where several processes train together, each searches for its share.

    Args:
        rows: positions of the M rows; None for all rows.
        wanted: numbers of in-context samples.
        index: as in `search`.
    """
    device = bank.labels.device
    asked = torch.arange(len(bank), device=device) if rows is None else rows
    labels = bank.labels[asked]
    if distributed.world() > 1:
        if not wanted.allow_missing:  # all processes raise the error, not only the one whose share has the small class
            require(bank, labels.unique().tolist(), labels, asked, wanted)
        mine = distributed.share(len(asked))
        asked, labels, rows = asked[mine], labels[mine], asked[mine]
    if not _in_parts(bank, len(bank)):
        features = bank.features if rows is None else bank.features[rows]
        near, far = search(bank, features, labels, asked, wanted, index)
    else:
        near, far = (nothing(len(asked), k, labels) for k in (wanted.positives, wanted.negatives))
        for some in labels.argsort(stable=True).split(GROUP):
            near[some], far[some] = search(bank, bank.features[asked[some]], labels[some], asked[some], wanted, index)
    return tuple(Neighbours(*map(distributed.gather, fields(one))) for one in (near, far))  # type: ignore[return-value]


def _best_of_each_class(bank: MemoryBank, into: Neighbours, queries: Tensor, labels: Tensor) -> None:
    """Write the nearest row of each other class into `into`, the most similar rows first."""
    filled, k = bank.filled, min(into.rows.shape[1], len(bank.class_rows))
    for chosen in labels.argsort(stable=True).split(CHUNK):
        best = nothing(len(chosen), len(bank.class_rows), queries)
        every = torch.arange(len(chosen), device=chosen.device)
        for c, pool in bank.class_rows.items():
            found = nothing(len(chosen), 1, queries)
            search_into(found, queries[chosen], every, bank.features, pool[filled[pool]], labels[chosen, None] == c)
            best[:, c : c + 1] = found
        score = best.similarity.masked_fill(~best.mask, -torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :k]
        into[chosen, :k] = Neighbours(*(one.gather(1, order) for one in fields(best)))


@torch.no_grad()
def nearest(bank: MemoryBank, features: Tensor, rows: Tensor, k: int) -> Neighbours:
    """Return the k nearest rows of any class; the arguments are those of `search`."""
    written = bank.filled.nonzero().squeeze(1)
    found = nothing(len(features), k, rows)
    with full_precision():
        if _in_parts(bank, len(written)):
            for some in torch.arange(len(features), device=rows.device).split(GROUP):
                queries, own, part = F.normalize(features[some].float(), dim=1), rows[some], nothing(len(some), k, rows)
                every = torch.arange(len(some), device=rows.device)
                search_in_parts(part, queries, every, parts(bank, written), _itself(own))
                found[some] = part
            return found
        queries = F.normalize(features.float(), dim=1)
        for chosen in torch.arange(len(queries), device=queries.device).split(CHUNK):
            search_into(found, queries, chosen, bank.features, written, rows[chosen, None] == written)
    return found


def _itself(own: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that blocks each query's own row, whose position is in `own` [Q]."""
    return lambda chosen, pool: own[chosen, None] == pool


# -------------------------------------------------------------------------------- controls for retrieval


@torch.no_grad()
def random_neighbours(
    bank: MemoryBank, positives: int, negatives: int, seed: object, rows: Tensor | None = None
) -> tuple[Neighbours, Neighbours]:
    """Draw rows for rows of the bank at random, without replacement: of the same class and of the other classes.

    Rows that are empty are not drawn. Where a class is too small, the missing rows are masked.

    Args:
        rows: positions of the rows for which others are drawn; None for all.
    """
    device = bank.labels.device
    generator = runtime.generator(seed, "random neighbours", device=device)
    written = bank.filled.nonzero().squeeze(1)
    members = written[bank.labels[written].argsort(stable=True)]  # written rows sorted by class
    if not len(members):
        count = len(bank) if rows is None else len(rows)
        return nothing(count, positives, bank.features), nothing(count, negatives, bank.features)
    place = torch.full_like(bank.labels, len(members))  # place of each row in `members`; an empty one comes after all
    place[members] = torch.arange(len(members), device=device)
    sizes = torch.bincount(bank.labels[members], minlength=len(bank.classes))
    queries = slice(None) if rows is None else rows
    labels = bank.labels[queries]
    size, start = sizes[labels], (sizes.cumsum(0) - sizes)[labels]
    own, drawn = _distinct(size - bank.filled[queries].long(), positives, generator)
    own = own + start[:, None]
    own = (own + (own >= place[queries, None])).clamp(max=len(members) - 1)  # step over the row itself
    other, others = _distinct(len(members) - size, negatives, generator)
    other = other + size[:, None] * (other >= start[:, None])  # step over the row's own class
    other = other.clamp(max=len(members) - 1)
    features = bank.features[queries]
    return _neighbours(bank, members[own], features, drawn), _neighbours(bank, members[other], features, others)


def _distinct(limits: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw, for each limit n in `limits` [N], k different integers from 0 to n - 1, uniformly at random: [N, k].

    Floyd's algorithm: draw i, counted from 0, is from 0 to n - k + i; if it was drawn before, n - k + i is taken. If n
    is below k, the first k - n draws are missing.

    Returns:
        The integers, 0 where they are missing, and a mask that is False there.
    """
    drawn = torch.full((len(limits), k), -1, dtype=torch.long, device=limits.device)
    for i in range(k):
        last = limits - k + i
        chance = torch.rand(len(limits), dtype=torch.double, device=limits.device, generator=generator)
        number = (chance * (last + 1)).long().minimum(last)
        drawn[:, i] = torch.where((drawn[:, :i] == number[:, None]).any(1), last, number)
    mask = torch.arange(k, device=limits.device) >= (k - limits)[:, None]
    return drawn.masked_fill(~mask, 0), mask


def _neighbours(bank: MemoryBank, rows: Tensor, features: Tensor, mask: Tensor) -> Neighbours:
    """Return the rows at positions `rows` [M, k] as neighbours of M queries with these features, [M, D]."""
    parts = [
        (bank.features[some].float() * own.float()[:, None]).sum(-1)
        for some, own in zip(rows.split(CHUNK), features.split(CHUNK), strict=True)
    ]
    bank.release()
    return Neighbours(rows, torch.cat(parts), mask)


@torch.no_grad()
def random_written(
    bank: MemoryBank,
    features: Tensor,
    labels: Tensor,
    key: Tensor,
    positives: int,
    negatives: int,
    generator: torch.Generator | None,
) -> tuple[Neighbours, Neighbours]:
    """Draw rows at random among those written so far; see `MemoryBank.random`."""
    same = labels[:, None] == bank.labels
    available = bank.filled & (bank.index != key[:, None])
    chance = torch.rand(same.shape, generator=generator, device=same.device)
    queries, found = F.normalize(features.float(), dim=1), []
    for k, allowed in ((positives, same & available), (negatives, ~same & available)):
        drawn, rows = chance.masked_fill(~allowed, -1).topk(min(k, len(bank)), dim=1)
        similarity = (bank.features[rows].float() * queries[:, None]).sum(-1)
        found.append(Neighbours(rows, similarity, drawn >= 0))
    return found[0], found[1]


@torch.no_grad()
def class_samples(bank: MemoryBank, key: Tensor, labels: Tensor) -> tuple[InContext, InContext]:
    """Return class means as in-context samples; see `MemoryBank.class_samples`."""
    columns, (sums, counts) = bank.logits.shape[1], bank.class_sums()
    rows = bank.rows(key)
    inside = (rows >= 0) & bank.filled[rows]
    query = bank.features[rows].float() * inside[:, None]
    rest = counts[labels] - inside.long()
    itself = torch.cat([bank.logits[rows].float(), bank.features[rows].float()], 1) * inside[:, None]
    own = (sums[labels] - itself) / rest.clamp(min=1)[:, None]
    means = (sums / counts.clamp(min=1)[:, None]).expand(len(key), -1, -1)
    mask = (counts > 0) & (torch.arange(len(counts), device=labels.device) != labels[:, None])

    def samples(values: Tensor, valid: Tensor) -> InContext:
        logits, features = values[..., :columns], F.normalize(values[..., columns:], dim=-1)
        similarity = (features * query[:, None]).sum(-1)
        return InContext(torch.full_like(valid, -1, dtype=torch.long), similarity, logits, features, valid)

    return samples(own[:, None], (rest > 0)[:, None]), samples(means, mask)


# ------------------------------------------------------------------------------------ arguments


def check_queries(bank: Rows, features: Tensor, **others: Tensor) -> None:
    """Raise InputError if queries have no features like those of the rows, or other tensors not one value for each.

    Args:
        bank: the bank.
        features: features of the queries, which should have the shape [B, D].
        others: further tensors by name, which should have the shape [B].
    """
    width = bank.features.shape[1]
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != width:
        given = list(features.shape) if isinstance(features, Tensor) else shown(features)
        raise InputError(
            f"features of queries must be a tensor [number of queries, {width}], like those of the rows, not {given}; "
            "give features of the same network"
        )
    for name, value in others.items():
        if not isinstance(value, Tensor) or list(value.shape) != [len(features)]:
            given = list(value.shape) if isinstance(value, Tensor) else shown(value)
            raise InputError(f"{name} of {len(features)} queries must be a tensor [{len(features)}], not {given}")


def check_counts(**counts: int) -> None:
    """Raise InputError if a number of in-context samples is not a whole number of 0 or more."""
    for name, count in counts.items():
        if not hasattr(count, "__index__") or count < 0:
            raise InputError(f"{name}={shown(count)}: expected a whole number of 0 or more")


# ------------------------------------------------------------------------------------ number of rows


def require(bank: MemoryBank, present: list[int], labels: Tensor, rows: Tensor, wanted: Wanted) -> None:
    """Raise InputError if there are too few written rows for the queries of a class in `present`."""
    filled = bank.filled
    sizes = {c: int(filled[pool].sum()) for c, pool in bank.class_rows.items()}
    own, total, classes = filled[rows.clamp(min=0)] & (rows >= 0), sum(sizes.values()), sum(map(bool, sizes.values()))
    for c in sorted(present, key=sizes.__getitem__):  # the message names the class with the fewest rows
        _check(bank, c, sizes[c] - bool(own[labels == c].any()), wanted.positives, "positives")
        available = classes - bool(sizes[c]) if wanted.per_class else total - sizes[c]
        _check(bank, c, available, wanted.negatives, "classes of negatives" if wanted.per_class else "negatives")


def _check(bank: MemoryBank, label: int, available: int, requested: int, what: str) -> None:
    if not available and requested and what == "positives":
        raise InputError(
            f"the bank has no other row of class {bank.classes[label]!r} that could be a positive for its only sample; "
            "use more images of this class, or a method without positives, such as ickd(picd=0) (in Python, "
            "retrieve(…, allow_missing=True) leaves out what is missing)"
        )
    if available < requested:
        raise InputError(
            f"{requested} {what} were requested for a sample of class {bank.classes[label]!r}, but the bank has only "
            f"{available} others to choose from; request fewer {what}, or use more images (in Python, "
            "retrieve(…, allow_missing=True) leaves out what is missing)"
        )
