"""Checks of the options of a training, before data are loaded and a teacher is trained."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from ickd_lib import methods, models, runtime, tasks, training
from ickd_lib.options.groups import data_options, recipe_defaults, shown_teacher_options, training_options
from ickd_lib.options.networks import check_networks
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe
from ickd_lib.training.students import check_one_class


def check_training(given: argparse.Namespace, names: Sequence[str], recipe: Recipe) -> None:
    """Check the options of `train` and `compare` that the methods, the recipe or an existing run may not allow.

    Args:
        given: the options.
        names: the methods.
        recipe: the recipe of the students.
    Raises:
        InputError: an option is wrong, or does not fit the others.
    """
    recipe.check_optimizer(tasks.create(given.task).recipe)
    training.check_methods(names, given.peers)
    made = [methods.create(name) for name in names]
    for method in made:
        recipe.phases(method.restarts)
        if given.teacher_classes and given.teacher_classes != given.classes:
            check_one_class(method, given.augment)
    if given.search.lower() != "exact" and not any(spec.approximable for method in made for spec in method.retrievals):
        raise InputError(
            f"--search {given.search} is for a method with nearest negatives from the teacher's bank, such as ickd; "
            "leave it out"
        )
    _check_bank(given, any(method.needs_bank for method in made))
    if name := getattr(given, "name", ""):
        folder = Path(given.runs) / runtime.run_name(name)
        if given.no_resume or not runtime.Run(folder).exists():
            runtime.Run.open(folder, {}, resume=not given.no_resume)


def _check_bank(given: argparse.Namespace, needed: bool) -> None:
    """Check the options of the teacher's memory bank; `needed` is whether a method uses one."""
    if given.threshold:
        if not given.unlabelled or given.bank_images:
            raise InputError("--threshold is for --unlabelled images; give them, without --bank-images")
        if not (given.teacher and needed):
            raise InputError("--threshold needs a method with a memory bank, such as ickd; name one, or leave it out")
    if not given.bank_images:
        if given.bank_labels == "given":
            raise InputError("--bank-labels is about the images of --bank-images; give these, or leave it out")
        return
    if given.unlabelled:
        raise InputError("the bank contains the --unlabelled images already; leave out --bank-images")
    if not (given.teacher and needed):
        raise InputError("--bank-images needs a method with a memory bank, such as ickd, and a teacher; name both")
    if given.bank_images != "all" and not given.bank_images.isdecimal():
        raise InputError(f"--bank-images {given.bank_images} is neither a number nor all")


def check_teach(given: argparse.Namespace) -> None:
    """Raise InputError if an option of `teach` has no effect."""
    if given.task != "classification":
        raise InputError(f"teach fine-tunes classifiers, not networks for {given.task}; leave out --task")
    usual = inspect.signature(training.teach).parameters
    unused = [name for name in ("head_epochs", "lr") if getattr(given, name) != usual[name].default]
    if given.linear_probe and unused:
        names = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise InputError(
            f"{names}: --linear-probe trains only the classifier, with --epochs and --lr-head; leave it out"
        )


def check_bank(given: argparse.Namespace) -> None:
    """Raise InputError if an option of `bank` has no effect, the teacher is no run and no model, or --out is wrong."""
    check_networks(given)
    run = Path(given.teacher, "config.json").is_file()
    if run or given.teacher_weights or models.is_file(given.teacher):
        defaults, why = recipe_defaults(given.task), "is a run, which is" if run else "has weights, which are"
        if names := _changed(given, lambda parser: training_options(parser, defaults)):
            raise InputError(f"{names}: {given.teacher} {why} not trained again; leave this out")
    if given.out:
        runtime.require_writable(given.out)


def _changed(given: argparse.Namespace, add: Callable[[argparse.ArgumentParser], None]) -> str:
    """Return the names of the options that `add` adds to a parser and that differ from their defaults."""
    add(parser := argparse.ArgumentParser(add_help=False))
    changed = [one for one in parser._actions if getattr(given, one.dest) != one.default]
    return ", ".join(one.option_strings[0] for one in changed)


def check_report(given: argparse.Namespace) -> None:
    """Raise InputError if an option of `report` has no effect, or a file cannot be written or is named twice."""
    if given.without_epochs and not given.json:
        raise InputError("--without-epochs is about the file of --json; name one, or leave it out")
    if not given.html and (names := _changed(given, _of_page)):
        raise InputError(f"{names}: this is about the page of --html; name a file for it, or leave this out")
    check_teacher_name(given)
    check_files(given, "out", "json", "html", "figure")


def check_files(given: argparse.Namespace, *names: str) -> None:
    """Raise InputError if a file that one of these options names cannot be written, or is named by two of them."""
    options: dict[Path, str] = {}
    for name in names:
        if path := getattr(given, name):
            runtime.require_writable(path)
            if (other := options.setdefault(Path(path).resolve(), name)) != name:
                raise InputError(f"--{other} and --{name} name the same file, {path}; give each its own")


def _of_page(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` that only the page of --html needs."""
    shown_teacher_options(parser, "--html")
    data_options(parser, of_run=True)


def check_teacher_name(given: argparse.Namespace) -> None:
    """Raise InputError if --teacher of `export` or `report` is no run folder, no file, and a name without weights."""
    if given.teacher_weights and not given.teacher:
        raise InputError("--teacher-weights: no --teacher is named; name it, or leave this out")
    run = (Path(given.teacher) / "config.json").is_file()
    if given.teacher and not (run or given.teacher_weights or models.is_file(given.teacher)):
        raise InputError(
            f"--teacher {given.teacher} is neither a run folder nor a file of a network; a model's name needs "
            "--teacher-weights"
        )
