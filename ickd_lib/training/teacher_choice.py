"""Chooses what provides the teacher's samples in a training, and makes the teacher's bank of in-context samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ickd_lib import models, runtime
from ickd_lib.data import Images, StreamedImages
from ickd_lib.data.crops import VIEWS
from ickd_lib.memory import Faiss, MemoryBank, require_fit
from ickd_lib.methods import Method
from ickd_lib.models import Network
from ickd_lib.tasks import Task
from ickd_lib.training.in_context import TeacherBank
from ickd_lib.training.predictions import Predictions
from ickd_lib.training.state import TrainingState
from ickd_lib.training.streamed_cache import StreamedTeacherCache
from ickd_lib.training.teacher_cache import AHEAD, TeacherCache
from ickd_lib.training.teacher_source import TeacherPass, TeacherPredictions, TeacherSource


@dataclass(frozen=True)
class TeacherNeeds:
    """What the methods of some students need of the teacher in each step.

    outputs: its outputs for the views of the batch.
    features: its features of them.
    maps: its feature maps of them.
    strong: its outputs for strongly augmented views.
    """

    outputs: bool
    features: bool
    maps: bool
    strong: bool

    @classmethod
    def of(cls, methods: Sequence[Method]) -> TeacherNeeds:
        """Return what any of the methods needs."""
        searched = any(spec.view_features for method in methods for spec in method.retrievals)
        return cls(
            outputs=searched or any("teacher" in method.needs for method in methods),
            features=searched or any("features" in method.needs for method in methods),
            maps=any({"maps", "teacher"} <= method.needs for method in methods),  # and not the student's alone
            strong=any("strong" in method.needs for method in methods),
        )

    def fit_cache(self, train: Images) -> bool:
        """Return whether a cache can provide all of it: no maps, and no augmentation beyond crop and flip."""
        return not self.strong and not self.maps and train.augment == "crop"

    def cacheable(self, train: Images) -> bool:
        """Return whether a cache is of use: it can provide all of it, and the views are numbered. If not, print why."""
        reason = ""
        if train.views >= VIEWS:
            reason = "each epoch draws new views; give a number of views (--views)"
        elif self.outputs and (self.maps or self.strong):
            reason = "a method needs the teacher's feature maps, or its outputs for strongly augmented views"
        elif self.outputs and not self.fit_cache(train):
            reason = f"it is for images that are only cropped and mirrored, and these are augmented by {train.augment}"
        if reason:
            runtime.notice(f"the teacher cache is not used, because {reason}")
        return self.outputs and not reason


def folds(teacher: Network, train: Images, task: Task, precision: str) -> bool:
    """Return whether a folded copy of the teacher (`models.folded`) can be evaluated in its place."""
    return precision == "bf16" and task.network == "classification" and models.folded(teacher, train.size) is not None


def teacher_source(
    needs: TeacherNeeds,
    train: Images,
    teacher: Network | None,
    task: Task,
    numerics: dict[str, Any],
    *,
    folder: str | Path | None,
    gigabytes: float,
    batch_size: int,
) -> TeacherSource | None:
    """Return what provides the teacher's samples: a forward pass, the cache or predictions; None if none are needed."""
    if teacher is None or not needs.outputs:
        return None
    if isinstance(teacher, Predictions):
        return TeacherPredictions(teacher)
    precision = numerics["precision"]
    if not numerics["teacher_cache"]:
        evaluated = models.folded(teacher, train.size) if numerics.get("teacher_folded") else teacher
        return TeacherPass(task, evaluated or teacher, maps=needs.maps, precision=precision)
    given: dict[str, Any] = {
        "features": needs.features,
        "precision": precision,
        "folder": folder,
        "gigabytes": gigabytes,
        "top": numerics.get("teacher_cache_top", 0),
    }
    if isinstance(train, StreamedImages):
        return StreamedTeacherCache(teacher, train, **given)
    return TeacherCache(teacher, train, ahead=(AHEAD[train.index.device.type] + 1) * batch_size, **given)


def teacher_bank(
    bank: MemoryBank | None,
    waiting: Sequence[TrainingState],
    train: Images,
    teacher: Network | None,
    task: Task,
    precision: str,
    search: str | Faiss,
) -> TeacherBank | None:
    """Return the teacher's bank with the in-context samples of the students; None if no student needs it."""
    if not any(state.learner.method.needs_bank for state in waiting):
        return None
    assert teacher is not None
    bank = bank.to(train.index.device) if bank else MemoryBank.build(teacher, train, task=task, precision=precision)
    require_fit(bank, train, teacher, task)
    unlabelled = bool(train.unlabelled)
    keys = task.keys(train)[0]
    return TeacherBank(bank, waiting, keys, allow_missing=task.allow_missing, search=search, unlabelled=unlabelled)
