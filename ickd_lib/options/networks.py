"""Checks of the networks that the options name, before anything is trained."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from ickd_lib import data, models, runtime
from ickd_lib.runtime import InputError

OF_TEACHER = ("teacher_weights", "teacher_classes", "teacher_epochs")  # options about a teacher that is not a run


def check_networks(given: argparse.Namespace, splits: data.Splits | None = None) -> None:
    """Raise InputError if the teacher is no run and no model, or, with the data, the student or a peer is no model.

    A teacher may be trained for hours before the student is created.
    """
    library, slash, _ = given.teacher.partition("(")[0].partition("/")
    own = models.is_file(given.teacher) or ".csv" in given.teacher
    path = Path(given.teacher)
    run = (path / "config.json").is_file()
    named = slash and not own and not difflib.get_close_matches(library.lower(), models.LIBRARIES, 1)
    if given.teacher and not run and (named or path.is_dir()):
        what = "is not the folder of a run" if path.exists() else "does not exist"
        raise InputError(
            f"--teacher {given.teacher}: this {what}; name the folder of a run, or a model, as in resnet20 or "
            "torchvision/resnet34"
        )
    others = ", ".join("--" + name.replace("_", "-") for name in OF_TEACHER if getattr(given, name, None))
    if others and not given.teacher:
        raise InputError(f"{others}: no --teacher is named; name it, or leave this out")
    if others and run:
        raise InputError(f"{others}: {given.teacher} is a run, which has its own; leave this out")
    if given.teacher and splits:
        with models.without_weights(), runtime.seeded():
            for name in [given.student, *given.peers]:
                if not models.is_file(name):
                    models.create(name, **splits.train.spec)
