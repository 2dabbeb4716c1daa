"""A copy of a teacher's bank whose rows are written again in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.memory.bank import MemoryBank


class DynamicBank(MemoryBank):
    """A copy of a complete memory bank, whose rows are overwritten with the teacher's outputs for augmented images.

    Keys and labels stay those of the bank, and so do neighbours that were computed before. The content is written in
    place, and without reading values on the host, so that a captured step can write and read it.

    Args:
        bank: the bank, all of whose rows were written; it is not changed.
        features: whether features are written too, not only logits.
    Raises:
        InputError: the rows of the bank are in half precision or in a mapped file.
    """

    def __init__(self, bank: MemoryBank, *, features: bool) -> None:
        bank.require_writable()
        vars(self).update(vars(bank))  # what is not written is shared
        self._tables, self._indices, self._means, self._sums = {}, {}, None, None
        self.logits, self._unit_logits = bank.logits.clone(), bank.unit_logits().clone()
        if features:
            self.features, self.norms = bank.features.clone(), bank.norms.clone()
        self._changing = ("logits", "features", "norms") if features else ("logits",)

    @property
    def content(self) -> dict[str, Tensor]:
        """The tensors that are written, by name: everything that a checkpoint needs beside the bank itself."""
        return {name: getattr(self, name) for name in self._changing}

    @torch.no_grad()
    def write(self, key: Tensor, logits: Tensor, features: Tensor) -> None:
        """Write new outputs into the rows of some samples.

        Args:
            key: keys, each once and each in the bank, shape [B].
            logits: shape [B, C].
            features: shape [B, D]. They are not used, and may be empty, if only logits are written.
        """
        rows = self.rows(key)
        logits = logits.detach().float()
        self.logits.index_copy_(0, rows, logits)
        self.unit_logits().index_copy_(0, rows, F.normalize(logits, dim=1))
        if "features" in self._changing:
            features = features.detach().float()
            self.features.index_copy_(0, rows, F.normalize(features, dim=1))
            self.norms.index_copy_(0, rows, features.norm(dim=1))
        self._means = self._sums = None  # computed anew where a step uses them

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Replace the content by `tensors`, the `content` of another copy of the same bank."""
        for name, tensor in tensors.items():
            getattr(self, name).copy_(tensor)
        self.unit_logits().copy_(F.normalize(self.logits, dim=1))
        self._means = self._sums = None
