"""What a user of an exported network must know: it is read from the run, and stored in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ickd_lib import runtime, training
from ickd_lib.models import Network
from ickd_lib.runtime import InputError, Run
from ickd_lib.runtime.arguments import checked

TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class Facts:
    """The facts about an exported network, each of which is an entry in the metadata of its file.

    task: "classification" or "segmentation".
    network: the network's name.
    parameters: number of its parameters.
    classes: names of the classes, in the order of the outputs.
    size: height and width of the images in pixels.
    crop: how images of another size are prepared, as by the run's data set: "fit" (resized and cropped at the centre)
        or "resized" (the evaluation crop of `data.crops.ResizedCrop`).
    preprocess: whether the input is uint8 and the output probabilities.
    input, output: type, shape and meaning of input and output.
    run, data, method: the run's folder name, its data and its method.
    mean, std: the normalisation that is part of the network, for images in [0, 1].
    identity: the fingerprint of the network, as in the memory banks that were built with it.
    """

    task: str
    network: str
    parameters: int
    classes: tuple[str, ...]
    size: tuple[int, int]
    crop: str
    preprocess: bool
    input: str
    output: str
    run: str
    data: str
    method: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    identity: str

    def metadata(self) -> dict[str, str]:
        """Return the facts as texts; those that are no texts as JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: str | Path) -> Facts:
        """Return the facts in the metadata of a file.

        Raises:
            InputError: the metadata are not those of a file that `write` made.
        """
        try:
            found: dict[str, Any] = {
                f.name: metadata[f.name] if f.type == "str" else json.loads(metadata[f.name]) for f in fields(cls)
            }
        except (KeyError, ValueError):
            raise InputError(f"{path} has no metadata of ickd export; export the run again") from None
        tuples: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        return cls(**tuples)


@checked
def finished_run(folder: str | Path) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: the folder contains no run, a run that is not finished, or a detector.
    """
    run = Run(folder)
    with runtime.complete(folder):
        task = str(run.settings.get("task", "classification"))
        if not isinstance(run.summary, dict | None):
            raise TypeError("the summary is not a dictionary")
    if task not in TASKS:
        raise InputError(
            f"{folder} is a run of the task {task}, which cannot be exported; name one of {' or '.join(TASKS)}"
        )
    with runtime.complete(folder):
        run.require_finished()
    return run


def facts_of(run: Run, network: Network, size: tuple[int, int], crop: str, *, preprocess: bool = False) -> Facts:
    """Return the facts about a run's network.

    Args:
        run: a finished run.
        network: its network.
        size, crop, preprocess: see `Facts`.
    """
    with runtime.complete(run.folder):
        settings, summary = run.settings, run.summary or {}
        extent = f"{size[0]}, {size[1]}"
        outputs = f"{network.num_classes}" if network.task == "classification" else f"{network.num_classes}, {extent}"
        image = f"[B, 3, {extent}], RGB"
        return Facts(
            task=network.task,
            network=network.name,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            classes=network.classes or tuple(map(str, range(network.num_classes))),  # runs of early versions name none
            size=(size[0], size[1]),
            crop=crop,
            preprocess=preprocess,
            input=f"uint8 {image}, 0 to 255" if preprocess else f"float32 {image}, 0 to 1, not normalised",
            output=f"float32 [B, {outputs}], {'probabilities' if preprocess else 'logits'}",
            run=run.folder.resolve().name,
            data=settings["data"]["name"],
            method=summary.get("method", settings["method"]["name"]),
            mean=_rounded(network.mean),
            std=_rounded(network.std),
            identity=network.identity,
        )


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Return float32 numbers with the nine digits that identify them."""
    return tuple(float(f"{value:.9g}") for value in values.flatten().tolist())


def shape_of(images: Any) -> tuple[tuple[int, int], str]:
    """Return the height and width at which a network is evaluated on a split, and `Facts.crop`.

    Images with class masks may differ in size; their size is then that of the first one.
    """
    recorded = images.evaluation_crop or {"size": images.sizes[0].tolist(), "crop": "fit"}
    height, width = recorded["size"]
    return (height, width), recorded["crop"]


def teacher_of(run: Run) -> Network | None:
    """Return the teacher of a run, on the CPU: the network of a run beside it, or in `teachers` beside it.

    The name and the fingerprint must be those that the run recorded. None if the run has no teacher, or none is found.
    """
    with runtime.complete(run.folder):
        wanted = run.settings["teacher"]
        if not wanted:
            return None
        name, fingerprint = wanted["name"], wanted["fingerprint"]
    parent = run.folder.resolve().parent
    for config in [*sorted(parent.glob("teachers/*/config.json")), *sorted(parent.glob("*/config.json"))]:
        other = Run(config.parent)
        try:
            if other.settings["student"]["network"] == name and other.summary is not None:
                network = training.load(other.folder, device="cpu")
                if network.identity == fingerprint:
                    return network
        except (InputError, LookupError, TypeError):  # a damaged run, which may not be the teacher's
            continue
    runtime.notice(f"the teacher of {run.folder} was not found beside it; name it with --teacher")
    return None
