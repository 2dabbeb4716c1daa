"""Notes on a teacher that cannot help, which nothing else shows: it is wrong about the training images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.tasks import Task
from ickd_lib.training.predictions import Predictions
from ickd_lib.training.students import Learner

IMAGES = 256  # number of training images for which the teacher is checked


def check_teacher(
    teacher: Network | None,
    students: Sequence[Learner],
    train: Images,
    task: Task,
    *,
    bank: MemoryBank | None,
    precision: str,
) -> None:
    """Print a note if a classifier whose outputs are used does not normalise its images, or only guesses.

    With several processes, all must call this.

    Args:
        teacher: the frozen teacher, if there is one.
        students: the students that are about to be trained.
        train: the training images.
        task: defines the samples of an image.
        bank: the teacher's bank if a method needs one, which saves a pass of the network.
        precision: precision of the network, "fp32" or "bf16".
    """
    if teacher is None or task.name != "classification" or not any(one.method.needs_teacher for one in students):
        return
    if not isinstance(teacher, Predictions) and not teacher.mean.any() and bool((teacher.std == 1).all()):
        runtime.notice(
            f"the teacher {teacher.name} gets images in [0, 1] that are not normalised; if it was trained on "
            "normalised ones, give their mean and std to models.create or models.wrap, which made it",
            once=f"images of the teacher {teacher.name}",
        )
    labels = train.labels.cpu()
    known = (labels >= 0).nonzero().squeeze(1)
    if not len(known) or students[0].common is not None:  # or the teacher has other classes
        return
    chosen = known[torch.randperm(len(known), generator=runtime.generator("teacher check"))[:IMAGES]].sort().values
    some = train.subset(chosen)
    if isinstance(teacher, Predictions):
        logits = teacher.of(some.index)
    elif bank is not None and bool(bank.filled.all()):
        logits = bank.logits[bank.rows(some.index)]
    else:
        logits = task.bank_samples(teacher, some, precision=precision).logits
    right = (logits.argmax(1) == some.labels).double().mean().item()
    share = labels[known].bincount().max().item() / len(known)  # of the most frequent class
    if right < 1 and right <= share + 2 * math.sqrt(share * (1 - share) / len(some)):
        runtime.notice(
            f"the teacher {teacher.name} predicts {right:.0%} of {len(some)} training images rightly, which is no "
            f"better than guessing, as {share:.0%} are of the most frequent class; check its weights, the order of its "
            "classes and the normalisation of its images"
        )
