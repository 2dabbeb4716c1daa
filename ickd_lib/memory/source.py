"""The source of a bank: the data and the teacher that it was computed from, and where its labels are from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ickd_lib import models, runtime
from ickd_lib.memory import files
from ickd_lib.runtime import InputError, choose
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images
    from ickd_lib.memory.bank import MemoryBank

CHECKED = 16  # number of samples whose features are compared with those of a bank of other images
SPREAD = 1000  # number of rows from which the spread of a bank's features is estimated
TOLERANCE = 0.1  # largest mean square difference of the features, as a share of their variance


def source_of(images: Images | None, teacher: models.Network | None) -> dict[str, str]:
    """Return the fingerprints that identify the source of a bank: under "data" and "teacher", where these are given."""
    source = {} if images is None else {"data": images.fingerprint}
    return source if teacher is None else source | {"teacher": teacher.identity}


def require_replaceable(path: Path, images: Images, teacher: models.Network) -> None:
    """Raise InputError if a file is the bank of another teacher or of other images; a damaged bank may be replaced."""
    try:
        source = files.read(path, (), "cpu")["source"]
    except InputError:
        return
    if any(source.get(what) != mark for what, mark in source_of(images, teacher).items()):
        raise InputError(f"{path} is a bank of another teacher or other images; give --out")


def require_task(images: Images, teacher: models.Network, task: Task) -> None:
    """Raise InputError if there is no image, images or teacher are of another task, or the teacher has no features."""
    task.check(images)
    if len(images) == 0:
        raise InputError(f"{images.name} has no image to build a bank from")
    task.check_network(teacher)
    if not teacher.features_dim:
        raise InputError(
            f"{teacher.name} has no features, which a memory bank needs; use a method that needs its logits alone, "
            "such as kd, dkd or ckd"
        )


def known_labels(
    keys: Tensor, columns: int, images: Images, teacher: models.Network, labels: str | Tensor, task: Task
) -> tuple[Tensor | None, dict[str, str]]:
    """Return for which rows of a bank the label is known, [N], and an entry for its `source` if others are predicted.

    Args:
        keys: keys of the N rows.
        columns: number of columns of the teacher's logits.
        images, teacher, task: what the bank is built from.
        labels: see `MemoryBank.build`.
    Returns:
        None and an empty dictionary if the labels of all rows are those of the images.
    Raises:
        InputError: labels are predicted, and the teacher's classes are not those of the images.
    """
    if isinstance(labels, str):
        given = choose(labels, ("given", "teacher"), "labels") == "given"
        if given and not images.unlabelled:
            return None, {}
        labels = images.index[images.labels >= 0] if given else keys[:0]
    else:
        given = False
    if columns != len(task.outputs(images.classes)) or (teacher.classes or images.classes) != images.classes:
        raise InputError(f"{teacher.name} predicts other classes than those of {images.name}; give labels='given'")
    chosen = labels.to(keys.device).unique()
    known = torch.isin(keys, chosen)
    if given:  # which labels are known follows from the data
        return known, {}
    mark = f"{int(known.sum())} given ({runtime.fingerprint(chosen)}), the others predicted by the teacher"
    return known, {"labels": mark}


def written(logits: Tensor, known: Tensor | None, threshold: float) -> Tensor:
    """Return 0 for each row [N] whose label is known or predicted with this probability, and -1 for the others."""
    sure = logits.float().softmax(1).max(1).values >= threshold
    return torch.where(sure if known is None else sure | known, 0, -1)


def predicted(labels: Tensor, logits: Tensor, known: Tensor | None) -> Tensor:
    """Return the labels [N] of rows, with the class of the largest logit where they are not known."""
    return labels if known is None else torch.where(known, labels, logits.argmax(1))


def require_fit(
    bank: MemoryBank, images: Images, teacher: models.Network | None = None, task: Task | None = None
) -> None:
    """Check that a bank contains the samples of some images and was computed by a teacher.

    A bank may also have rows of other images. Its fingerprint of the data then differs, so instead the features of a
    few of the images are computed again and compared with their rows.

    Args:
        bank: the memory bank.
        images: the images, all of whose samples the bank must contain.
        teacher: the network; None accepts a bank of any network, and of other images with the same keys and labels.
        task: defines the samples of an image; by default classification.
    Raises:
        InputError: the bank has other classes, lacks samples, has other labels, or was computed by another teacher or
            from other images.
    """
    task = task or Classification()
    keys, labels = task.keys(images)
    rows = bank.rows(keys)
    other = f"the bank is of another data set than {images.name}; build it from this one"
    if bank.classes != task.outputs(images.classes) or bool((rows < 0).any()):
        raise InputError(other)
    if wrong := int(((bank.labels[rows] != labels) & (labels >= 0)).sum()):
        if "labels" in bank.source:
            raise InputError(
                f"{wrong} samples of {images.name} have another label in the bank, where it was predicted; build it "
                "with labels=KEYS, the keys of all samples whose labels are known"
            )
        raise InputError(other)
    if teacher is None:
        return
    mark = bank.source.get("teacher", teacher.identity)
    if bank.features.shape[1] != teacher.features_dim or mark != teacher.identity:
        raise InputError(f"the bank was computed by another teacher than this {teacher.name}; build it with this one")
    same = bank.source.get("data", images.fingerprint if len(bank) == len(keys) else "") == images.fingerprint
    if not same and not _agree(bank, images, teacher, task, keys):
        raise InputError(other)


def _agree(bank: MemoryBank, images: Images, teacher: models.Network, task: Task, keys: Tensor) -> bool:
    """Return whether the bank's features of a few samples are those that the teacher computes, up to rounding."""
    some = keys.unique()[:: max(1, len(keys) // CHECKED)][:CHECKED].contiguous()
    found, rows = task.bank_samples(teacher, images, keys=some), bank.rows(some)
    stored = bank.features[rows].float() * bank.norms[rows, None]
    every = slice(None, None, max(1, len(bank) // SPREAD))
    variance = (bank.features[every].float() * bank.norms[every, None]).var(0).sum()
    return bool((found.features.float() - stored).square().sum(1).mean() <= TOLERANCE * variance)
