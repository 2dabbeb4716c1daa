"""What is built on the loop: teachers trained once and kept, methods compared over seeds, runs read back."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ickd_lib import metrics, models, runtime
from ickd_lib.data import Images, Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import create
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.training.loop import distill
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, Student


def pretrain(
    name: str,
    splits: Splits,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    weights: str | Path = "",
    runs: str | Path = "runs",
    device: str = "auto",
    **options: Any,
) -> Network:
    """A teacher: trained with cross-entropy and kept in `runs`/teachers, or, the next time, loaded from there.

    Args:
        name: a model's name.
        splits: what it learns from; the network's `trained_on` tells which data and how many labels.
        recipe: as for `distill`.
        seed: of its initialisation and of the data's order.
        weights: a checkpoint to load instead of training (see `models.load_weights`).
        runs: the folder of all runs.
        device: where it is trained, and returned.
        options: of `distill`.
    Returns:
        The network in evaluation mode.
    """
    where = runtime.device(device)
    if weights:
        network = _loaded(name, splits.train.spec, weights)
        network.classes = splits.train.classes
        network.trained_on = {"weights": Path(weights).name}
        return network.to(where)
    recipe = recipe or Recipe()
    train = splits.train
    mark = runtime.fingerprint(name, dataclasses.asdict(recipe), seed, train.fingerprint, train.augment)
    title = re.sub(r"\W+", "-", f"{train.name.split('/')[0]} {name}").strip("-") + f"-{mark[:8]}"
    return distill(
        [Student(name, "ce", seed, title)],
        splits,
        recipe=recipe,
        data_seed=seed,
        device=device,
        runs=Path(runs) / "teachers",
        **options | {"evaluate_every": max(1, recipe.epochs // 10)},  # whoever asks gets the same teacher
    )[title].network


def compare(
    methods: Sequence[str],
    splits: Splits,
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    peers: Sequence[str] = (),
    seeds: int | Sequence[int] = 3,
    runs: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> dict[str, list[History]]:
    """Train one student a method and seed; all methods of a seed share its batches and the teacher's pass.

    Args:
        methods: as `methods.create` reads them.
        splits: the data.
        student: a model's name.
        teacher, bank: as for `distill`.
        peers: networks that train beside the student where a method learns from peers; see `circle`.
        seeds: how many, or which; a seed sets the initialisation and the data's order alike.
        options: of `distill`.
    Returns:
        For each method its histories, one a seed: the student's, not its peers'.
    """
    if not methods:
        raise InputError("no method to compare; name some, such as ce kd ickd")
    where = runtime.device(device)
    made = [create(method) for method in methods]
    if bank is None and teacher is not None and any(method.needs_bank for method in made):
        bank = MemoryBank.build(teacher.to(where), splits.to(where).train, precision=precision)
    found: dict[str, list[History]] = {method: [] for method in methods}
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        groups = [circle(student, method, seed, peers) for method in methods]
        histories = distill(
            [member for group in groups for member in group],
            splits,
            teacher=teacher,
            bank=bank,
            data_seed=seed,
            runs=runs,
            device=device,
            precision=precision,
            **options,
        )
        trained = list(histories.values())
        for method, group in zip(methods, groups, strict=True):
            found[method].append(trained[0])
            del trained[: len(group)]
    return found


def circle(network: str, method: str, seed: int = 0, peers: Sequence[str] = ()) -> list[Student]:
    """A student for `distill`, and behind it, where its method learns from peers, these with the same method.

    Args:
        peers: their networks; by default one of the student's own kind. The i-th has the seed `seed` + 1000 i.
    """
    if "peers" not in create(method).needs:
        return [Student(network, method, seed)]
    members = enumerate([network, *(peers or [network])])
    return [Student(peer, method, seed + 1000 * i, circle=f"{method} seed {seed}") for i, peer in members]


def step_seconds(
    methods: Sequence[str],
    splits: Splits,
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    batch_size: int = 64,
    steps: int = 8,
    rounds: int = 3,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, float]:
    """What a training step of each method costs by itself: the median over rounds that alternate between methods.

    Args:
        methods, splits, student, teacher, bank: as for `compare`.
        batch_size: images a step.
        steps: a measurement takes twice as many, in two epochs, so that two phases of equal length count alike.
        rounds: measurements of each method, after one that is thrown away.
    Returns:
        Seconds a step of a student, the teacher's pass and the retrieval included, by method. (Of students that learn
        from each other a half, for there are two.)
    """
    where = runtime.device(device)
    splits = splits.to(where)
    train, test = splits.train, splits.test
    few = splits._replace(train=train.subset(torch.arange(steps * batch_size) % len(train)))  # full batches only
    few = few._replace(val=splits.val.subset(torch.arange(0)), test=test.subset(torch.arange(min(len(test), 64))))
    if bank is None and teacher is not None:
        bank = MemoryBank.build(teacher.to(where), train, precision=precision)
    recipe = Recipe(epochs=2, batch_size=batch_size, lr=0.01, schedule="cosine")
    found: dict[str, list[float]] = {method: [] for method in methods}
    for _round in range(rounds + 1):
        for method in methods:
            histories = distill(
                circle(student, method),
                few,
                teacher=teacher,
                bank=bank,
                recipe=recipe,
                device=device,
                precision=precision,
                evaluate_every=2,
                progress=False,
            )
            seconds = next(iter(histories.values())).epochs[-1]["seconds"] / len(histories)
            found[method].append(seconds / (2 * few.train.steps(batch_size)))
    return {method: statistics.median(seconds[1:]) for method, seconds in found.items()}


def load(folder: str | Path, *, device: str = "auto") -> Network:
    """The trained network of a finished run, in evaluation mode."""
    run = runtime.Run(folder)
    origin = run.config["settings"]["student"]
    if "mean" not in origin:
        raise InputError(f"{folder} trained a network of your own; load {folder}/student.safetensors into it")
    spec = {key: origin[key] for key in ("num_classes", "mean", "std")}
    network = _loaded(origin["network"], spec, Path(folder) / "student.safetensors")
    data = run.config["settings"]["data"]
    network.classes = tuple(data.get("classes", ()))
    network.trained_on = {"data": data["name"], "labels": data["images"]}
    return network.to(runtime.device(device))


def _loaded(name: str, spec: dict[str, Any], weights: str | Path) -> Network:
    with runtime.seeded():  # the initial weights are overwritten; torch's global generator stays where it was
        network = models.create(name, **spec)
    return models.load_weights(network, weights).eval()


def _same_classes(network: Network, classes: tuple[str, ...], name: str) -> None:
    """Raise InputError when a network's logits are not those of the classes."""
    if network.num_classes != len(classes) or network.classes not in ((), classes):
        known = ", ".join(network.classes[:5]) or "of unknown names"
        raise InputError(
            f"{network.name} knows {network.num_classes} classes ({known}, …), {name} has {len(classes)} "
            f"({', '.join(classes[:5])}, …); evaluate it on its own"
        )


def evaluate(
    network: Network, images: Images, *, teacher: Network | None = None, precision: str = "auto"
) -> dict[str, float]:
    """`metrics.classification` of a network on images, with its fidelity to a teacher where one is given."""
    for one in (network, teacher) if teacher else (network,):
        _same_classes(one, images.classes, images.name)
    logits = models.predict(network, images, precision=precision).logits
    theirs = models.predict(teacher, images, precision=precision).logits if teacher else None
    return metrics.classification(logits, images.labels, theirs)
