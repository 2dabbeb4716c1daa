"""The memory bank: features and logits of a network for every sample of a data set."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import models, runtime
from ickd_lib.memory import files, retrieval
from ickd_lib.memory.search import NEGATIVES, POSITIVES, InContext, Neighbours
from ickd_lib.memory.source import labelled, require_task, source_of
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images

TENSORS = ("features", "logits", "labels", "index", "norms", "written")


class MemoryBank:
    """A memory bank. A row contains a sample's features at unit length, their norm, its logits, label and key.

    Args:
        features: features of N samples, of any norm, shape [N, D].
        logits: shape [N, C].
        labels: class of each sample, shape [N].
        index: key of each sample in its data set (for an image, its row), unique and ascending, shape [N].
        classes: names of the C classes.
        norms: norms of the features before they were normalised, shape [N]; by default the norms of `features`.
        written: the step in which each row was last written, shape [N]; -1 for an empty row; by default 0.
        source: fingerprints of the data and the teacher that the rows were computed from, as `source_of` returns them.
    Raises:
        InputError: the keys are not ascending or not unique.
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
            raise InputError("the index of a bank must be ascending and contain each key once")
        features = features.float()
        self.norms = features.norm(dim=1) if norms is None else norms
        unit = (features.norm(dim=1, keepdim=True) - 1).abs() < 1e-5  # normalising these again could change last bits
        self.features = torch.where(unit, features, F.normalize(features, dim=1))
        self.logits, self.labels, self.index, self.classes = logits.float(), labels, index, tuple(classes)
        self.written = torch.zeros_like(labels) if written is None else written
        self.source = source or {}
        self._tables: dict[tuple, tuple[Neighbours, Neighbours]] = {}
        self._means: Tensor | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._unit_logits: Tensor | None = None
        self._row_of = torch.full((int(index.max()) + 1 if len(index) else 1,), -1, device=index.device)
        self._row_of[index] = torch.arange(len(index), device=index.device)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        dim, classes = self.features.shape[1], len(self.classes)
        return f"MemoryBank({len(self):,} rows, {dim} features, {classes} classes, {self.labels.device})"

    @property
    def filled(self) -> Tensor:
        """True for each row that has been written, shape [N]."""
        return self.written >= 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors with one entry for each row, by name."""
        return {name: getattr(self, name) for name in TENSORS}

    @cached_property
    def class_rows(self) -> dict[int, Tensor]:
        """The positions of the rows of each class."""
        return {c: (self.labels == c).nonzero().squeeze(1) for c in range(len(self.classes))}

    @classmethod
    def build(
        cls,
        teacher: models.Network,
        images: Images,
        *,
        labels: str | Tensor = "given",
        task: Task | None = None,
        precision: str = "auto",
    ) -> MemoryBank:
        """Compute a bank with a row for every sample of the images, which are not augmented.

        Args:
            teacher: a network on the images' device, which is not changed.
            images: the images; the keys of their samples become the bank's index. They may be more than those that
                students are trained on.
            labels: the class of each row. "given": that of the images. "teacher": the class that the teacher predicts.
                A tensor of keys [n]: that of the images for these samples, and the teacher's prediction for all others,
                whose labels are taken as unknown.
            task: defines the samples of an image; by default classification, where an image is one sample.
            precision: "auto", "fp32" or "bf16".
        Raises:
            InputError: there is no image, images or teacher are of another task, or the teacher predicts other classes.
        """
        task = task or Classification()
        require_task(images, teacher, task)
        samples = task.bank_samples(teacher, images, precision=precision)
        known, mark = labelled(samples, images, teacher, labels, task)
        order = samples.key.argsort()
        return cls(
            samples.features[order],
            samples.logits[order],
            known[order],
            samples.key[order],
            task.outputs(images.classes),
            source=source_of(images, teacher) | mark,
        )

    @classmethod
    def empty(cls, images: Images, features_dim: int, *, task: Task | None = None) -> MemoryBank:
        """Return a bank with an empty row for every sample of the images. Retrieval skips rows that are empty.

        Args:
            images: the images.
            features_dim: number of features, D.
            task: defines the samples of an image; by default classification.
        """
        task = task or Classification()
        (keys, labels), classes = task.keys(images), task.outputs(images.classes)
        order, n, device = keys.argsort(), len(keys), keys.device
        return cls(
            torch.zeros(n, features_dim, device=device),
            torch.zeros(n, len(classes), device=device),
            labels[order],
            keys[order],
            classes,
            written=torch.full((n,), -1, device=device),
        )

    def to(self, device: torch.device | str) -> MemoryBank:
        """Return the same bank on another device; the bank itself if it is on that device already."""
        if self.labels.device == runtime.device(device):
            return self
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return MemoryBank(**tensors, classes=self.classes, source=self.source)

    def subset(self, rows: Tensor) -> MemoryBank:
        """Return a bank of the rows at the positions `rows` [M], which must be ascending."""
        tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return MemoryBank(**tensors, classes=self.classes, source=self.source)

    def rows(self, index: Tensor) -> Tensor:
        """Return the position of each key in `index` [B], shape [B]; -1 for a key that the bank does not have."""
        in_range = (index >= 0) & (index < len(self._row_of))
        return torch.where(in_range, self._row_of[index.clamp(0, len(self._row_of) - 1)], -1)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor, logits: Tensor, *, momentum: float = 0.0, step: int = 0) -> None:
        """Write new features and logits into the rows of some samples.

        In a training step, retrieve before writing, so that queries are compared with rows of earlier steps only.

        Args:
            index: keys, each once, shape [B].
            features: new features, shape [B, D], which are detached.
            logits: new logits, shape [B, C], which are detached.
            momentum: weight of the old content in a row that was written before; the new content has the rest.
            step: number of the present step, at least 0, which is stored in `written`.
        Raises:
            InputError: the bank does not have one of the keys.
        """
        rows = self.rows(index)
        if bool((rows < 0).any()):
            raise InputError(f"key {int(index[rows < 0][0])} is not in this bank; build the bank from this data set")
        stay = momentum * self.filled[rows, None]
        before = self.features[rows] * self.norms[rows, None]
        mixed = stay * before + (1 - stay) * features.detach().float()
        self.features[rows], self.norms[rows] = F.normalize(mixed, dim=1), mixed.norm(dim=1)
        self.logits[rows] = stay * self.logits[rows] + (1 - stay) * logits.detach().float()
        self.written[rows] = step
        self._changed()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Replace the content of the rows by `tensors`, those of another bank of the same data set."""
        self.norms, self.features, self.logits, self.written = (
            tensors[name].to(self.labels.device) for name in ("norms", "features", "logits", "written")
        )
        self._changed()

    def _changed(self) -> None:
        """Drop everything that was computed from the previous content."""
        self._tables.clear()
        self._means = self._sums = self._unit_logits = None

    def unit_logits(self) -> Tensor:
        """Return the logits scaled to unit length, shape [N, C]. They are computed at the first call."""
        if self._unit_logits is None:
            self._unit_logits = F.normalize(self.logits, dim=1)
        return self._unit_logits

    def class_sums(self) -> tuple[Tensor, Tensor]:
        """Return the sum of logits and unit-length features over each class, [C, C + D], and its number of rows, [C].

        Only written rows count.
        """
        if self._sums is None:
            both = torch.cat([self.logits, self.features], 1) * self.filled[:, None]
            sums = both.new_zeros(len(self.classes), both.shape[1]).index_add_(0, self.labels, both)
            counts = torch.zeros(len(self.classes), dtype=torch.long, device=self.labels.device)
            self._sums = sums, counts.index_add_(0, self.labels, self.filled.long())
        return self._sums

    def class_means(self) -> Tensor:
        """Return the mean of the original features of each class, scaled to unit length: [C, D].

        The mean of a class without written rows is zero.
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
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        per_class: bool = False,
        allow_missing: bool = False,
    ) -> tuple[InContext, InContext]:
        """Return the in-context samples of each query: the nearest rows of its class and of the other classes.

        The search is exact: similarities are compared in double precision, and of equal ones the lower key comes first.

        Args:
            features: features of the queries, of any norm, shape [B, D].
            labels: classes of the queries, shape [B].
            index: keys of the queries, shape [B], so that a query is never among its own in-context samples; None if
                the queries are not samples of this bank.
            positives, negatives: number of in-context samples of each kind.
            per_class: choose the negatives among the nearest rows of the other classes, one row per class.
            allow_missing: mask the samples that are missing where there are too few rows, instead of raising an error.
        Returns:
            Positives, [B, positives], and negatives, [B, negatives].
        Raises:
            InputError: a class, or all other classes together, have fewer written rows than requested.
        """
        rows = torch.full_like(labels, -1) if index is None else self.rows(index)
        found = retrieval.search(self, features, labels, rows, positives, negatives, per_class, allow_missing)
        return self.gather(found[0]), self.gather(found[1])

    def nearest(self, features: Tensor, index: Tensor | None = None, *, k: int = POSITIVES) -> InContext:
        """Return the k nearest rows of any class, [B, k]; the other arguments are those of `retrieve`."""
        rows = torch.full((len(features),), -1, device=features.device) if index is None else self.rows(index)
        return self.gather(retrieval.nearest(self, features, rows, k))

    def table(
        self,
        *,
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        per_class: bool = False,
        allow_missing: bool = False,
        rows: Tensor | None = None,
    ) -> tuple[Neighbours, Neighbours]:
        """Return the neighbours of rows of the bank itself, [M, positives] and [M, negatives].

        The neighbours of all rows are computed once; `gather` copies the content of the neighbours of a batch. The
        other arguments and the errors are those of `retrieve`.

        Args:
            rows: positions of the M rows; None for all rows of the bank.
        """
        key = positives, negatives, per_class, allow_missing
        if rows is not None:
            return retrieval.search(self, self.features[rows], self.labels[rows], rows, *key)
        if key not in self._tables:
            every = torch.arange(len(self), device=self.labels.device)
            self._tables[key] = retrieval.search(self, self.features, self.labels, every, *key)
        return self._tables[key]

    def random_table(
        self,
        *,
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        seed: object = 0,
        allow_missing: bool = False,
        rows: Tensor | None = None,
    ) -> tuple[Neighbours, Neighbours]:
        """Return a table like `table`, but with rows drawn at random from the same classes, as a control for retrieval.

        The draws are a function of `seed` (any value with a repr) and of the bank's device.
        """
        if not allow_missing:
            self.require(positives=positives, negatives=negatives, rows=rows)
        return retrieval.random_neighbours(self, positives, negatives, seed, rows)

    def random(
        self,
        features: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        generator: torch.Generator | None = None,
    ) -> tuple[InContext, InContext]:
        """Return samples as `retrieve` does with allow_missing, but drawn at random from the written rows, in no order.

        Args:
            features, labels, index, positives, negatives: as in `retrieve`.
            generator: a generator on the bank's device; None for torch's global one.
        """
        found = retrieval.random_written(self, features, labels, index, positives, negatives, generator)
        return self.gather(found[0]), self.gather(found[1])

    def class_samples(self, index: Tensor, labels: Tensor) -> tuple[InContext, InContext]:
        """Return the means of the classes as in-context samples, as a control for samples that are chosen one by one.

        Args:
            index: keys of the queries, shape [B]; a query is left out of the mean of its own class.
            labels: classes of the queries, shape [B].
        Returns:
            Positives [B, 1]: the mean logits and features of the rest of the query's class. Negatives [B, C]: those of
            each class, with the query's own class masked. Their `index` is -1.
        """
        return retrieval.class_samples(self, index, labels)

    def gather(self, neighbours: Neighbours, *, features: bool = True, unit: bool = False) -> InContext:
        """Return the present content of neighbours.

        Args:
            neighbours: positions of rows, [B, k], as in `table`.
            features: whether to copy the features; otherwise that field is empty, [B, k, 0].
            unit: whether to copy the logits scaled to unit length.
        """
        rows = neighbours.rows  # F.embedding copies whole rows, three times as fast as indexing on a CPU
        copied = F.embedding(rows, self.features) if features else self.features.new_empty(*rows.shape, 0)
        logits = F.embedding(rows, self.unit_logits() if unit else self.logits)
        return InContext(self.index[rows], neighbours.similarity, logits, copied, neighbours.mask, unit)

    def require(self, *, positives: int, negatives: int, per_class: bool = False, rows: Tensor | None = None) -> None:
        """Raise InputError if some row has too few other rows for this number of in-context samples.

        Args:
            rows: positions of the rows that are checked; None for all rows of the bank.
        """
        rows = torch.arange(len(self), device=self.labels.device) if rows is None else rows
        labels = self.labels[rows]
        retrieval.require(self, labels.unique().tolist(), labels, rows, positives, negatives, per_class)

    # --------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write the bank as a safetensors file, completely or not at all."""
        files.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        images: Images | None = None,
        teacher: models.Network | None = None,
        device: torch.device | str = "cpu",
    ) -> MemoryBank:
        """Read a bank from a file. With `images` or `teacher`, check that the bank was built from them.

        Args:
            path: the file.
            images, teacher: what the bank must have been built from; None accepts any.
            device: the device of the bank.
        Raises:
            InputError: the file is missing, damaged, or built from other data or by another teacher.
        """
        bank = cls(**files.read(path, TENSORS, device))
        for what, mark in source_of(images, teacher).items():
            if bank.source.get(what) != mark:
                raise InputError(f"{path} was built with {what} {bank.source.get(what)}, not {mark}; build it again")
        return bank
