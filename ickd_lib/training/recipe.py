"""The settings of a training: its length, learning rates and optimiser."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints

import torch

from ickd_lib import runtime
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import BelowOne, Count, NotNegative, Positive, check

SCHEDULES = ("step", "cosine", "onecycle", "fifths", "tenth")
MILESTONES = {"step": (5 / 8, 6 / 8, 7 / 8), "fifths": (5 / 10, 7 / 10, 9 / 10)}  # shares of the epochs
FACTORS = {"step": 0.1, "fifths": 0.2}
HIGH_FOR_ADAM = 0.01  # a learning rate above it is noted
OF_OPTIMIZERS = ("momentum", "nesterov", "betas", "weight_decay")  # settings that only some optimisers have


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; by default the CIFAR-100 protocol of the field, 240 epochs of SGD.

    Its learning rate drops to a tenth after 5/8, 6/8 and 7/8 of the epochs: of 240 epochs at 150, 180 and 210, and in
    a shorter training correspondingly earlier.

    The moving average of the weights (`ema`) has a lower decay in its first steps: in step n, counted from 0, it is the
    smaller of `ema` and (1 + n) / (10 + n). Otherwise the average of a short training would keep the initial weights.
    """

    epochs: Count = field(default=240, metadata={"help": "passes over the training images"})
    batch_size: Count = field(default=64, metadata={"help": "images per step"})
    lr: Positive = field(
        default=0.05, metadata={"help": "highest learning rate; publications use 0.01 for MobileNet and ShuffleNet"}
    )
    schedule: str = field(
        default="step",
        metadata={"help": "step (×0.1 at the milestones), cosine, onecycle, tenth or fifths; A+B: one for each phase"},
    )
    milestones: tuple[float, ...] = field(
        default=(),
        metadata={"help": "fractions of the epochs at which a step schedule drops; by default 5/8, 6/8 and 7/8"},
    )
    warmup: NotNegative = field(default=0.0, metadata={"help": "number of epochs of linear warm-up; not with onecycle"})
    optimizer: str = field(default="sgd", metadata={"help": "sgd, adamw, or any optimiser of torch.optim by name"})
    momentum: BelowOne = field(default=0.9, metadata={"help": "momentum of SGD"})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov momentum"})
    betas: tuple[BelowOne, BelowOne] = field(default=(0.9, 0.999), metadata={"help": "betas of Adam and its variants"})
    weight_decay: NotNegative = field(default=5e-4, metadata={"help": "weight decay"})
    decay_norms_and_biases: bool = field(
        default=True, metadata={"help": "apply weight decay to normalisation layers and biases too"}
    )
    clip_grad_norm: NotNegative = field(default=0.0, metadata={"help": "largest norm of the gradient; 0: no clipping"})
    ema: BelowOne = field(
        default=0.0,
        metadata={"help": "decay of a moving average of the weights, which is then evaluated; 0: no average"},
    )

    def __post_init__(self) -> None:
        for name, kind in settings().items():
            object.__setattr__(self, name, check(name, getattr(self, name), kind))
        if not all(0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise InputError(f"milestones={self.milestones} must be ascending shares of the epochs, between 0 and 1")
        if self.warmup >= self.epochs and self.warmup:
            raise InputError(f"warmup={self.warmup} must be shorter than epochs={self.epochs}")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov=True needs a momentum above 0")
        chosen = [runtime.choose(name, SCHEDULES, "schedule") for name in self.schedule.split("+")]
        object.__setattr__(self, "schedule", "+".join(chosen))
        if self.warmup and "onecycle" in chosen:
            raise InputError(f"warmup={self.warmup} is for other schedules than onecycle, which begins with a rise")
        if self.milestones and not set(chosen) & set(MILESTONES):
            raise InputError(f"milestones are for the schedules {' and '.join(MILESTONES)}, not {self.schedule!r}")
        object.__setattr__(self, "optimizer", runtime.choose(self.optimizer, optimizers(), "optimizer").lower())

    def check_optimizer(self, defaults: Mapping[str, Any]) -> None:
        """Raise InputError if a setting that the optimiser does not have was changed, and so would have no effect.

        A note is printed if the learning rate is usual for SGD alone, but the optimiser is Adam or a variant of it.

        Args:
            defaults: the settings for which the task has defaults of its own, `Task.recipe`.
        """
        name = runtime.choose(self.optimizer, optimizers(), "optimizer")
        known = inspect.signature(getattr(torch.optim, name).__init__).parameters
        usual = {one.name: one.default for one in fields(self)}
        for setting in OF_OPTIMIZERS:
            value = getattr(self, setting)
            if setting not in known and value not in (usual[setting], defaults.get(setting, usual[setting])):
                raise InputError(f"{setting}={value} is not a setting of the optimizer {name}; leave it out")
        if "adam" in self.optimizer and self.lr > HIGH_FOR_ADAM:
            runtime.notice(
                f"lr={self.lr} is high for the optimizer {name}, and networks without batch normalisation learn little "
                "with it; 0.001 is a usual learning rate for this optimizer"
            )

    def first_phase(self) -> Recipe:
        """Return the recipe with the first of its schedules, for a training that has one phase."""
        schedule = self.schedule.split("+")[0]
        return replace(self, schedule=schedule, milestones=self.milestones if schedule in MILESTONES else ())

    def phases(self, restarts: Sequence[float]) -> list[tuple[int, int, Recipe]]:
        """Return the phases of a training in which the schedule restarts at some shares of the epochs.

        Args:
            restarts: the shares, ascending.
        Returns:
            First epoch, number and recipe of each phase. Each phase runs through the whole schedule or, of several
            schedules joined by "+", through its own. Phases without an epoch are left out.
        Raises:
            InputError: there are more schedules than phases.
        """
        schedules = self.schedule.split("+")
        if len(schedules) > len(restarts) + 1:
            raise InputError(
                f"schedule={self.schedule!r} is for {len(schedules)} phases, but the method has {len(restarts) + 1}"
            )
        starts = [0, *(round(share * self.epochs) for share in restarts), self.epochs]
        phases = []
        for number, (start, end) in enumerate(itertools.pairwise(starts)):
            if end > start:
                schedule = schedules[min(number, len(schedules) - 1)]
                milestones = self.milestones if schedule in MILESTONES else ()
                recipe = replace(self, epochs=end - start, schedule=schedule, milestones=milestones)
                phases.append((start, number, recipe))
        return phases

    def lr_at(self, epoch: float, step: float = 0.0) -> float:
        """Return the learning rate of a step that begins after `epoch` epochs, which may be a fraction.

        In the warm-up the coming step counts too, so that the first step does not have a learning rate of 0. Of w steps
        of warm-up, step i, counted from 1, has i/w of the learning rate, as in the code of the published settings.

        step: ×0.1 at each milestone.
        fifths: ×0.2 at each milestone; these are by default at 1/2, 7/10 and 9/10 of the epochs.
        cosine: a half cosine from lr to 0.
        onecycle: a linear rise from lr/25 to lr over 3/10 of the epochs, then a half cosine to 0 (Smith 2018).
        tenth: a half cosine from lr to lr/10.

        tenth and fifths are the schedules of the two phases of REFILLED.

        Args:
            epoch: the number of epochs before the step.
            step: the length of the step in epochs.
        """
        if epoch < self.warmup:
            return self.lr * min((epoch + step) / self.warmup, 1.0)
        done = epoch / self.epochs
        if self.schedule in MILESTONES:
            shares = self.milestones or MILESTONES[self.schedule]
            return self.lr * FACTORS[self.schedule] ** sum(
                math.floor(epoch) >= round(self.epochs * share) for share in shares
            )
        if self.schedule == "onecycle":
            if done < 0.3:
                return self.lr * (1 + 24 * done / 0.3) / 25
            done = (done - 0.3) / 0.7
        else:
            done = (epoch - self.warmup) / (self.epochs - self.warmup)
        least = 0.1 if self.schedule == "tenth" else 0.0
        return self.lr * (least + (1 - least) * (1 + math.cos(math.pi * done)) / 2)


@functools.cache
def settings() -> dict[str, Any]:
    """Return the annotation of each setting, which declares its type and range."""
    return get_type_hints(Recipe, include_extras=True)


def optimizers() -> list[str]:
    """Return the names of the optimisers in torch.optim that accept any parameters and need no closure."""
    others = {"Optimizer", "LBFGS", "Muon", "SparseAdam"}
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name not in others
    )
