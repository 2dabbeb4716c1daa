"""How long, how fast, with what: the numbers of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ickd_lib import runtime
from ickd_lib.runtime import InputError

SCHEDULES = ("step", "cosine", "onecycle")


@dataclass(frozen=True)
class Recipe:
    """The CIFAR-100 protocol of the field by default: 240 epochs of SGD, a tenth of the rate at 150, 180, 210."""

    epochs: int = field(default=240, metadata={"help": "passes over the training images"})
    batch_size: int = field(default=64, metadata={"help": "images a step"})
    lr: float = field(default=0.05, metadata={"help": "highest learning rate; 0.01 for MobileNet and ShuffleNet"})
    schedule: str = field(default="step", metadata={"help": "step (×0.1 at 5/8, 6/8 and 7/8), cosine or onecycle"})
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
        object.__setattr__(self, "schedule", runtime.choose(self.schedule, SCHEDULES, "schedule"))

    def lr_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, fractions of one included: a function, so nothing to resume.

        step: ×0.1 after 5/8, 6/8 and 7/8 of the epochs.  cosine: from lr to 0.  onecycle: from lr/25 up over the
        first 3/10, then a cosine to 0 (Smith 2018).
        """
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = epoch / self.epochs
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(math.floor(epoch) >= round(self.epochs * at) for at in (5 / 8, 6 / 8, 7 / 8))
        if self.schedule == "onecycle":
            if done < 0.3:
                return self.lr * (1 + 24 * done / 0.3) / 25
            done = (done - 0.3) / 0.7
        else:
            done = (epoch - self.warmup) / (self.epochs - self.warmup)
        return self.lr * (1 + math.cos(math.pi * done)) / 2
