"""The memory bank: a teacher's features and logits of a data set, and exact retrieval of in-context samples."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import models, runtime
from ickd_lib.memory.search import InContext, Neighbours, fields, full_precision, nothing, own_class, search_into
from ickd_lib.memory.source import source_of
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.data import Images

CHUNK = 1024  # queries at once: 200 MB of similarities to 50,000 rows
TENSORS = ("features", "logits", "labels", "index", "norms", "written")
FEW = 256  # so many queries meet all rows at once; more go class by class


class MemoryBank:
    """One row a sample: unit-length features and how long they were, logits, label, data-set row.

    Args:
        features: shape [N, D]; normalised here.
        logits: shape [N, C].
        labels: shape [N].
        index: the data-set row of each, unique and ascending, shape [N].
        classes: C names.
        norms: length of the features, shape [N], where those given are unit length already.
        written: the step that wrote each row last, -1 where none has, shape [N]; 0 by default.
        source: fingerprints of the `data` and the `teacher` that the rows come from.
    """

    def __init__(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        index: Tensor,
        classes: tuple[str, ...],
        *,
        norms: Tensor | None = None,
        written: Tensor | None = None,
        source: dict[str, str] | None = None,
    ) -> None:
        if len(index) and not bool((index.diff() > 0).all()):
            raise InputError("a bank's index must be ascending, each data-set row once")
        features = features.float()
        self.norms = features.norm(dim=1) if norms is None else norms
        unit = (features.norm(dim=1, keepdim=True) - 1).abs() < 1e-5  # these stay as they are, bit for bit
        self.features = torch.where(unit, features, F.normalize(features, dim=1))
        self.logits, self.labels, self.index, self.classes = logits.float(), labels, index, tuple(classes)
        self.written = torch.zeros_like(labels) if written is None else written
        self.source = source or {}
        self._tables: dict[tuple, tuple[Neighbours, Neighbours]] = {}
        self._means: Tensor | None = None
        self._row_of = torch.full((int(index.max()) + 1 if len(index) else 1,), -1, device=index.device)
        self._row_of[index] = torch.arange(len(index), device=index.device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def filled(self) -> Tensor:
        """Which rows hold something, shape [N]."""
        return self.written >= 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that a row is, by name."""
        return {name: getattr(self, name) for name in TENSORS}

    @classmethod
    def build(cls, teacher: models.Network, images: Images, *, precision: str = "auto") -> MemoryBank:
        """The teacher's view of every image, without augmentation, in one pass.

        Args:
            teacher: a network on the images' device; it is left as it was.
            images: N images; their `index` becomes the bank's.
            precision: "auto", "fp32" or "bf16".
        """
        if len(images) == 0:
            raise InputError(f"{images.name} holds no image to build a bank from")
        order = images.index.argsort()
        output = models.predict(teacher, images, precision=precision)
        return cls(
            output.features[order],
            output.logits[order],
            images.labels[order],
            images.index[order],
            images.classes,
            source=source_of(images, teacher),
        )

    @classmethod
    def empty(cls, images: Images, features_dim: int) -> MemoryBank:
        """A bank for these images whose rows `update` will fill; until then none is returned."""
        order, n = images.index.argsort(), len(images)
        where = images.labels.device
        return cls(
            torch.zeros(n, features_dim, device=where),
            torch.zeros(n, len(images.classes), device=where),
            images.labels[order],
            images.index[order],
            images.classes,
            written=torch.full((n,), -1, device=where),
        )

    def to(self, device: torch.device | str) -> MemoryBank:
        """The same bank on another device; itself when it is there already."""
        if self.labels.device == torch.device(device):
            return self
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return MemoryBank(**tensors, classes=self.classes, source=self.source)

    def rows(self, index: Tensor) -> Tensor:
        """The bank's position of each data-set row in `index`; -1 for one that the bank does not hold."""
        known = (index >= 0) & (index < len(self._row_of))
        return torch.where(known, self._row_of[index.clamp(0, len(self._row_of) - 1)], -1)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor, logits: Tensor, *, momentum: float = 0.0, step: int = 0) -> None:
        """Write the rows of data-set rows `index` [B] (each once): features [B, D] and logits [B, C], detached.

        A method queries first and writes after, or its queries would meet themselves one step late.

        Args:
            momentum: how much of a row that holds something stays; the rest is new.
            step: which step writes, 0 or more; `written` keeps it.
        """
        rows = self.rows(index)
        if bool((rows < 0).any()):
            raise InputError(f"data-set row {int(index[rows < 0][0])} is not in this bank; build it from this data")
        stay = momentum * self.filled[rows, None]
        before = self.features[rows] * self.norms[rows, None]
        mixed = stay * before + (1 - stay) * features.detach().float()
        self.features[rows], self.norms[rows] = F.normalize(mixed, dim=1), mixed.norm(dim=1)
        self.logits[rows] = stay * self.logits[rows] + (1 - stay) * logits.detach().float()
        self.written[rows] = step
        self._tables.clear()
        self._means = None

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over the rows of a bank of the same data set, as `tensors` gave them."""
        self.norms, self.features, self.logits, self.written = (
            tensors[name].to(self.labels.device) for name in ("norms", "features", "logits", "written")
        )
        self._tables.clear()
        self._means = None

    def class_means(self) -> Tensor:
        """The mean of the features of each class, as they were before they were normalised, made unit length: [C, D].

        A class without filled rows has zeros.
        """
        if self._means is None:
            sums = torch.zeros(len(self.classes), self.features.shape[1], device=self.features.device)
            sums.index_add_(0, self.labels, self.features * (self.norms * self.filled)[:, None])
            self._means = F.normalize(sums, dim=1)
        return self._means

    # ------------------------------------------------------------------------------------------ retrieval

    def retrieve(
        self,
        features: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        positives: int = 8,
        negatives: int = 32,
        per_class: bool = False,
        allow_missing: bool = False,
    ) -> tuple[InContext, InContext]:
        """The in-context samples of each query: nearest of its class, nearest of the others.

        The search is exact: similarities are computed in double precision, ties go to the lower data-set row.

        Args:
            features: the queries', of any length, shape [B, D].
            labels: the queries' classes, shape [B].
            index: the queries' data-set rows, shape [B], which are never returned to them; None where the
                queries are not rows of this bank.
            positives, negatives: how many of each.
            per_class: take the negatives from the best sample of each other class.
            allow_missing: mask what a small class lacks instead of raising.
        Returns:
            Positives and negatives.
        Raises:
            InputError: a class, or all others together, has fewer filled rows than asked for.
        """
        rows = torch.full_like(labels, -1) if index is None else self.rows(index)
        found = self._search(features, labels, rows, positives, negatives, per_class, allow_missing)
        return self.gather(found[0]), self.gather(found[1])

    def nearest(self, features: Tensor, index: Tensor | None = None, *, k: int = 8) -> InContext:
        """The k nearest rows of any class, with arguments as in `retrieve`: what the features alone know."""
        queries = F.normalize(features.float(), dim=1)
        everyone, every = self.filled.nonzero().squeeze(1), torch.arange(len(queries), device=queries.device)
        rows = torch.full_like(every, -1) if index is None else self.rows(index)
        found = nothing(len(queries), k, queries)
        with torch.no_grad(), full_precision():
            for asking in every.split(CHUNK):
                search_into(found, queries, asking, self.features, everyone, rows[asking, None] == everyone)
        return self.gather(found)

    def table(
        self, *, positives: int = 8, negatives: int = 32, per_class: bool = False, allow_missing: bool = False
    ) -> tuple[Neighbours, Neighbours]:
        """The neighbours of every row of the bank itself, found once: `gather` a batch's from it in a step."""
        key = positives, negatives, per_class, allow_missing
        if key not in self._tables:
            rows = torch.arange(len(self), device=self.labels.device)
            self._tables[key] = self._search(self.features, self.labels, rows, *key)
        return self._tables[key]

    def random_table(self, *, positives: int = 8, negatives: int = 32, seed: int = 0) -> tuple[Neighbours, Neighbours]:
        """As `table`, but drawn at random under the same class constraints: the control for retrieval."""
        generator = runtime.generator(seed, "random neighbours")
        found: list[list[Tensor]] = [[], []]
        for row, label in enumerate(self.labels.tolist()):
            same = self._class_rows[label]
            same = same[same != row]
            other = torch.cat([r for c, r in self._class_rows.items() if c != label])
            for pool, k, into in ((same, positives, found[0]), (other, negatives, found[1])):
                self._check(label, len(pool), k, "positives" if into is found[0] else "negatives")
                drawn = torch.randperm(len(pool), generator=generator)[:k]
                into.append(pool[drawn.to(pool.device)])
        tables = []
        for rows in map(torch.stack, found):
            similarity = (self.features[rows] * self.features[:, None]).sum(-1)
            tables.append(Neighbours(rows, similarity, torch.ones_like(rows, dtype=torch.bool)))
        return tables[0], tables[1]

    @torch.no_grad()
    def random(
        self,
        features: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        positives: int = 8,
        negatives: int = 32,
        generator: torch.Generator | None = None,
    ) -> tuple[InContext, InContext]:
        """As `retrieve` with allow_missing, but drawn at random under the same class constraints, in no order.

        Args:
            generator: on the bank's device.
        """
        same = labels[:, None] == self.labels
        there = self.filled & (self.index != index[:, None])
        chance = torch.rand(same.shape, generator=generator, device=same.device)
        queries, found = F.normalize(features.float(), dim=1), []
        for k, allowed in ((positives, same & there), (negatives, ~same & there)):
            drawn, rows = chance.masked_fill(~allowed, -1).topk(min(k, len(self)), dim=1)
            similarity = (self.features[rows] * queries[:, None]).sum(-1)
            found.append(self.gather(Neighbours(rows, similarity, drawn >= 0)))
        return found[0], found[1]

    def gather(self, neighbours: Neighbours) -> InContext:
        """What the bank holds of these rows now."""
        rows = neighbours.rows
        return InContext(
            self.index[rows], neighbours.similarity, self.logits[rows], self.features[rows], neighbours.mask
        )

    @cached_property
    def _class_rows(self) -> dict[int, Tensor]:
        return {c: (self.labels == c).nonzero().squeeze(1) for c in range(len(self.classes))}

    def require(self, *, positives: int, negatives: int, per_class: bool = False) -> None:
        """InputError when some row of the bank could not be given so many in-context samples."""
        rows = torch.arange(len(self), device=self.labels.device)
        self._require(self.labels.unique().tolist(), self.labels, rows, positives, negatives, per_class)

    def _require(
        self, present: list[int], labels: Tensor, rows: Tensor, positives: int, negatives: int, per_class: bool
    ) -> None:
        sizes = {c: int(self.filled[pool].sum()) for c, pool in self._class_rows.items()}
        own = self.filled[rows.clamp(min=0)] & (rows >= 0)
        for c in present:
            self._check(c, sizes[c] - bool(own[labels == c].any()), positives, "positives")
            others = [size for other, size in sizes.items() if other != c]
            there = sum(size > 0 for size in others) if per_class else sum(others)
            self._check(c, there, negatives, "classes of negatives" if per_class else "negatives")

    def _check(self, label: int, there: int, asked: int, what: str) -> None:
        if there < asked:
            raise InputError(
                f"{asked} {what} were asked for a sample of class {self.classes[label]!r}, but the bank has only "
                f"{there} others to choose from; ask for fewer, or pass allow_missing=True"
            )

    @torch.no_grad()
    def _search(
        self,
        features: Tensor,
        labels: Tensor,
        rows: Tensor,
        positives: int,
        negatives: int,
        per_class: bool,
        allow_missing: bool,
    ) -> tuple[Neighbours, Neighbours]:
        queries = F.normalize(features.float(), dim=1)
        everyone, every = self.filled.nonzero().squeeze(1), torch.arange(len(queries), device=queries.device)
        present = [] if allow_missing and len(queries) <= FEW else labels.unique().tolist()
        if not allow_missing:
            self._require(present, labels, rows, positives, negatives, per_class)
        near, far = nothing(len(queries), positives, queries), nothing(len(queries), negatives, queries)
        few, pools = len(queries) <= FEW, {}
        if per_class or not few:
            pools = {c: pool[self.filled[pool]] for c, pool in self._class_rows.items()}
        asked = [(every, everyone)] if few else [((labels == c).nonzero().squeeze(1), pools[c]) for c in present]
        with full_precision():
            for asking, pool in asked:
                blocked = (labels[asking, None] != self.labels[pool]) | (rows[asking, None] == pool)
                search_into(near, queries, asking, self.features, pool, blocked)
            # Sorted by class, a chunk's own classes are few; their columns are ruled out.
            theirs = self.labels[everyone]
            scratch = None if few or per_class else queries.new_empty(min(CHUNK, len(queries)), len(everyone))
            for asking in labels.argsort(stable=True).split(CHUNK):
                if per_class:
                    self._best_of_each_class(far, queries, labels, asking, pools)
                else:
                    never = labels[asking, None] == theirs if few else own_class(labels[asking], theirs)
                    search_into(far, queries, asking, self.features, everyone, never, scratch)
        return near, far

    def _best_of_each_class(
        self, into: Neighbours, queries: Tensor, labels: Tensor, asking: Tensor, pools: dict[int, Tensor]
    ) -> None:
        best = nothing(len(asking), len(pools), queries)
        everyone = torch.arange(len(asking), device=asking.device)
        for c, pool in pools.items():
            found = nothing(len(asking), 1, queries)
            search_into(found, queries[asking], everyone, self.features, pool, labels[asking, None] == c)
            for whole, part in zip(fields(best), fields(found), strict=True):
                whole[:, c] = part[:, 0]
        k = min(into.rows.shape[1], len(pools))
        order = best.similarity.masked_fill(~best.mask, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
        for whole, part in zip(fields(into), fields(best), strict=True):
            whole[asking, :k] = part.gather(1, order)

    # --------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> None:
        """Write the bank as safetensors, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        with runtime.replacing(path) as part:
            save_file(tensors, part, metadata={"classes": json.dumps(self.classes), "source": json.dumps(self.source)})

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        images: Images | None = None,
        teacher: models.Network | None = None,
        device: torch.device | str = "cpu",
    ) -> MemoryBank:
        """Read a bank; with `images` or `teacher`, only if it was built from them.

        Raises:
            InputError: the file is missing, damaged, or from other data or another teacher.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError(f"no bank at {path}; build it first (python -m ickd_lib bank)")
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                meta = {key: json.loads(value) for key, value in file.metadata().items()}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            bank = cls(
                **{name: tensors[name] for name in TENSORS}, classes=tuple(meta["classes"]), source=meta["source"]
            )
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is not a memory bank, or is damaged ({error}); build it again") from None
        expected = source_of(images, teacher)
        for what, mark in expected.items():
            if bank.source.get(what) != mark:
                raise InputError(
                    f"{path} was built from other {what} ({bank.source.get(what)}, not {mark}); build it again"
                )
        return bank
