"""Teachers that are trained once and kept, and networks that are loaded from run folders."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from ickd_lib import models, runtime
from ickd_lib.data import Images, Splits
from ickd_lib.models import Network
from ickd_lib.models.registered import REGISTRY
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked
from ickd_lib.tasks import Classification, Task
from ickd_lib.training.distillation import check_options, distill
from ickd_lib.training.predictions import load_predictions
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.students import Student

PRETRAINED = "pretrained"  # in place of a checkpoint: the weights that the network's name asks its library for


@checked
def pretrain(
    name: str,
    splits: Splits,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    weights: str | Path = "",
    runs: str | Path = "runs",
    device: str | torch.device = "auto",
    **options: Any,
) -> Network:
    """Return a teacher, which is trained with the task's own loss and kept in `runs`/teachers, or loaded from there.

    Args:
        name: a model's name; or a file of a network (see `models.from_file`) or of predictions
            (`load_predictions`), whose network is not trained and has the classes
            of the data, in the same order.
        splits: the data to train on; the network's `trained_on` records which data and how many labels.
        recipe: as for `distill`.
        seed: seed of the initialisation and of the order of the data.
        weights: a checkpoint to load instead of training (see `models.load_weights`); or "pretrained" for the weights
            that are part of the name, as in "torchvision/resnet34(pretrained='IMAGENET1K_V1')". They were trained on
            the classes of ImageNet in the order of the names of their folders, which must be those of the data.
        runs: the folder of all runs.
        device: the device on which the network is trained and returned.
        options: further arguments of `distill`.
    Returns:
        The network in evaluation mode.
    Raises:
        InputError: an argument cannot work, the weights cannot be loaded, or "pretrained" weights have another number
            of classes than the data.
    """
    check_options(options, "pretrain")
    runtime.runs_folder(runs)
    if runtime.parse_call(name, "model", "resnet8")[0].endswith(".csv"):
        if weights:
            raise InputError(f"{name} is a file of predictions, which has no weights; leave out {weights}")
        return load_predictions(name, splits).to(runtime.device(device))
    if weights or models.is_file(name):
        train = splits.train
        if models.is_file(name):
            network = models.from_file(name, num_classes=len(train.classes), image_size=train.size)
            if weights:
                network = models.load_weights(network, weights)
            else:
                runtime.notice(f"the teacher {name} has the weights with which it is made; others can be given")
        else:
            network = _loaded(name, train.spec, weights)
        network.classes = splits.train.classes
        return network.to(runtime.device(device))
    recipe = recipe or Recipe(**(options.get("task") or Classification()).recipe)
    train = splits.train
    synchronised = ["sync_batchnorm"] if options.get("sync_batchnorm") else []
    augmentation = [train.augment, *train.recorded_crop.items()]
    mark = runtime.fingerprint(name, dataclasses.asdict(recipe), seed, train.fingerprint, *augmentation, *synchronised)
    title = re.sub(r"\W+", "-", f"{train.name.split('/')[0]} {name}").strip("-_")[:100]
    title = f"{runtime.shortened(title, 140)}-{mark[:8]}"
    run = runtime.Run(Path(runs) / "teachers" / title)
    if run.exists() and (recorded := run.config.get("numerics", {}).get("precision")):
        if options.get("precision", "auto") not in ("auto", recorded):
            runtime.notice(f"the teacher {run.folder} was trained in {recorded}, and is used as it is")
        options["precision"] = "auto"
    if options.get("progress", True) is True:
        options["progress"] = f"teacher {name}"
    with _left_out(name, run.summary is not None):
        return distill(
            [Student(name, "ce", seed, title)],
            splits,
            recipe=recipe,
            data_seed=seed,
            device=device,
            runs=Path(runs) / "teachers",
            **options | {"evaluate_every": max(1, recipe.epochs // 10)},  # equal for every caller, so that all find it
        )[title].network


def load(folder: str | Path, *, device: str | torch.device = "auto") -> Network:
    """Return the trained network of a finished run, in evaluation mode.

    Args:
        folder: the run folder.
        device: the device of the network.
    Raises:
        InputError: there is no finished run, or its network is not one that `models.create` makes.
    """
    with runtime.complete(folder):
        run = runtime.Run(folder)
        settings, weights = run.settings, run.folder / "student.safetensors"
        if not weights.is_file():
            run.require_finished()
        origin, data = settings["student"], settings["data"]
        if of_own_network(settings):
            raise InputError(
                f"{folder} is the run of a network of your own; load {folder}/student.safetensors into it, or, if it "
                "was trained by a name (models.register), import the module that registers the name"
            )
        spec = {key: origin[key] for key in ("num_classes", "mean", "std")}
        name, reused, trained_on = origin["network"], origin.get("reused"), (data["name"], data["images"])
        classes = tuple(data.get("classes", ()))
        if not all(isinstance(number, (int, float)) for number in (*spec["mean"], *spec["std"], spec["num_classes"])):
            raise TypeError("the mean, the standard deviation or the number of classes is not a number")
        if not all(isinstance(text, str) for text in (name, *classes)):
            raise TypeError("the name of the network or of a class is not a text")
    network = _loaded(name, spec, weights, reused)
    network.classes = classes
    network.trained_on = dict(zip(("data", "labels"), trained_on, strict=True))
    return network.to(runtime.device(device))


def of_own_network(settings: dict[str, Any]) -> bool:
    """Return whether the settings of a run are those of a network of the user's own, which `load` cannot build."""
    origin = settings["student"]
    return "mean" not in origin or ("shapes" in origin and origin["network"].partition("(")[0] not in REGISTRY)


