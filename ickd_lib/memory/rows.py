"""The rows of a memory bank: their tensors, their keys, the writing of new content, and what is derived from them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.data.split import positions_of
from ickd_lib.memory import files
from ickd_lib.memory.files import Mapped
from ickd_lib.runtime import InputError, NotFinite, arguments

TENSORS = ("features", "logits", "labels", "index", "norms", "written")
PART = 2**16  # number of rows whose features are converted to float32 at once; 512 features take 134 MB
SUMMED = 2**14  # the same for features and logits, while their sums are computed; 512 and 1,000 take 99 MB


LARGEST_KEY = 2**30  # a table with an entry for each key up to the largest takes 8 GB then


def check_rows(features: Tensor, logits: Tensor, labels: Tensor, index: Tensor, classes: int) -> int:
    """Return the number of rows; raise InputError if their tensors are not those of a bank."""
    arguments.check_tensor("labels", labels, [None], torch.long)
    count = len(labels)
    for name, tensor in (("features", features), ("logits", logits)):
        arguments.check_tensor(name, tensor, [count, None])
    arguments.check_tensor("index", index, [count], torch.long)
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels of a bank must lie between 0 and {classes - 1}, the positions of its classes")
    if count and not 0 <= int(index.min()) <= int(index.max()) < LARGEST_KEY:
        raise InputError(f"index has keys from {int(index.min())} to {int(index.max())}; give some from 0 to 2^30 - 1")
    return count


class Rows:
    """The rows of a memory bank; the arguments are those of `MemoryBank`.

    Attributes:
        stored: whether features and logits are kept as they were stored, in half precision or in a mapped file. They
            are then converted to float32 in parts, where they are used, and are not written.
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
        count = check_rows(features, logits, labels, index, len(classes))
        for name, tensor in (("norms", norms), ("written", written)):
            if tensor is not None:
                arguments.check_tensor(name, tensor, [count], None if name == "norms" else torch.long)
        if len(index) and not bool((index.diff() > 0).all()):
            raise InputError("the index of a bank must be ascending and contain each key once")
        self.stored = mapped is not None or (features.dtype == torch.half and norms is not None)
        if self.stored:
            assert norms is not None
            self.norms, self.features, self.logits = norms, features, logits
        else:
            features = features.float()
            self.norms = features.norm(dim=1) if norms is None else norms
            unit = (features.norm(dim=1, keepdim=True) - 1).abs() < 1e-5  # normalising again could change last bits
            self.features = torch.where(unit, features, F.normalize(features, dim=1))
            self.logits = logits.float()
            if logits.numel() and not bool(torch.stack(torch.aminmax(self.logits)).isfinite().all()):
                raise NotFinite("the logits of a bank have values that are not finite")
            arguments.refuse_probabilities("the logits of a bank", self.logits)
        if not bool(self.norms.isfinite().all()):
            raise NotFinite("the features of a bank have values that are not finite")
        self.labels, self.index, self.classes = labels, index, tuple(classes)
        self.written = torch.zeros_like(labels) if written is None else written
        self.source = source or {}
        self._mapped = mapped
        self._means: Tensor | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._unit_logits: Tensor | None = None
        self._row_of = positions_of(index)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        dim, classes = self.features.shape[1], len(self.classes)
        kind = (", half precision" if self.features.dtype == torch.half else "") + (", mapped" if self._mapped else "")
        return f"MemoryBank({len(self):,} rows, {dim} features, {classes} classes, {self.labels.device}{kind})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: of a mapped file, its path instead of its content."""
        if self._mapped is None:
            return self.__dict__
        return {**self.__dict__, **dict.fromkeys(files.MAPPED), "_mapped": self._mapped.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was pickled, and map the file again.

        Raises:
            InputError: the file is missing or damaged, or has other rows by now.
        """
        if path := state["_mapped"]:
            found = files.read(path, TENSORS, "cpu", mapped=True)
            if found["source"] != state["source"] or not all(found[n].equal(state[n]) for n in ("index", "norms")):
                raise InputError(f"{path} contains another bank than when it was opened; start again")
            state = state | {name: found[name] for name in files.MAPPED} | {"_mapped": found["mapped"]}
        self.__dict__.update(state)

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

    def rows(self, key: Tensor, *, required: bool = False) -> Tensor:
        """Return the position of the row of each key, [B] like `key`.

        Args:
            key: keys of samples, shape [B].
            required: raise an error for a key that the bank does not have. Otherwise its position is -1, which must not
                be used as an index, because that of the last row is -1 too. On a GPU, the check waits for the device.
        Raises:
            InputError: `required` is True and the bank does not have one of the keys.
        """
        in_range = (key >= 0) & (key < len(self._row_of))
        rows = torch.where(in_range, self._row_of[key.clamp(0, len(self._row_of) - 1)], -1)
        if required and bool((missing := rows < 0).any()):
            raise InputError(
                f"key {int(key[missing][0])} is not in this bank; build the bank from this data set, or leave out the "
                "samples whose bank.rows(key) is -1"
            )
        return rows

    def parts(self) -> Iterator[slice]:
        """Yield slices of all rows, so small that each can be converted to float32; one slice if none must be."""
        size = SUMMED if self.stored else max(1, len(self))
        for start in range(0, len(self), size):
            yield slice(start, start + size)
            self.release()

    def release(self) -> None:
        """Release the memory of a mapped file, whose content is read again where it is needed.

        The system does this by itself when memory becomes scarce. Until then it counts as memory of this process.
        """
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def require_writable(self) -> None:
        """Raise InputError if the rows are kept as they were stored."""
        if self.stored:
            raise InputError(
                "the rows of a bank in half precision or in a mapped file are not written in training; "
                "build the bank without half, and load it without mapped"
            )

    @torch.no_grad()
    def update(self, key: Tensor, features: Tensor, logits: Tensor, *, momentum: float = 0.0, step: int = 0) -> None:
        """Write new features and logits into the rows of some samples.

        In a training step, retrieve before writing, so that queries are compared with rows of earlier steps only.

        Args:
            key: keys, each once, shape [B].
            features: new features, shape [B, D], which are detached.
            logits: new logits, shape [B, C], which are detached.
            momentum: weight of the old content in a row that was written before; the new content has the rest.
            step: number of the present step, at least 0, which is stored in `written`.
        Raises:
            InputError: the bank does not have one of the keys, or its rows are not written (`stored`).
        """
        self.require_writable()
        rows = self.rows(key, required=True)
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
        self._means = self._sums = self._unit_logits = None

    def prepare(self) -> None:
        """Compute what is derived from all rows now, and not at the first use."""
        self.class_means(), self.class_sums()
        if not self.stored:
            self.unit_logits()

    def unit_logits(self) -> Tensor:
        """Return the logits scaled to unit length, shape [N, C]. They are computed at the first call."""
        if self._unit_logits is None:
            self._unit_logits = F.normalize(self.logits.float(), dim=1)
        return self._unit_logits

    def class_sums(self) -> tuple[Tensor, Tensor]:
        """Return the sum of logits and unit-length features over each class, [C, C + D], and its number of rows, [C].

        Only written rows count.
        """
        if self._sums is None:
            width = self.logits.shape[1] + self.features.shape[1]
            sums = torch.zeros(len(self.classes), width, device=self.labels.device)
            for part in self.parts():
                both = torch.cat([self.logits[part].float(), self.features[part].float()], 1)
                sums.index_add_(0, self.labels[part], both * self.filled[part, None])
            counts = torch.zeros(len(self.classes), dtype=torch.long, device=self.labels.device)
            self._sums = sums, counts.index_add_(0, self.labels, self.filled.long())
        return self._sums

    def class_means(self) -> Tensor:
        """Return the mean of the original features of each class, scaled to unit length: [C, D].

        The mean of a class without written rows is zero.
        """
        if self._means is None:
            sums = torch.zeros(len(self.classes), self.features.shape[1], device=self.features.device)
            weights = (self.norms * self.filled)[:, None]
            for part in self.parts():
                sums.index_add_(0, self.labels[part], self.features[part].float() * weights[part])
            self._means = F.normalize(sums, dim=1)
        return self._means
