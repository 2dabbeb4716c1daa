"""Predictions for image files, and the training images whose outputs in a memory bank are most similar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.data.crops import ResizedCrop
from ickd_lib.data.headers import header_of, upright_pixels
from ickd_lib.data.pillow import image_files, pixels_of
from ickd_lib.data.sets.streams import class_files
from ickd_lib.export.facts import Facts
from ickd_lib.export.opened import Model, NetworkModel
from ickd_lib.memory import MemoryBank
from ickd_lib.runs.findings import markdown_table
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

PASS = 32  # number of images that are evaluated at once


class Prediction(NamedTuple):
    """The prediction for one image.

    image: its file.
    classes: the most probable classes with their probabilities, the highest first.
    similar: the most similar rows of the memory bank: name of the training image, its class, and the cosine similarity.
    problem: why the image could not be read; "" if it was. The other two are then empty.
    """

    image: Path
    classes: tuple[tuple[str, float], ...] = ()
    similar: tuple[tuple[str, str, float], ...] = ()
    problem: str = ""


@checked
def predict(
    model: Model,
    images: Sequence[str | Path],
    *,
    top: int = 3,
    bank: MemoryBank | None = None,
    dataset: str = "",
) -> list[Prediction]:
    """Predict the classes of image files.

    An image of another size than the network's is resized and cropped as by the data set of the run. An image that
    cannot be read is no error; its prediction has a `problem`.

    Args:
        model: a classifier, from `open_model`.
        images: image files, and folders of image files.
        top: number of classes, and of similar training images, for each image.
        bank: a memory bank. If it was built with this network, from its run folder, rows are compared by their
            features; otherwise by their logits, less the mean logit, which allows any network with the same classes.
        dataset: "folder:PATH" or "imagenet:PATH", the data set of the bank, whose files name its rows; by default the
            rows are numbered.
    Raises:
        InputError: the model is not a classifier, a folder contains no image, top is below 1, the bank has other
            classes, or the data set does not contain its rows.
    """
    if model.facts.task != "classification":
        raise InputError(f"{model.facts.run} is a network for {model.facts.task}; predict needs a classifier")
    if top < 1:
        raise InputError(f"top={top} must be 1 or more")
    if bank is not None and bank.classes != model.facts.classes:
        raise InputError(f"the bank has other classes than {model.facts.run}; build it from the data of this run")
    names: list[str] = []
    if bank is not None:
        bank = bank.without_empty()
        names = _row_names(bank, dataset)
    found: dict[Path, Prediction] = {}
    files = list(dict.fromkeys(_files(images)))
    for start in range(0, len(files), PASS):
        readable, pixels = [], []
        for file in files[start : start + PASS]:
            try:
                pixels.append(prepared(file, model.facts))
                readable.append(file)
            except InputError as error:
                found[file] = Prediction(file, problem=str(error))
        if pixels:
            for made in _of_batch(model, readable, torch.stack(pixels), top, bank, names):
                found[made.image] = made
    return [found[file] for file in files]


def _files(images: Sequence[str | Path]) -> Iterator[Path]:
    """Yield the given files, and those in the given folders."""
    for image in map(Path, images):
        inside = image_files(image) if image.is_dir() else [image]
        if not inside:
            raise InputError(f"{image} contains no image; name another folder, or image files")
        yield from inside


def prepared(file: Path, facts: Facts) -> Tensor:
    """Read an image in the size of the network's input: uint8, shape [3, H, W].

    Raises:
        InputError: the file cannot be read.
    """
    if facts.crop == "resized":
        return ResizedCrop(facts.size[0]).whole(upright_pixels(file, header_of(file).jpeg))
    pixels = pixels_of(file)
    if pixels.shape[1:] == facts.size:
        return pixels
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    fitted = ImageOps.fit(image, (facts.size[1], facts.size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def _of_batch(
    model: Model, files: Sequence[Path], pixels: Tensor, top: int, bank: MemoryBank | None, names: Sequence[str]
) -> Iterator[Prediction]:
    logits = model.logits(pixels)
    probability, label = logits.softmax(1).topk(min(top, logits.shape[1]))
    similar = [()] * len(files) if bank is None else _similar(model, logits, pixels, top, bank, names)
    for file, p, c, rows in zip(files, probability.tolist(), label.tolist(), similar, strict=True):
        classes = [model.facts.classes[one] for one in c]
        yield Prediction(file, tuple(zip(classes, p, strict=True)), tuple(rows))


def by_features(model: Model, bank: MemoryBank) -> bool:
    """Return whether a bank was built with this network, so that their features can be compared."""
    return isinstance(model, NetworkModel) and bank.source.get("teacher") == model.facts.identity


def _similar(
    model: Model, logits: Tensor, pixels: Tensor, top: int, bank: MemoryBank, names: Sequence[str]
) -> list[list[tuple[str, str, float]]]:
    """Return the most similar rows of the bank for each image."""
    if isinstance(model, NetworkModel) and by_features(model, bank):
        queries, rows = F.normalize(model.features(pixels).float()), bank.features
    else:
        queries, rows = _centred(logits), _centred(bank.logits)
    similarity, at = (queries @ rows.float().mT).topk(min(top, len(bank)))
    labels = bank.labels[at].tolist()
    return [
        [(names[row], bank.classes[label], value) for row, label, value in zip(*one, strict=True)]
        for one in zip(at.tolist(), labels, similarity.tolist(), strict=True)
    ]


def _centred(logits: Tensor) -> Tensor:
    """Return logits less their mean, at unit length, [N, C]; probabilities then compare as logits do."""
    logits = logits.float()
    return F.normalize(logits - logits.mean(1, keepdim=True))


def _row_names(bank: MemoryBank, dataset: str) -> list[str]:
    """Return the name of each row of the bank: the file below train/ or with its folder unlabelled/; or its number."""
    index = bank.index.tolist()
    kind, _, path = dataset.partition(":")
    if kind not in ("folder", "imagenet"):
        return [f"row {row}" for row in index]
    train = Path(path, "train")
    if not Path(path).is_dir():
        raise InputError(f"{path} is not a folder; name the data set that the bank was built from")
    if not train.is_dir():
        raise InputError(f"{path} has no folder train/; name the data set that the bank was built from")
    files, _ = class_files(train, sorted(p.name for p in train.iterdir() if p.is_dir() and p.name[0] != "."))
    folder = Path(path, "unlabelled")
    others = image_files(folder) if folder.is_dir() else []
    names = [str(Path(files.name(row))) for row in range(len(files))] + [str(file.relative_to(path)) for file in others]
    if index and max(index) >= len(names):
        raise InputError(f"{path} has {len(names)} images, but the bank has row {max(index)}; name its own data set")
    return [names[row] for row in index]


def table_of(predictions: Sequence[Prediction]) -> str:
    """Format predictions as a Markdown table. Images that could not be read are left out."""
    shown = [one for one in predictions if not one.problem]
    similar = any(one.similar for one in shown)
    heading = ["image", "class", "probability, %", "next", *(["in-context samples"] if similar else [])]
    return markdown_table(heading, [_cells(one, similar) for one in shown])


def _cells(prediction: Prediction, similar: bool) -> list[str]:
    (best, probability), *others = prediction.classes
    following = ", ".join(f"{name} {100 * p:.1f}" for name, p in others)
    rows = "; ".join(f"{name}: {label} ({value:.2f})" for name, label, value in prediction.similar)
    cells = [str(prediction.image), best, f"{100 * probability:.1f}", following, *([rows] if similar else [])]
    return [cell.replace("|", r"\|") for cell in cells]


def rows_of(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return a flat row for each prediction, for `runs.csv_of`; probabilities as fractions."""
    rows = []
    for one in predictions:
        row: dict[str, Any] = {"image": str(one.image)}
        for number, (name, probability) in enumerate(one.classes, 1):
            row |= {f"class_{number}": name, f"probability_{number}": probability}
        for number, (name, label, value) in enumerate(one.similar, 1):
            row |= {f"sample_{number}": name, f"sample_class_{number}": label, f"similarity_{number}": value}
        rows.append(row | {"problem": one.problem})
    return rows
