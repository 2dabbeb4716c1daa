"""Comparisons of methods: over seeds, and by the time of a training step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ickd_lib import models, runtime
from ickd_lib.data import Sampler, Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import create
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.tasks import Task
from ickd_lib.training.distillation import distill
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History
from ickd_lib.training.students import Student


def compare(
    methods: Sequence[str],
    splits: Splits,
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    task: Task | None = None,
    peers: Sequence[str] = (),
    seeds: int | Sequence[int] = 3,
    runs: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    **options: Any,
) -> dict[str, list[History]]:
    """Train one student for each method and seed. The methods of a seed share its batches and the teacher's pass.

    Args:
        methods: names that `methods.create` accepts.
        splits: the data.
        student: a model's name.
        teacher, bank, task: as for `distill`.
        peers: networks that are trained beside the student if a method needs peers; see `peer_group`.
        seeds: number of seeds, or the seeds. A seed determines both the initialisation and the order of the data.
        runs, device, precision: as for `distill`.
        options: further arguments of `distill`.
    Returns:
        For each method its histories, one per seed: those of the student, not of its peers.
    Raises:
        InputError: no method is given, or `distill` raises it.
        Diverged: a method diverged with some seed. All others are trained to the end first; the exception's `histories`
            are the histories of these, in the form of the result.
    """
    if not methods:
        raise InputError("no method to compare; name some, such as ce kd ickd")
    device = runtime.device(device)
    if bank is None and teacher is not None and any(create(method).needs_bank for method in methods):
        images = splits.train.to(device)
        bank = MemoryBank.build(models.frozen(teacher, device), images, task=task, precision=precision)
    found: dict[str, list[History]] = {method: [] for method in methods}
    failed = []
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        groups = [peer_group(student, method, seed, peers) for method in methods]
        try:
            histories = distill(
                [member for group in groups for member in group],
                splits,
                teacher=teacher,
                bank=bank,
                task=task,
                data_seed=seed,
                runs=runs,
                device=device,
                precision=precision,
                **options,
            )
        except Diverged as error:
            failed.append(str(error))
            histories = error.histories
        trained = {history.position: history for history in histories.values()}
        start = 0
        for method, group in zip(methods, groups, strict=True):
            if start in trained:
                found[method].append(trained[start])
            start += len(group)
    if failed:
        raise Diverged("; ".join(failed), found)
    return found


def peer_group(network: str, method: str, seed: int = 0, peers: Sequence[str] = ()) -> list[Student]:
    """Return a student for `distill`, followed by its peers, with the same method, if the method needs peers.

    Args:
        network: name of the student's model.
        method: name of a method.
        seed: seed of the student; peer i, counted from 1, has the seed `seed` + 1000 i.
        peers: names of the peers' models; by default one peer with the student's model.
    """
    if "peers" not in create(method).needs:
        return [Student(network, method, seed)]
    members = enumerate([network, *(peers or [network])])
    return [Student(peer, method, seed + 1000 * i, peer_group=f"{method} seed {seed}") for i, peer in members]


def step_seconds(
    methods: Sequence[str],
    splits: Splits,
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    task: Task | None = None,
    batch_size: int = 64,
    steps: int = 8,
    rounds: int = 3,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> dict[str, float]:
    """Measure the time of a training step of each method: the median over rounds that alternate between the methods.

    Args:
        methods, splits, student, teacher, bank, task: as for `compare`.
        batch_size: number of images per step.
        steps: number of steps in an epoch. A measurement takes two epochs, so that two phases of equal length have the
            same weight.
        rounds: number of measurements of each method, after a first one that is discarded.
        device, precision: as for `distill`.
    Returns:
        For each method, seconds per step and student, including the teacher's forward pass and the retrieval.
    """
    device = runtime.device(device)
    splits = splits.to(device)
    train, test = splits.train, splits.test
    few = splits._replace(train=train.subset(torch.arange(steps * batch_size) % len(train)))  # full batches only
    few = few._replace(val=splits.val.subset(torch.arange(0)), test=test.subset(torch.arange(min(len(test), 64))))
    if bank is None and teacher is not None:
        bank = MemoryBank.build(models.frozen(teacher, device), train, task=task, precision=precision)
    recipe = Recipe(epochs=2, batch_size=batch_size, lr=0.01, schedule="cosine")
    found: dict[str, list[float]] = {method: [] for method in methods}
    for _round in range(rounds + 1):
        for method in methods:
            histories = distill(
                peer_group(student, method),
                few,
                teacher=teacher,
                bank=bank,
                task=task,
                recipe=recipe,
                device=device,
                precision=precision,
                evaluate_every=2,
                progress=False,
            )
            seconds = next(iter(histories.values())).epochs[-1]["seconds"] / len(histories)
            found[method].append(seconds / (2 * Sampler(few.train).steps(batch_size)))
    return {method: statistics.median(seconds[1:]) for method, seconds in found.items()}
