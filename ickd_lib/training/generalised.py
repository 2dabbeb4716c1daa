"""Teachers with other classes than the student: label spaces, methods that fit them, and learning of new classes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ickd_lib import models, runtime
from ickd_lib.data import Images, Splits
from ickd_lib.methods import Method
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Precision
from ickd_lib.training.distillation import distill
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.students import Student
from ickd_lib.training.teachers import evaluate


def label_spaces(classes: int) -> dict[str, list[int]]:
    """Choose the classes of three teachers for a student of the second half of the classes.

    Args:
        classes: number of classes of the data set, at least 4.
    Returns:
        "same": the second half, which are the student's classes; "overlapping": the same number of classes, starting
        after the first quarter, so that teacher and student share some; "disjoint": the first half.
    Raises:
        InputError: there are fewer than 4 classes.
    """
    if classes < 4:
        raise InputError(f"a data set of {classes} classes cannot be divided into label spaces; use one of 4 or more")
    half, quarter = classes // 2, classes // 4
    return {
        "same": list(range(half, classes)),
        "overlapping": list(range(quarter, quarter + half)),
        "disjoint": list(range(half)),
    }


def applicable(methods: Mapping[str, Method], classes: Sequence[Any], teacher_classes: Sequence[Any]) -> list[str]:
    """Return the names of the methods that work with a teacher of these classes (`Method.label_space`).

    A method with the label space "shared" needs two common classes, because a softmax over a single one is constant.

    Args:
        methods: the methods by name.
        classes, teacher_classes: the classes of student and teacher, by name or by position.
    """
    spaces = {"same", "shared", "any"}
    if list(classes) != list(teacher_classes):
        common = set(classes) & set(teacher_classes)
        spaces = {"shared", "any"} if len(common) > 1 else {"any"}
    return [name for name, method in methods.items() if not method.needs_teacher or method.label_space in spaces]


def learn_new_classes(
    methods: Sequence[str],
    splits: Splits,
    teacher: Network,
    *,
    labels: int,
    exemplars: int,
    seeds: int,
    recipe: Recipe,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    **options: Any,
) -> dict[str, dict[str, list[float]]]:
    """Learn new classes in one increment with each method: the teacher's classes are old, all others are new.

    The student starts as a copy of the teacher with an output for each new class (`models.extend`). It is trained on
    labelled images of the new classes and on a few exemplars of each old one.

    Args:
        methods: names that `methods.create` accepts.
        splits: images of all classes, the teacher's first.
        teacher: a network of the old classes.
        labels: number of labelled images of the new classes together.
        exemplars: number of labelled images of each old class, 0 or more.
        seeds: number of seeds; a seed determines the initial weights of the new outputs and the order of the data.
        recipe: settings of the training.
        device, precision: as for `distill`.
        options: further arguments of `distill`.
    Returns:
        For each method, the test accuracy on the "old", "new" and "all" classes, one fraction per seed. Predictions are
        always among all classes.
    """
    device, count, known = runtime.device(device), len(splits.train.classes), teacher.num_classes
    old, new = range(known), range(known, count)
    tested = {"old": splits.test.only(old), "new": splits.test.only(new), "all": splits.test}
    tested = {part: images.to(device) for part, images in tested.items()}
    arrived = splits._replace(train=_selected(splits.train, old, new, labels=labels, exemplars=exemplars))
    found: dict[str, dict[str, list[float]]] = {name: {part: [] for part in tested} for name in methods}
    for seed in range(seeds):
        with runtime.seeded(seed):
            start = models.extend(teacher, count)
        histories = distill(
            [Student(copy.deepcopy(start), name, seed) for name in methods],
            arrived,
            teacher=teacher,
            recipe=recipe,
            data_seed=seed,
            evaluate_every=recipe.epochs,
            device=device,
            precision=precision,
            **options,
        )
        trained = zip(methods, histories.values(), strict=True)
        for (name, history), (part, images) in itertools.product(trained, tested.items()):
            found[name][part].append(evaluate(history.network, images, precision=precision)["accuracy"])
    return found


def _selected(train: Images, old: Sequence[int], new: Sequence[int], *, labels: int, exemplars: int) -> Images:
    """Return the training images: `labels` of the new classes, and `exemplars` of each old class."""
    chosen = train.only(new).few(labels).index
    if exemplars:
        chosen = torch.cat([chosen, train.only(old).few(exemplars * len(old)).index])
    return train.subset(torch.isin(train.index, chosen).nonzero().squeeze(1))
