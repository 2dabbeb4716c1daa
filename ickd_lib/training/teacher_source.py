"""What provides the teacher's samples of a batch: a forward pass, a cache of it, or predictions in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ickd_lib.data import Batch
from ickd_lib.models import Network
from ickd_lib.tasks import Samples, Task
from ickd_lib.training.predictions import Predictions


class TeacherSource(ABC):
    """Provides the teacher's samples of each batch.

    Attributes:
        teacher: the network that computes them; None if there is none.
    """

    teacher: Network | None = None

    @abstractmethod
    def __call__(self, batch: Batch, like: Samples | None = None) -> Samples:
        """Return the teacher's samples of a batch, at the places of the samples `like` if the task needs that."""

    def fill(self, rows: Tensor, view: Tensor) -> int:
        """Prepare the outputs for coming steps: for the views `view` [M] of the images at positions `rows` [M].

        Returns:
            The number of outputs that the teacher computed.
        """
        return 0

    def close(self) -> None:  # noqa: B027 - only caches have files
        """Close the files of a cache, so that other processes may write them."""


class TeacherPass(TeacherSource):
    """Computes the teacher's samples of a batch by a forward pass.

    Args:
        task: defines the samples of an image.
        teacher: a frozen network.
        maps: whether a method compares the outputs of its stages.
        precision: precision of the network, "fp32" or "bf16".
    """

    teacher: Network

    def __init__(self, task: Task, teacher: Network, *, maps: bool, precision: str) -> None:
        self.task, self.teacher, self.maps, self.precision = task, teacher, maps, precision

    def __call__(self, batch: Batch, like: Samples | None = None) -> Samples:
        return self.task.samples(self.teacher, batch, like=like, maps=self.maps, precision=self.precision)[0]


class TeacherPredictions(TeacherSource):
    """Looks up the predictions of a teacher that is not a network; they have no features."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def __call__(self, batch: Batch, like: Samples | None = None) -> Samples:
        logits = self.predictions.of(batch.index)
        return samples_of(batch, logits, logits[:, :0])


def samples_of(batch: Batch, logits: Tensor, features: Tensor) -> Samples:
    """Return the samples of a batch of images with these logits [B, C] and features [B, D]."""
    image = torch.arange(len(logits), device=logits.device)
    return Samples(logits, features, batch.labels, batch.index, image)
