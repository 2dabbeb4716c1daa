"""The networks that a page describes: which runs they are from, and their outputs for the evaluation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_lib import runs, training
from ickd_lib.data import Images, Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runs.seeds import method_of, score, task_of
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification
from ickd_lib.training.teachers import of_own_network

Row = dict[str, Any]  # a row of `runs.finished_rows`
NO_VAL = "the runs were evaluated on images held out of train; give the data with these, by --val as in the training"
MOST = 6  # largest number of students that are evaluated


class Group(NamedTuple):
    """What the runs that a page describes have in common.

    dataset, task: their names.
    held_out: whether images were held out of train, on which the runs are compared.
    classes: the names of the classes; empty for a run of an earlier version.
    """

    dataset: str
    task: str
    held_out: bool
    classes: tuple[str, ...]


class Outputs(NamedTuple):
    """The outputs of a network for N images: its name, logits [N, C] and features [N, D], on the CPU."""

    name: str
    logits: Tensor
    features: Tensor

    @property
    def predicted(self) -> Tensor:
        """The predicted classes, shape [N]."""
        return self.logits.argmax(1)


class Evaluated(NamedTuple):
    """Everything about networks that needs the images.

    images: the evaluation images, on the CPU.
    train: the training images, which are the rows of the bank.
    students: the outputs of the students, the best first.
    teacher: the outputs of the teacher; None if there is none, or its classes are others.
    bank: the teacher's memory bank of the training images; None if there is none.
    queries: the teacher's features of the evaluation images, shape [N, D]; None without a bank.
    no_bank: why there is no bank.
    """

    images: Images
    train: Images
    students: tuple[Outputs, ...]
    teacher: Outputs | None = None
    bank: MemoryBank | None = None
    queries: Tensor | None = None
    no_bank: str = ""


def without_teachers(rows: Sequence[Row], baseline: str = "") -> list[Row]:
    """Return the rows without those of the teachers of other rows, because a page describes a teacher as such.

    A teacher with the network of its students stays, because it can also be their baseline.

    Args:
        rows: rows of `runs.finished_rows`.
        baseline: a method by its name in tables, whose runs stay.
    """
    students: dict[tuple[str, str], set[str]] = {}  # the networks of the students, by name and identity of the teacher
    for row in rows:
        if teacher := row["config"]["settings"].get("teacher"):
            students.setdefault((teacher["name"], teacher["fingerprint"]), set()).add(row["network"])

    def teaches(row: Row) -> bool:
        found = {mark: of for (name, mark), of in students.items() if name == row["network"] and name not in of}
        if not found or not row["folder"] or method_of(row) == baseline:
            return False
        try:
            return training.load(row["folder"], device="cpu").identity in found
        except InputError:  # its weights are missing or damaged
            return False

    return [row for row in rows if not teaches(row)]


def group_of(row: Row) -> Group:
    """Return the group of a run."""
    task, classes = task_of(row), row["config"]["settings"]["data"].get("classes") or ()
    return Group(row["dataset"], task.name, f"val_{task.primary}" in row, tuple(classes))


def described(rows: Sequence[Row], baseline: str = "") -> dict[str, Row]:
    """Choose the runs whose networks are described.

    They are runs of one `Group`, that with the most runs: of each method and setting the run with the lowest seed, for
    at most MOST of these.

    Args:
        rows: rows of finished runs.
        baseline: a method by its name in tables, of which a run is chosen if there is one.
    Returns:
        The runs by name, the ones with the highest means over the seeds first.
    """
    alike: dict[Group, list[Row]] = {}
    for row in rows:
        alike.setdefault(group_of(row), []).append(row)
    named = runs.named(max(alike.values(), key=len))
    ranked = sorted(named, key=lambda name: -sum(map(score, named[name])) / len(named[name]))
    chosen = ranked[:MOST]
    others = [name for name in ranked[MOST:] if method_of(named[name][0][0]) == baseline]
    if others and all(method_of(named[name][0][0]) != baseline for name in chosen):
        chosen[-1] = others[0]
    return {
        name: min((seed[0] for seed in named[name]), key=lambda row: (row["data_seed"], row["seed"])) for name in chosen
    }


def fitting(chosen: dict[str, Row], splits: Splits) -> dict[str, Row]:
    """Return the runs that can be evaluated on the same images.

    These are the runs without images held out of train, and those with as many training images as the data or the same
    ones. The others held out another part, so that they were trained on some of the validation images.

    Args:
        chosen: the runs, from `described`.
        splits: their data.
    Raises:
        InputError: no run is left, or there are no validation images.
    """
    if not group_of(next(iter(chosen.values()))).held_out:
        return chosen
    train = splits.train
    count, mark = len(train) - train.unlabelled, train.fingerprint
    found = {
        name: row for name, row in chosen.items() if row["train_images"] == count or row["identities"]["images"] == mark
    }
    if not found or not len(splits.val):
        raise InputError(NO_VAL)
    return found


def buildable(row: Row) -> bool:
    """Return whether a run has a folder, and a network that `training.load` can build."""
    return bool(row["folder"]) and not of_own_network(row["config"]["settings"])


def images_of(row: Row, splits: Splits) -> Images:
    """Return the validation images if a run held images out of train, otherwise the test images."""
    return splits.val if group_of(row).held_out else splits.test


def evaluate(
    chosen: dict[str, Row], splits: Splits, teacher: Network | None, *, no_teacher: str, precision: str = "auto"
) -> Evaluated:
    """Evaluate the students and the teacher of classification runs, and build the teacher's memory bank.

    Args:
        chosen: the runs, from `fitting`, all with run folders.
        splits: their data. The networks are evaluated on those of `images_of`.
        teacher: the teacher; None for none.
        no_teacher: why there is none.
        precision: "auto", "fp32" or "bf16".
    Raises:
        InputError: a network cannot be loaded, or its classes are not those of the data.
    """
    task, device = Classification(), splits.test.labels.device
    images = images_of(next(iter(chosen.values())), splits)

    def outputs(name: str, network: Network) -> Outputs:
        samples = task.bank_samples(network, images, precision=precision)
        return Outputs(name, samples.logits.float().cpu(), samples.features.float().cpu())

    students = []
    for name, row in chosen.items():
        network = training.load(row["folder"], device=str(device))
        if network.classes and network.classes != images.classes:
            raise InputError(f"{images.name} has other classes than {row['folder']}; give the data of this run")
        students.append(outputs(name, network))
    evaluated = Evaluated(images.to("cpu"), splits.train.to("cpu"), tuple(students), no_bank=no_teacher)
    if teacher is None:
        return evaluated
    teacher = teacher.to(device)
    seen = outputs("teacher", teacher)
    if (teacher.classes or images.classes) == images.classes:
        evaluated = evaluated._replace(teacher=seen)
    try:
        bank = MemoryBank.build(teacher, splits.train, precision=precision)
    except InputError as error:
        return evaluated._replace(no_bank=str(error))
    return evaluated._replace(bank=bank.to("cpu"), queries=seen.features)


def differing(found: Evaluated, chosen: dict[str, Row]) -> list[str]:
    """Return a sentence for each student whose accuracy on these images is not the one that its run recorded."""
    lines = []
    labels = found.images.labels
    key = "val_accuracy" if "val_accuracy" in next(iter(chosen.values())) else "accuracy"
    for student, row in zip(found.students, chosen.values(), strict=True):
        measured = (student.predicted == labels).double().mean().item()
        if abs(measured - row[key]) > 2 / len(labels):
            lines.append(
                f"{student.name} classifies {measured:.1%} of these images correctly, but its run recorded "
                f"{row[key]:.1%}: these may be other images than those of the run."
            )
    return lines


def most_confident(outputs: Outputs, wanted: Tensor, most: int) -> list[int]:
    """Return the positions of the images for which `wanted` [N] holds, by their largest probability, at most `most`."""
    confidence = outputs.logits.softmax(1).amax(1)
    ranked = torch.where(wanted, confidence, -1.0).argsort(descending=True, stable=True)
    return ranked[: min(most, int(wanted.sum()))].tolist()
