"""A short measurement of the precision in which a CPU trains faster."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from ickd_lib import runtime
from ickd_lib.data import Images, Sampler
from ickd_lib.models import Network
from ickd_lib.tasks import Task

STEPS = 1000  # shorter trainings would gain less time than the measurement takes
IMAGES = 16  # size of the batch that is measured
LONG = 1.0  # seconds after which there is no further round
GAIN = 1.2  # bf16 must be faster by this factor to be worth its rounding errors


def seconds(student: Network, teacher: Network | None, images: Images, task: Task) -> dict[str, float]:
    """Measure the seconds that a training step on a few images takes in "fp32" and in "bf16".

    Args:
        student: a network, which is copied, so that its weights and statistics do not change.
        teacher: a network, whose forward pass is then part of the step; or None.
        images: images, of which the first 16 are used.
        task: defines the samples of an image and the loss of the student.
    Returns:
        The shortest of 3 to 20 measurements for each precision, of which there are more than 3 while they take less
        than a second in all, because other programs may slow down some of them.
    """
    student = copy.deepcopy(student).train()
    rows = torch.arange(min(IMAGES, len(images)), device=images.index.device)
    batch = Sampler(images).batch(rows, torch.zeros_like(rows), 0)
    taken: dict[str, float] = {}
    with runtime.kept_generators():
        began, rounds = time.perf_counter(), 0
        while rounds < 3 or (rounds < 20 and time.perf_counter() - began < LONG):
            rounds += 1  # in the first round, libraries choose their kernels
            for precision in ("fp32", "bf16"):
                start = time.perf_counter()
                samples, loss = task.samples(student, batch, precision=precision)
                if teacher is not None:
                    with torch.no_grad():
                        task.samples(teacher, batch, like=samples, precision=precision)
                assert loss is not None
                loss.backward()
                spent = time.perf_counter() - start
                taken[precision] = min(spent, taken.get(precision, spent))
    return taken


def faster(taken: dict[str, float]) -> str:
    """Return the precision to train in, given the result of `seconds`."""
    return "bf16" if taken["bf16"] * GAIN < taken["fp32"] else "fp32"


def choose(
    precision: str, steps: int, student: Network, teacher: Network | None, train: Images, task: Task
) -> dict[str, Any]:
    """Return "precision", "fp32" or "bf16", and "precision_benchmark", the result of `seconds`, if it was measured.

    Args:
        precision: "auto", "fp32" or "bf16".
        steps: number of steps of the whole training.
        student, teacher, task: as for `seconds`.
        train: the training images, on the device that computes.
    """
    device = train.index.device
    found: dict[str, Any] = {"precision": runtime.precision(precision, device, min(train.size))}
    # Process 0 alone measures, so that the layers of several processes that wait for each other cannot be measured.
    measured = precision == "auto" and device.type == "cpu" and runtime.world() == 1
    if measured and steps >= STEPS and min(train.size) >= 16:
        taken = seconds(student, teacher, train, task)
        found |= {"precision_benchmark": taken, "precision": faster(taken)}
    return found
