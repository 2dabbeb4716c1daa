"""In which precision a CPU trains faster, measured."""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.models import Network

STEPS = 1000  # a shorter training would not make up for the trial
IMAGES = 16
GAIN = 1.2  # bf16 must be so much faster, or it is not worth its rounding


def seconds(student: Network, teacher: Network | None, images: Images) -> dict[str, float]:
    """How long "fp32" and "bf16" take for a few images: the teacher's pass, the student's forward and backward."""
    student = copy.deepcopy(student).train()
    pixels, labels = images.pixels(slice(IMAGES)), images.labels[:IMAGES]
    taken: dict[str, float] = {}
    with torch.random.fork_rng():
        for _ in range(3):  # the first time, libraries choose their kernels
            for precision in ("fp32", "bf16"):
                start = time.perf_counter()
                with runtime.autocast(labels.device, precision):
                    if teacher is not None:
                        with torch.no_grad():
                            teacher(pixels)
                    logits = student(pixels).logits
                F.cross_entropy(logits.float(), labels).backward()
                spent = time.perf_counter() - start
                taken[precision] = min(spent, taken.get(precision, spent))
    return taken


def faster(taken: dict[str, float]) -> str:
    """The precision to train in."""
    return "bf16" if taken["bf16"] * GAIN < taken["fp32"] else "fp32"
