"""The commands `ickd export` and `ickd predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ickd_lib import models, runs, runtime, tasks, training
from ickd_lib.data import Splits
from ickd_lib.export import comparison, predictions, writing
from ickd_lib.export.facts import facts_of, finished_run, shape_of, teacher_of
from ickd_lib.export.opened import NetworkModel, format_of, open_model
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.training.records import differing, evaluated_on


def data_of(run: runtime.Run, given: argparse.Namespace, load: Callable[..., Splits]) -> Splits:
    """Load the data of a run: its training images; its validation images if it had the same; all test images.

    A note states if the training images or the test images are others than those of the run.

    Args:
        run: the run.
        given: the options. They get the task of the run, and its data set, classes, image size and crop if none are
            given and the run recorded them.
        load: loads the data set that the options describe; its arguments are those of `data.load`.
    Raises:
        InputError: the run is damaged, or its data set must be named.
    """
    with runtime.complete(run.folder):
        settings, summary = run.settings, run.summary or {}
        recorded, task = settings["data"], tasks.create(settings.get("task", "classification"))
        evaluation_crop = run.config.get("evaluation_crop")
        title, images, classes = recorded["name"].rpartition("/")[0], int(recorded["images"]), recorded.get("classes")
        augment, held_out = recorded.get("augment", "crop"), f"val_{task.primary}" in summary
        changes: dict[str, Any] = {}
        if recorded.get("unlabelled"):
            changes = {name: recorded[name] for name in ("unlabelled", "unlabelled_share")} | {"labels": images}
    given.task = task.name
    if not given.dataset:
        if ":" in title:
            kind = title.partition(":")[0]
            raise InputError(
                f"{run.folder} does not record the path of its data, {title}; give --dataset {kind}:PATH, and --val if "
                "the training had it"
            )
        given.dataset = title.partition("(")[0]
    if title.endswith(")") and not given.classes:
        given.classes = classes
    if evaluation_crop and ":" in given.dataset:
        height, width = evaluation_crop["size"]
        given.image_size = given.image_size or (height if height == width else 0)
        if evaluation_crop["crop"] == "resized" and given.dataset.startswith("folder:"):
            given.crop = given.crop or "resized"
    if task.name == "classification" and given.flip is None:
        given.flip = recorded.get("flip", True if ":" in given.dataset else None)
    splits = load(**changes)
    if given.task != "classification" and augment != splits.train.augment:
        runtime.notice(
            f"{run.folder} was trained with {augment}, but these data have {splits.train.augment}; give --image-size "
            "as in its training, or the networks are evaluated on images of another size"
        )
    if images < len(splits.train) and not changes:
        splits = splits._replace(train=splits.train.few(images))
    same = splits.train.fingerprint == recorded.get("fingerprint")
    others = [] if same else ["training"]
    others += {"test"} & set(differing(run.config.get("evaluated_on"), evaluated_on(splits)))
    if others:
        runtime.notice(
            f"the {' and '.join(others)} images are not those of {run.folder}; give the options of the data as in its "
            "training, such as --val, --views, --image-size and --crop"
        )
    if len(splits.val) and not (held_out and same):
        runtime.notice("the validation images are not used, because the run was not trained with the same ones")
        splits = splits._replace(val=splits.val.subset(torch.arange(0)))
    return splits


def named_teacher(run: runtime.Run, given: argparse.Namespace, splits: Splits) -> Network | None:
    """Return the teacher that --teacher names (a run folder, a file, or a model's name with --teacher-weights).

    Without --teacher, it is the one that is found beside the run.
    """
    if not given.teacher:
        return teacher_of(run)
    if models.is_file(given.teacher) or given.teacher_weights:
        return training.pretrain(given.teacher, splits, weights=given.teacher_weights, device="cpu")
    return training.load(given.teacher, device="cpu")


def export(given: argparse.Namespace, load: Callable[[], Splits]) -> None:
    """Export the network of a run, and print a table of it, its file and its teacher.

    Args:
        given: the options.
        load: loads the data set that the options describe, when it is called.
    """
    run = finished_run(given.run)
    format_of(given.format, given.out)
    if given.calibration and not given.int8:
        raise InputError("--calibration is about --int8; give it, or leave --calibration out")
    splits = data_of(run, given, load)
    teacher = named_teacher(run, given, splits)
    written = writing.write(
        given.run,
        given.out,
        splits,
        format=given.format,
        preprocess=given.preprocess,
        int8=given.int8,
        calibration=given.calibration,
    )
    facts = written.models["run"].facts
    print(f"{given.out}: input {facts.input}; output {facts.output}", file=sys.stderr)
    if written.difference is not None:
        found = f"largest difference of a probability on {written.images} test images"
        print(f"{found}: {written.difference:.1e} (tolerance {writing.TOLERANCE:.0e})", file=sys.stderr)
    shown = {f"student {facts.network}" if name == "run" else name: one for name, one in written.models.items()}
    seen = []
    if teacher is not None and teacher.classes != facts.classes:
        runtime.notice(f"the teacher {teacher.name} is not in the table, because its classes are others")
    elif teacher is not None:
        beside = facts_of(run, teacher, facts.size, facts.crop, preprocess=given.preprocess)
        shown = {f"teacher {teacher.name}": NetworkModel(teacher, beside), **shown}
        data = run.settings["data"]
        if teacher.trained_on != {"data": data["name"], "labels": data["images"]}:
            seen = [f"teacher {teacher.name}"]  # it may have been trained on the validation images of the student
    usable = writing.of_size(splits.test, torch.arange(len(splits.test)), facts.size)
    if 0 < given.test_images < len(usable):
        drawn = torch.randperm(len(usable), generator=runtime.generator("test images"))[: given.test_images]
        splits = splits._replace(test=splits.test.subset(usable[drawn.sort().values]))
    rows = comparison.compare_models(shown, splits, seen=seen)
    print(comparison.table(rows), end="")
    if given.json:
        runtime.write_json(given.json, rows)


def _unrecorded_shape(run: runtime.Run, given: argparse.Namespace, load: Callable[[], Splits]) -> dict[str, Any]:
    """Return size and crop of the images of a run of an earlier version; empty for one that recorded them."""
    if run.config.get("evaluation_crop"):
        return {}
    with runtime.complete(run.folder):
        title = given.dataset or str(run.settings["data"]["name"])
    if given.image_size:
        resized = "resized" in (given.crop, "resized" if title.startswith("imagenet:") else "")
        return {"size": (given.image_size,) * 2, "crop": "resized" if resized else "fit"}
    return dict(zip(("size", "crop"), shape_of(data_of(run, given, load).test), strict=True))


def predict(given: argparse.Namespace, load: Callable[[], Splits]) -> int:
    """Print the classes of image files; return 1 if one of them cannot be read. The arguments are those of `export`."""
    if given.csv:
        runtime.require_writable(given.csv)
    shape = _unrecorded_shape(finished_run(given.model), given, load) if Path(given.model).is_dir() else {}
    model, named = open_model(given.model, **shape), given.dataset
    other_size = given.image_size and model.facts.size != (given.image_size,) * 2
    if other_size or (given.crop and (given.crop == "resized") != (model.facts.crop == "resized")):
        raise InputError(f"{given.model} records how images are resized; leave out --image-size and --crop")
    bank = MemoryBank.load(given.bank) if given.bank else None
    found = predictions.predict(model, given.images, top=given.top, bank=bank, dataset=named)
    if any(not one.problem for one in found):
        print(predictions.table_of(found))
    if bank is not None:
        kind = "features" if predictions.by_features(model, bank) else "logits"
        print(f"in-context samples: the most similar rows of the bank, by their {kind}", file=sys.stderr)
    if given.csv:
        with runtime.replacing(given.csv) as part:
            part.write_text(runs.csv_of(predictions.rows_of(found)), encoding="utf-8")
    problems = [one.problem for one in found if one.problem]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))
