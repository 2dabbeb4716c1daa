"""The memory bank: features and logits of a network for every sample of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import models, runtime
from ickd_lib.memory import approximate, building, files, retrieval
from ickd_lib.memory.approximate import Faiss, Index
from ickd_lib.memory.files import Mapped
from ickd_lib.memory.rows import TENSORS, Rows
from ickd_lib.memory.search import NEGATIVES, POSITIVES, InContext, Neighbours, Wanted
from ickd_lib.memory.source import source_of
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images


class MemoryBank(Rows):
    """A memory bank. A row contains a sample's features at unit length, their norm, its logits, label and key.

    A bank may keep features and logits in half precision (`build` with half=True), and in a file that is mapped into
    memory (`load` with mapped=True). Its rows are then converted to float32 where they are used: 1,280,000 rows with
    512 features and 1,000 logits take 3.9 GB on disk instead of 7.7 GB in memory. A bank in a mapped file is pickled as
    the path of its file, which must be the same file where it is unpickled.

    Args:
        features: features of N samples, of any norm, shape [N, D]. Features in half precision that are given with
            `norms` are rows of a bank that was stored, and are kept as they are.
        logits: shape [N, C].
        labels: class of each sample, shape [N].
        index: key of each sample in its data set (for an image, its row), unique and ascending, shape [N].
        classes: names of the C classes.
        norms: norms of the features before they were normalised, shape [N]; by default the norms of `features`.
        written: the step in which each row was last written, shape [N]; -1 for an empty row; by default 0.
        source: fingerprints of the data and the teacher that the rows were computed from, as `source_of` returns them.
        mapped: the mapped file of which features and logits are views, if they are.
    Attributes:
        recall: for each table of an approximate search, by its number of negatives: the share of the nearest negatives
            that it contains, measured on some of its queries.
    Raises:
        InputError: the keys are not ascending or not unique, or the logits are probabilities.
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
        mapped: Mapped | None = None,
    ) -> None:
        super().__init__(
            features, logits, labels, index, classes, norms=norms, written=written, source=source, mapped=mapped
        )
        self.precision = ""  # in which the teacher computed the rows; "" if that is not known
        self.recall: dict[int, float] = {}
        self._tables: dict[tuple[Wanted, Faiss | None], tuple[Neighbours, Neighbours]] = {}
        self._indices: dict[Faiss, Index] = {}

    @classmethod
    @checked
    def build(
        cls,
        teacher: models.Network,
        images: Images,
        *,
        labels: str | Tensor = "given",
        task: Task | None = None,
        precision: str = "auto",
        half: bool = False,
        path: str | Path | None = None,
        threshold: float = 0.0,
    ) -> MemoryBank:
        """Compute a bank with a row for every sample of the images, which are not augmented.

        Args:
            teacher: a network on the images' device, which is not changed.
            images: the images; the keys of their samples become the bank's index. They may be more than those that
                students are trained on.
            labels: the class of each row. "given": that of the images, or the teacher's prediction for an image without
                a label (-1). "teacher": the class that the teacher predicts.
                A tensor of keys [n]: that of the images for these samples, and the teacher's prediction for all others,
                whose labels are taken as unknown.
            task: defines the samples of an image; by default classification, where an image is one sample.
            precision: "auto", "fp32" or "bf16".
            half: whether to keep features and logits in half precision. They are computed in parts, so that only a
                part is ever held in float32. With ResNet56 and ShuffleNetV1 as teachers of CIFAR-100, cosines changed
                by at most 0.0003 and logits, of up to 43, by at most 0.016; 99.8% of the 8 nearest positives and 99.8%
                of the 128 nearest negatives stayed the same.
            path: with `half`, the file of the bank, which is written in parts and then mapped; None to keep the rows in
                memory.
            threshold: least probability of a predicted label. A row whose label is predicted with less is left empty:
                it is no in-context sample of others, and has none.
        Raises:
            InputError: there is no image, images or teacher are of another task, or the teacher predicts other classes.
        """
        rows = building.build(
            teacher,
            images,
            labels=labels,
            task=task,
            precision=precision,
            half=half,
            path=path,
            threshold=threshold,
        )
        bank = cls(**rows)
        bank.precision = runtime.precision(precision, images.index.device, min(images.size))
        return bank

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
        return self._with({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def subset(self, rows: Tensor) -> MemoryBank:
        """Return a bank of the rows at the positions `rows` [M], which must be ascending."""
        return self._with({name: tensor[rows] for name, tensor in self.tensors.items()})

    def without_empty(self) -> MemoryBank:
        """Return a bank of the rows that have been written; the bank itself if all have been."""
        filled = self.filled
        return self if bool(filled.all()) else self.subset(filled.nonzero().squeeze(1))

    def _with(self, tensors: dict[str, Tensor]) -> MemoryBank:
        bank = MemoryBank(**tensors, classes=self.classes, source=self.source)  # type: ignore[arg-type]
        bank.precision = self.precision
        return bank

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_indices": {}}  # faiss makes them anew

    def prepare(self) -> None:
        """Compute what is derived from all rows now, and drop the indices of approximate searches."""
        super().prepare()
        self._indices.clear()

    def _changed(self) -> None:
        super()._changed()
        self._tables.clear()
        self._indices.clear()
        self.recall.clear()

    # ------------------------------------------------------------------------------------------ retrieval

    def retrieve(
        self,
        features: Tensor,
        labels: Tensor,
        key: Tensor | None = None,
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
            key: keys of the queries, shape [B], so that a query is never among its own in-context samples; None if
                the queries are not samples of this bank.
            positives, negatives: number of in-context samples of each kind.
            per_class: choose the negatives among the nearest rows of the other classes, one row per class.
            allow_missing: mask the samples that are missing where there are too few rows, instead of raising an error;
                and accept keys that the bank does not have.
        Returns:
            Positives, [B, positives], and negatives, [B, negatives].
        Raises:
            InputError: a class, or all other classes together, have fewer written rows than requested; the bank does
                not have a key; a label is no class of the bank; or a tensor has another shape.
        """
        retrieval.check_queries(self, features, labels=labels, **({} if key is None else {"key": key}))
        retrieval.check_counts(positives=positives, negatives=negatives)
        rows = torch.full_like(labels, -1) if key is None else self.rows(key, required=not allow_missing)
        wanted = Wanted(positives, negatives, per_class, allow_missing)
        found = retrieval.search(self, features, labels, rows, wanted)
        return self.gather(found[0]), self.gather(found[1])

    def nearest(self, features: Tensor, key: Tensor | None = None, *, k: int = POSITIVES) -> InContext:
        """Return the k nearest rows of any class, [B, k]; the other arguments are those of `retrieve`."""
        retrieval.check_queries(self, features, **({} if key is None else {"key": key}))
        retrieval.check_counts(k=k)
        rows = torch.full((len(features),), -1, device=features.device) if key is None else self.rows(key)
        return self.gather(retrieval.nearest(self, features, rows, k))

    def table(
        self,
        *,
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        per_class: bool = False,
        allow_missing: bool = False,
        rows: Tensor | None = None,
        search: str | Faiss = "exact",
    ) -> tuple[Neighbours, Neighbours]:
        """Return the neighbours of rows of the bank itself, [M, positives] and [M, negatives].

        The neighbours of all rows are computed once; `gather` copies the content of the neighbours of a batch. The
        other arguments and the errors are those of `retrieve`. Where several processes train together, all must call
        this: each searches for its share of the rows, and all return the same table.

        Args:
            rows: positions of the M rows; None for all rows of the bank.
            search: "exact"; or "faiss", or a `Faiss` with other settings, for an approximate search for the negatives,
                whose `recall` is then measured and printed. Positives are always exact.
        Raises:
            InputError: the search is unknown, faiss is not installed, or is to find one row per class.
        """
        retrieval.check_counts(positives=positives, negatives=negatives)
        settings = approximate.requested(search)
        settings = settings.resolved(len(self)) if settings and negatives else None
        wanted = Wanted(positives, negatives, per_class, allow_missing)
        key = wanted, settings
        if rows is None and key in self._tables:
            return self._tables[key]
        if settings is None:
            approximate.suggest(self, len(self) if rows is None else len(rows), negatives)
            found = retrieval.table(self, rows, wanted)
        elif per_class:
            raise InputError("faiss does not find one row per class; leave per_class out, or search exactly")
        else:
            if settings not in self._indices:
                self._indices[settings] = Index(self, settings)
            found = retrieval.table(self, rows, wanted, self._indices[settings])
            self.recall[negatives] = approximate.recall(self, rows, found[1], settings)
        if rows is None:
            self._tables[key] = found
        return found

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
        retrieval.check_counts(positives=positives, negatives=negatives)
        if not allow_missing:
            self.require(positives=positives, negatives=negatives, rows=rows)
        return retrieval.random_neighbours(self, positives, negatives, seed, rows)

    def random(
        self,
        features: Tensor,
        labels: Tensor,
        key: Tensor,
        *,
        positives: int = POSITIVES,
        negatives: int = NEGATIVES,
        generator: torch.Generator | None = None,
    ) -> tuple[InContext, InContext]:
        """Return samples as `retrieve` does with allow_missing, but drawn at random from the written rows, in no order.

        Args:
            features, labels, key, positives, negatives: as in `retrieve`.
            generator: a generator on the bank's device; None for torch's global one.
        """
        retrieval.check_queries(self, features, labels=labels, key=key)
        retrieval.check_counts(positives=positives, negatives=negatives)
        found = retrieval.random_written(self, features, labels, key, positives, negatives, generator)
        return self.gather(found[0]), self.gather(found[1])

    def class_samples(self, key: Tensor, labels: Tensor) -> tuple[InContext, InContext]:
        """Return the means of the classes as in-context samples, as a control for samples that are chosen one by one.

        Args:
            key: keys of the queries, shape [B]; a query is left out of the mean of its own class.
            labels: classes of the queries, shape [B].
        Returns:
            Positives [B, 1]: the mean logits and features of the rest of the query's class. Negatives [B, C]: those of
            each class, with the query's own class masked. Their `index` is -1.
        """
        return retrieval.class_samples(self, key, labels)

    def gather(self, neighbours: Neighbours, *, features: bool = True, unit: bool = False) -> InContext:
        """Return the present content of neighbours.

        Args:
            neighbours: positions of rows, [B, k], as in `table`.
            features: whether to copy the features; otherwise that field is empty, [B, k, 0].
            unit: whether to copy the logits scaled to unit length.
        """
        rows = neighbours.rows  # F.embedding copies whole rows, three times as fast as indexing on a CPU
        copied = F.embedding(rows, self.features).float() if features else self.norms.new_empty(*rows.shape, 0)
        if unit and self.stored:  # the unit-length logits of all rows are not kept in memory
            logits = F.normalize(F.embedding(rows, self.logits).float(), dim=-1)
        else:
            logits = F.embedding(rows, self.unit_logits() if unit else self.logits).float()
        return InContext(self.index[rows], neighbours.similarity, logits, copied, neighbours.mask, unit)

    def require(self, *, positives: int, negatives: int, per_class: bool = False, rows: Tensor | None = None) -> None:
        """Raise InputError if some row has too few other rows for this number of in-context samples.

        Args:
            rows: positions of the rows that are checked; None for all rows of the bank.
        """
        rows = torch.arange(len(self), device=self.labels.device) if rows is None else rows
        labels = self.labels[rows]
        retrieval.require(self, labels.unique().tolist(), labels, rows, Wanted(positives, negatives, per_class))

    # --------------------------------------------------------------------------------------------- files

    @checked
    def save(self, path: str | Path) -> None:
        """Write the bank as a safetensors file, completely or not at all."""
        files.save(self, path)

    @classmethod
    @checked
    def load(
        cls,
        path: str | Path,
        *,
        images: Images | None = None,
        teacher: models.Network | None = None,
        device: torch.device | str = "cpu",
        mapped: bool = False,
    ) -> MemoryBank:
        """Read a bank from a file. With `images` or `teacher`, check that the bank was built from them.

        Args:
            path: the file.
            images, teacher: what the bank must have been built from; None accepts any.
            device: the device of the bank.
            mapped: map features and logits into memory instead of reading them, for a bank that is larger than the
                memory. The bank is then on the CPU.
        Raises:
            InputError: the file is missing, damaged, truncated, or built from other data or by another teacher.
        """
        bank = cls(**files.read(path, TENSORS, device, mapped=mapped))
        for what, mark in source_of(images, teacher).items():
            if bank.source.get(what) != mark:
                raise InputError(f"{path} was built with {what} {bank.source.get(what)}, not {mark}; build it again")
        return bank