def _loaded(name: str, spec: dict[str, Any], weights: str | Path, reused: dict[str, Any] | None = None) -> Network:
    """Create a network, with another one's classifier if it has that (`models.Reused`), and load its weights."""
    # The initial weights are overwritten; torch's global generator stays as it was.
    with runtime.seeded(), _left_out(name, weights != PRETRAINED):
        network = models.create(name, **spec)
        if reused:
            network = models.Reused(network, **reused)
    if weights != PRETRAINED:
        models.load_weights(network, weights)
        network.trained_on = {"weights": Path(weights).name}
    elif not network.trained_on:
        raise InputError(
            f"{name} has no pretrained weights for {network.num_classes} classes; name some that have, as in "
            "torchvision/resnet34(pretrained='IMAGENET1K_V1') for the 1000 classes of ImageNet, or give a checkpoint"
        )
    return network.eval()


def _left_out(name: str, replaced: bool) -> contextlib.AbstractContextManager[None]:
    """Leave out the pretrained weights in a network's name, which may need a download, if others replace them."""
    return models.without_weights() if replaced and "pretrained" in name else contextlib.nullcontext()


def evaluate(
    network: Network,
    images: Images,
    *,
    teacher: Network | None = None,
    task: Task | None = None,
    precision: str = "auto",
) -> dict[str, float]:
    """Return the task's metrics of a network on images, and its agreement with a teacher if one is given.

    Args:
        network: the network, on the images' device.
        images: the images.
        teacher: a network with the same classes, on the same device.
        task: defines the metrics; by default classification.
        precision: "auto", "fp32" or "bf16".
    Raises:
        InputError: a network has other classes than the images.
    """
    task = task or Classification()
    task.check(images)
    for one in (network, teacher) if teacher else (network,):
        task.check_network(one)
        _same_classes(one, images.classes, images.name)
    reference = task.bank_samples(teacher, images, precision=precision) if teacher else None
    return task.metrics(network, images, teacher=reference, precision=precision)


def _same_classes(network: Network, classes: tuple[str, ...], name: str) -> None:
    """Raise InputError if a network's logits are not those of the classes."""
    if network.num_classes != len(classes) or network.classes not in ((), classes):
        known = ", ".join(network.classes[:5]) or "of unknown names"
        raise InputError(
            f"{network.name} has {network.num_classes} classes ({known}, …), but {name} has {len(classes)} "
            f"({', '.join(classes[:5])}, …); evaluate it on images of its own classes"
        )
