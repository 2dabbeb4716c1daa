"""What the steps share: the device, the images, a teacher, and short trainings that can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import loops
import torch
from torch import Tensor

from ickd_lib import data, training
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.training import Callback, Recipe, Student


class Skipped(Exception):
    """The reason for which a step was not run."""


class Problem(Exception):
    """Why a step failed, with what it measured."""

    def __init__(self, reason: str, **measured: Any) -> None:
        super().__init__(reason)
        self.measured = measured


class Trained(NamedTuple):
    """A student after a short training.

    weights: its state, on the CPU.
    captures, replays: number of steps of the training that were captured and that were replayed.
    losses: the mean loss of each epoch.
    """

    weights: dict[str, Tensor]
    captures: int
    replays: int
    losses: list[float]


class Counted(Callback):
    """Counts the captured and the replayed steps of a training."""

    captures = replays = 0

    def end(self, training: Any) -> None:
        captured = training.stepper.captured
        self.captures, self.replays = captured.captures, captured.replays


@dataclass
class Setting:
    """The scale of all steps, on the digits if it is small.

    device: the device to check.
    small: whether to use small networks and few steps.
    data_root: folder with CIFAR-100; "" for random images.
    scratch: an empty folder.
    """

    device: torch.device
    small: bool
    data_root: str
    scratch: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU, on which steps are captured."""
        return self.device.type == "cuda"

    @property
    def steps(self) -> int:
        """Number of steps in an epoch of the training that is timed."""
        return 2 if self.small else 400

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the teacher and of the student whose steps are timed."""
        return ("resnet20", "resnet8") if self.small else ("resnet32x4", "resnet8x4")

    @cached_property
    def splits(self) -> data.Splits:
        """Images for the measurements: 64 for each step, and 64 to evaluate on."""
        count = 64 * self.steps
        if self.small:
            splits = data.load("digits", labels=200)
        else:
            splits = data.load("cifar100", self.data_root) if self.data_root else loops.random_splits(count, 64)
        return data.Splits(
            splits.train.few(min(count, len(splits.train))), splits.val, splits.test.subset(torch.arange(64))
        )

    @cached_property
    def few(self) -> data.Splits:
        """Images for the comparisons. The last batch of an epoch is a small one."""
        if self.small:
            splits = data.load("digits", labels=200)
            return data.Splits(splits.train, splits.val, splits.test.subset(torch.arange(64)))
        return self.splits._replace(train=self.splits.train.few(2016))

    @cached_property
    def teacher(self) -> Network:
        """A small teacher that was trained for an epoch on the images of the comparisons."""
        given: dict[str, Any] = {"device": self.device, "precision": "fp32", "progress": False}
        recipe = Recipe(epochs=1, lr=0.05, schedule="cosine")
        name = "resnet8" if self.small else "resnet20"
        (history,) = training.distill([Student(name, "ce", 7)], self.few, recipe=recipe, **given).values()
        return history.network

    @cached_property
    def bank(self) -> MemoryBank:
        """The teacher's bank."""
        return MemoryBank.build(self.teacher, self.few.train.to(self.device), precision="fp32")

    def train(
        self, *methods: str, epochs: int = 3, optimizer: str = "sgd", stop: Callback | None = None, **given: Any
    ) -> list[Trained]:
        """Train a student with each method, all in one pass.

        Args:
            methods: the methods.
            epochs: number of epochs.
            optimizer: name of the optimiser.
            stop: a further callback, such as one that stops the training.
            given: further arguments of `distill`.
        """
        counted = Counted()
        options: dict[str, Any] = {
            "teacher": self.teacher,
            "bank": self.bank,
            "recipe": Recipe(epochs=epochs, lr=0.01, schedule="cosine", optimizer=optimizer),
            "device": self.device,
            "precision": "fp32",
            "evaluate_every": epochs,
            "progress": False,
            "callbacks": [counted, *([stop] if stop else [])],
        }
        students = [Student("resnet8", method, 0, f"{number}") for number, method in enumerate(methods)]
        with deterministic():
            histories = training.distill(students, self.few, **options | given)
        return [
            Trained(
                {key: value.cpu() for key, value in history.network.state_dict().items()},
                counted.captures,
                counted.replays,
                [round(record["loss"], 6) for record in history.epochs],
            )
            for history in histories.values()
        ]


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let cuDNN use deterministic algorithms only, so that trainings can be compared."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def difference(one: Trained, other: Trained) -> float:
    """Return the largest difference of two students' weights."""
    pairs = [(one.weights[key].double(), other.weights[key].double()) for key in one.weights]
    return max(float((a - b).abs().max()) for a, b in pairs)


def check(measured: dict[str, Any], *requirements: tuple[bool, str]) -> dict[str, Any]:
    """Return what was measured; raise a Problem that names the requirements that are not met."""
    if problems := [text for met, text in requirements if not met]:
        raise Problem("; ".join(problems), **measured)
    return measured
