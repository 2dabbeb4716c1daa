"""How long, how fast, with what: the numbers of a training run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ickd_lib import runtime
from ickd_lib.runtime import InputError

SCHEDULES = ("step", "cosine", "onecycle", "fifths", "tenth")


@dataclass(frozen=True)
class Recipe:
    """The CIFAR-100 protocol of the field by default: 240 epochs of SGD, a tenth of the rate at 150, 180, 210."""

    epochs: int = field(default=240, metadata={"help": "passes over the training images"})
    batch_size: int = field(default=64, metadata={"help": "images a step"})
    lr: float = field(default=0.05, metadata={"help": "highest learning rate; 0.01 for MobileNet and ShuffleNet"})
    schedule: str = field(
        default="step",
        metadata={"help": "step (×0.1 at 5/8, 6/8, 7/8), cosine, onecycle, tenth or fifths; A+B is one a phase"},
    )
    warmup: float = field(default=0.0, metadata={"help": "epochs of linear warm-up"})
    momentum: float = field(default=0.9, metadata={"help": "of SGD"})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov momentum"})
    weight_decay: float = field(default=5e-4, metadata={"help": "on every parameter"})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("warmup", "weight_decay", "momentum"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)} must be 0 or more")
        if not self.momentum < 1:
            raise InputError(f"momentum={self.momentum} must be below 1")
        if self.warmup >= self.epochs and self.warmup:
            raise InputError(f"warmup={self.warmup} must be shorter than epochs={self.epochs}")
        chosen = [runtime.choose(name, SCHEDULES, "schedule") for name in self.schedule.split("+")]
        object.__setattr__(self, "schedule", "+".join(chosen))

    def phases(self, restarts: Sequence[float]) -> list[tuple[int, int, Recipe]]:
        """First epoch, number and recipe of each phase of a training that starts anew at these shares of its epochs.

        Each has the whole schedule to itself, or, of schedules joined by "+", its own. One of no epoch is left out.

        Raises:
            InputError: there are more schedules than phases.
        """
        schedules = self.schedule.split("+")
        if len(schedules) > len(restarts) + 1:
            raise InputError(
                f"schedule={self.schedule!r} is for {len(schedules)} phases, the method has {len(restarts) + 1}"
            )
        starts = [0, *(round(share * self.epochs) for share in restarts), self.epochs]
        return [
            (start, number, replace(self, epochs=end - start, schedule=schedules[min(number, len(schedules) - 1)]))
            for number, (start, end) in enumerate(itertools.pairwise(starts))
            if end > start
        ]

    def lr_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, fractions of one included: a function, so nothing to resume.

        step: ×0.1 after 5/8, 6/8 and 7/8 of the epochs.  cosine: from lr to 0.  onecycle: from lr/25 up over the
        first 3/10, then a cosine to 0 (Smith 2018).  tenth: a cosine to lr/10, and fifths: ×0.2 after 1/2, 7/10 and
        9/10, the phases of REFILLED.
        """
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = epoch / self.epochs
        steps = {"step": (0.1, (5 / 8, 6 / 8, 7 / 8)), "fifths": (0.2, (5 / 10, 7 / 10, 9 / 10))}.get(self.schedule)
        if steps:
            factor, milestones = steps
            return self.lr * factor ** sum(math.floor(epoch) >= round(self.epochs * at) for at in milestones)
        if self.schedule == "onecycle":
            if done < 0.3:
                return self.lr * (1 + 24 * done / 0.3) / 25
            done = (done - 0.3) / 0.7
        else:
            done = (epoch - self.warmup) / (self.epochs - self.warmup)
        least = 0.1 if self.schedule == "tenth" else 0.0
        return self.lr * (least + (1 - least) * (1 + math.cos(math.pi * done)) / 2)
