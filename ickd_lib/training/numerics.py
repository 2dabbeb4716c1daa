"""The numerics of a training: what changes the rounding of its results, beside its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Task
from ickd_lib.training import precision_benchmark
from ickd_lib.training.state import TrainingState
from ickd_lib.training.teacher_choice import TeacherNeeds, folds


def recorded_numerics(runs: Sequence[runtime.Run], device: torch.device, bank_precision: str) -> dict[str, Any] | None:
    """Return the numerics with which unfinished runs were started; None if all runs are new.

    Args:
        runs: the run folders of the students that are not finished.
        device: the device of the training.
        bank_precision: the precision in which a given memory bank was computed; "" if there is none, or if it is
            not known.
    Raises:
        InputError: the runs were started on another kind of device, have different numerics, or had a bank of another
            precision.
    """
    recorded = [run.config["numerics"] for run in runs if run.exists()]
    if not recorded:
        return None
    first = recorded[0]
    for other in recorded:
        if other["device"].split(":")[0] != device.type:
            raise InputError(f"an unfinished run was started on {other['device']}, not {device}; resume it there")
        if {**other, "precision_benchmark": None} != {**first, "precision_benchmark": None}:
            raise InputError(f"unfinished runs differ in their numerics ({other}, {first}); resume each alone")
    before = first.get("bank_precision", first["precision"])
    if bank_precision not in ("", before):
        raise InputError(
            f"an unfinished run had a memory bank that was computed in {before}, not {bank_precision}; give the "
            f"precision {before}, or build the bank in it"
        )
    return {**first, "device": str(device)}


def new_numerics(
    states: Sequence[TrainingState],
    train: Images,
    teacher: Network | None,
    task: Task,
    *,
    needs: TeacherNeeds,
    device: torch.device,
    precision: str,
    bank_precision: str,
    cached: int | None,
    capture: bool,
) -> dict[str, Any]:
    """Return the numerics of new runs.

    Args:
        states: the students.
        train, teacher, task: what they are trained with.
        needs: what their methods need of the teacher.
        device, precision: as requested; see `distill`.
        bank_precision: as in `recorded_numerics`.
        cached: the number of logits of each output that a teacher cache stores, 0 for all; None without a cache.
        capture: whether to capture steps where that is possible.
    """
    if bank_precision and precision == "auto" and device.type == "cpu":
        precision = bank_precision  # instead of a measurement, so that both are the same
    kept = cached is not None and task.cacheable and teacher is not None and needs.cacheable(train)
    steps, network = states[0].recipe.epochs * states[0].steps, states[0].learner.network
    measured = teacher if needs.outputs and not kept else None
    numerics: dict[str, Any] = {
        "device": str(device),
        **precision_benchmark.choose(precision, steps, network, measured, train, task),
        "threads": runtime.free_threads() if device.type == "cpu" else torch.get_num_threads(),
        "teacher_cache": kept,
        "captured": capture and device.type == "cuda" and task.capturable and runtime.world() == 1,
    }
    if kept and cached:
        numerics["teacher_cache_top"] = cached
    if teacher and needs.outputs and not kept and folds(teacher, train, task, numerics["precision"]):
        numerics["teacher_folded"] = True
    if bank_precision not in ("", numerics["precision"]):
        numerics["bank_precision"] = bank_precision
    return numerics
