"""Chooses what provides the teacher's samples in a training, and makes the teacher's bank of in-context samples."""

from __future__ import annotations

from collections.abc import Sequence
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


def cacheable(waiting: Sequence[TrainingState], train: Images) -> bool:
    """Return whether a teacher cache is used: it is possible, all views are numbered, and some student needs it."""
    if train.views >= VIEWS:
        runtime.notice(
            "the teacher cache is not used, because each epoch draws new views; give a number of views (--views)"
        )
        return False
    return _needs_pass(waiting) and fits_cache(waiting, train)


def fits_cache(waiting: Sequence[TrainingState], train: Images) -> bool:
    """Return whether all that the students need of the teacher is in a cache: no maps, and no other augmentation."""
    found = [state.learner.method for state in waiting]
    strong = any("strong" in method.needs for method in found)
    return not strong and not _compares_maps(found) and train.augment == "crop"


def folds(waiting: Sequence[TrainingState], train: Images, teacher: Network | None, task: Task, precision: str) -> bool:
    """Return whether the teacher is evaluated in every step, and a folded copy of it can be (`models.folded`)."""
    if teacher is None or precision != "bf16" or task.network != "classification" or not _needs_pass(waiting):
        return False
    return models.folded(teacher, train.size) is not None


def _compares_maps(found: Sequence[Method]) -> bool:
    """Return whether some method uses maps of the teacher, and not only of the student."""
    return any({"maps", "teacher"} <= method.needs for method in found)


def _needs_pass(waiting: Sequence[TrainingState]) -> bool:
    """Return whether some student needs the teacher's outputs for the views of a batch."""
    found = [state.learner.method for state in waiting]
    return any("teacher" in method.needs or _uses_view_features(method) for method in found)


def _uses_view_features(method: Method) -> bool:
    """Return whether in-context samples are requested that depend on the teacher's features of the views."""
    return any(spec.view_features for spec in method.retrievals)


def teacher_source(
    waiting: Sequence[TrainingState],
    train: Images,
    teacher: Network | None,
    task: Task,
    numerics: dict[str, Any],
    folder: str | Path | None,
    gigabytes: float,
) -> TeacherSource | None:
    """Return what provides the teacher's samples: a forward pass, the cache or predictions; None if none are needed."""
    if teacher is None or not _needs_pass(waiting):
        return None
    if isinstance(teacher, Predictions):
        return TeacherPredictions(teacher)
    found = [state.learner.method for state in waiting]
    needs = frozenset().union(*(method.needs for method in found))
    precision = numerics["precision"]
    if not numerics["teacher_cache"]:
        evaluated = models.folded(teacher, train.size) if numerics.get("teacher_folded") else teacher
        return TeacherPass(task, evaluated or teacher, maps=_compares_maps(found), precision=precision)
    given: dict[str, Any] = {
        "features": "features" in needs or any(_uses_view_features(method) for method in found),
        "precision": precision,
        "folder": folder,
        "gigabytes": gigabytes,
        "top": numerics.get("teacher_cache_top", 0),
    }
    if isinstance(train, StreamedImages):
        return StreamedTeacherCache(teacher, train, **given)
    ahead = (AHEAD[train.index.device.type] + 1) * waiting[0].recipe.batch_size
    return TeacherCache(teacher, train, ahead=ahead, **given)


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
    unlabelled = bool(getattr(train, "unlabelled", 0))
    keys = task.keys(train)[0]
    return TeacherBank(bank, waiting, keys, allow_missing=task.allow_missing, search=search, unlabelled=unlabelled)
