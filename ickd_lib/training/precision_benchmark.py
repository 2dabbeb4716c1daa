"""A short measurement of the precision in which a CPU trains faster."""

from __future__ import annotations

import copy
import time

import torch

from ickd_lib.data import Images, Sampler
from ickd_lib.models import Network
from ickd_lib.tasks import Task

STEPS = 1000  # a shorter training would not make up for the time of the measurement
IMAGES = 16
GAIN = 1.2  # bf16 must be faster by this factor to be worth its rounding errors


def seconds(student: Network, teacher: Network | None, images: Images, task: Task) -> dict[str, float]:
    """Seconds that a training step on a few images takes in "fp32" and in "bf16".

    Args:
        student, teacher: the networks; the forward pass of the teacher is included where one is given. The student is
            copied, so that its weights and statistics stay as they are.
        images: some of them are used.
        task: which samples an image has, and the loss of the student.
    Returns:
        The shortest of three measurements for each precision.
    """
    student = copy.deepcopy(student).train()
    rows = torch.arange(min(IMAGES, len(images)), device=images.labels.device)
    batch = Sampler(images).batch(rows, torch.zeros_like(rows), 0)
    taken: dict[str, float] = {}
    with torch.random.fork_rng():
        for _ in range(3):  # in the first round, libraries choose their kernels
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
    """The precision to train in, from what `seconds` returned."""
    return "bf16" if taken["bf16"] * GAIN < taken["fp32"] else "fp32"
