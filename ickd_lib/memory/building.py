"""The building of a memory bank from a teacher and images: at once, or in parts for a bank in half precision."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import models, runtime
from ickd_lib.data.loader import same_workers
from ickd_lib.memory import files
from ickd_lib.memory.rows import TENSORS
from ickd_lib.memory.source import known_labels, predicted, require_task, source_of, written
from ickd_lib.runtime import InputError
from ickd_lib.runtime.distributed import wait_for_all
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images

PART = 2048  # number of samples whose outputs are held in float32 at once while a bank in half precision is built


def build(
    teacher: models.Network,
    images: Images,
    *,
    labels: str | Tensor,
    task: Task | None,
    precision: str,
    half: bool,
    path: str | Path | None,
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Return the arguments of `MemoryBank` for its method `build`, which explains the arguments."""
    task = task or Classification()
    require_task(images, teacher, task)
    if path is not None and not half:
        raise InputError("path is for a bank in half precision, which is written in parts; give half=True, or use save")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold} is a probability; give a number from 0 to 1")
    if threshold and half:
        raise InputError("threshold is for a bank that is not in half precision; leave one of the two out")
    if half:
        return _in_parts(teacher, images, labels, task, precision, path)
    samples = task.bank_samples(teacher, images, precision=precision)
    known, mark = known_labels(samples.key, samples.logits.shape[1], images, teacher, labels, task)
    order = samples.key.argsort()
    if threshold:
        mark = mark | {"threshold": str(threshold)}
    return {
        "features": samples.features[order],
        "logits": samples.logits[order],
        "labels": predicted(samples.labels, samples.logits, known)[order],
        "index": samples.key[order],
        "written": written(samples.logits, known, threshold)[order] if threshold else None,
        "classes": task.outputs(images.classes),
        "source": source_of(images, teacher) | mark,
    }


def _in_parts(
    teacher: models.Network,
    images: Images,
    labels: str | Tensor,
    task: Task,
    precision: str,
    path: str | Path | None,
) -> dict[str, Any]:
    """Compute the rows in parts, and keep them in half precision: in memory, or in a file that is then mapped."""
    keys, given = task.keys(images)
    order = keys.argsort()
    keys, given = keys[order], given[order]
    tensors = {"index": keys, "labels": given.clone(), "written": torch.zeros_like(keys)}
    writes = path is not None and runtime.rank() == 0  # of several processes, the first one writes the file
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_workers(images))
        for start in range(0, len(keys), PART):
            some = slice(start, start + PART)
            samples = task.bank_samples(teacher, images, keys=keys[some], precision=precision)
            features = samples.features.float()
            part = {"norms": features.norm(dim=1), "features": F.normalize(features, dim=1).half()}
            part["logits"] = samples.logits.half()
            if start == 0:
                known, mark = known_labels(keys, part["logits"].shape[1], images, teacher, labels, task)
                about: dict[str, Any] = {
                    "classes": task.outputs(images.classes),
                    "source": source_of(images, teacher) | mark | {"precision": "half"},
                }
                device = features.device if path is None else torch.device("meta")  # a file needs their sizes only
                tensors |= {
                    name: rows.new_empty(len(keys), *rows.shape[1:], device=device) for name, rows in part.items()
                }
                if path is not None and writes:
                    write = stack.enter_context(files.in_parts(path, tensors, **about))
            tensors["labels"][some] = predicted(given[some], part["logits"], None if known is None else known[some])
            for name, rows in part.items():
                if path is None:
                    tensors[name][some] = rows
                elif writes:
                    write(name, start, rows)
        if writes:
            for name in ("index", "labels", "written"):
                write(name, 0, tensors[name])
    wait_for_all()
    return {**tensors, **about} if path is None else files.read(path, TENSORS, "cpu", mapped=True)
