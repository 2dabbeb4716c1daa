"""Who is trained, what a step is given, how far it is, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_lib import methods
from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.models import Network, Output

Retrieved = dict[methods.Retrieval, tuple[InContext, InContext]]


@dataclass(frozen=True)
class Student:
    """Who is to be trained.

    network: a model's name, initialised from `seed`; or a network, trained in place.
    method: as `methods.create` reads it, or a Method.
    seed: of the initialisation and of the method's draws. The data's order has a seed of its own.
    name: of its run folder; by default network, method, seed and a fingerprint of all settings, so that other
        settings are another run.
    circle: students of one circle are each other's peers. Those that name none and whose method learns from peers are
        one circle.
    """

    network: str | Network
    method: str | methods.Method = "ce"
    seed: int = 0
    name: str = ""
    circle: str = ""


@dataclass
class History:
    """What became of a student.

    network: the trained network, in evaluation mode.  method: its method.  epochs: a record an epoch.
    summary: what summary.json holds.  folder: the run folder, None where none was asked for.
    """

    network: Network
    method: methods.Method
    epochs: list[dict[str, Any]]
    summary: dict[str, Any]
    folder: Path | None


@dataclass(frozen=True)
class Supply:
    """What a step gives to every student: the batch, and whatever some method of the run declared.

    teacher: its output.  retrieved: in-context samples of its bank.  bank: that.  partner: other images of the classes.
    precision: of the networks' passes.  steps: of an epoch.  step: which of them this is, [1].
    progress: how much of the training is done, scalar.  draws: the device whose generator each student moves to a place
    of its own; where a GPU records steps, that is the CPU, and the GPU's is moved once a step for all.
    """

    batch: Batch
    teacher: Output | None
    retrieved: Retrieved
    bank: MemoryBank | None
    partner: Batch | None
    precision: str
    steps: int
    step: Tensor
    progress: Tensor
    draws: torch.device


@dataclass
class Progress:
    """Where a student is in its training; `checkpoint.pt` holds this beside weights, optimiser and bank."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    terms: list[str] = field(default_factory=list)
    losses: Tensor | None = None  # [steps of an epoch, terms]
    correct: Tensor | None = None  # scalar: right predictions in this epoch
    agreed: Tensor | None = None  # scalar: predictions in this epoch that were a peer's as well, on average over peers

    @property
    def position(self) -> tuple[int, int]:
        return self.epoch, self.step
