"""The samples that an explorer shows: their labels, keys, thumbnails, and the outputs of networks for them.

Whatever depends on the kind of a sample (here one image) is in this file; the explorers address samples by position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ickd_lib import models
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network, Output


@dataclass(frozen=True)
class SampleSet:
    """The N samples of one split, each addressed by its position, 0 to N - 1.

    Args:
        images: The split. Each image is one sample.
    """

    images: Images

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def name(self) -> str:
        """Data set and split, such as "cifar100/train"."""
        return self.images.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.images.classes

    @property
    def labels(self) -> Tensor:
        """Class of each sample, shape [N]."""
        return self.images.labels

    @property
    def keys(self) -> Tensor:
        """Key of each sample, shape [N]: the number under which a memory bank stores it. An image's is its row."""
        return self.images.index

    def positions(self, keys: Tensor) -> Tensor:
        """Return the positions of the samples with these keys, shape [n]."""
        return self._position_of_key[keys]

    @cached_property
    def _position_of_key(self) -> Tensor:
        table = torch.full((int(self.keys.max()) + 1,), -1, device=self.keys.device)
        table[self.keys] = torch.arange(len(self.keys), device=self.keys.device)
        return table

    def outputs(self, network: Network, at: Tensor | None = None, *, precision: str = "auto") -> Output:
        """Compute a network's outputs for some samples, without augmentation, in evaluation mode.

        Args:
            network: On the device of the images.
            at: Positions of the samples, shape [n]; None for all N.
            precision: "auto", "fp32" or "bf16".
        Returns:
            Logits [n, C] and features [n, D].
        """
        return models.predict(network, self.images if at is None else self.images.subset(at), precision=precision)

    def stored_outputs(self, bank: MemoryBank, at: Tensor | None = None) -> Output:
        """Return the teacher's outputs that a bank stores for some samples: logits [n, C] and features [n, D].

        Args:
            bank: Contains a row for each of these samples.
            at: Positions of the samples, shape [n]; None for all N.
        """
        rows = bank.rows(self.keys if at is None else self.keys[at])
        return Output(bank.logits[rows], bank.features[rows])

    def thumbnails(self, at: Tensor) -> Tensor:
        """Return the pictures of some samples, uint8, shape [n, 3, h, w].

        Args:
            at: Positions of the samples, shape [n].
        """
        return self.images.images[at.to(self.images.images.device)]

    def pictured(self, at: Tensor) -> Images:
        """Return thumbnails, labels and keys of some samples in the form that `plots.neighbours` draws.

        Args:
            at: Positions of the samples, shape [n].
        """
        at = at.to(self.labels.device)
        return replace(self.images, images=self.thumbnails(at), labels=self.labels[at], index=self.keys[at])
