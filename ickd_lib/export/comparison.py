"""A table of networks: size, latency on the CPU, accuracy and calibration."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import metrics, runtime
from ickd_lib.data import Splits
from ickd_lib.export.opened import Model
from ickd_lib.export.writing import split_pixels
from ickd_lib.runs.findings import markdown_table
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

BATCHES = (1, 32)  # batch sizes whose latency is measured
ROUNDS = 20
WARM = 3  # passes before the measurement
LEAST, SECONDS = 5, 30.0  # after so many seconds, the measurement of a batch size ends once it has LEAST rounds


@checked
def compare_models(
    models: Mapping[str, Model], splits: Splits, *, seen: Collection[str] = (), rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Measure size, latency on the CPU, accuracy and calibration of networks.

    The temperature of each network is fitted to the validation images; if there are none, or the network was trained on
    them, to a random half of the test images, and both calibration errors are then those of the other half. In the
    passes whose time is measured, the networks take turns, so that other programs slow down all of them alike.

    Args:
        models: the networks by their names in the table, as `write` returns them; `open_model` opens others.
        splits: the data, with the classes of all networks. Networks for segmentation are evaluated on the test images
            of their size.
        seen: names of the networks that were trained on the validation images, as a teacher of all images was.
        rounds: number of passes whose time is measured, for each network and batch size; fewer, but at least 5, if they
            take more than 30 seconds.
    Returns:
        A row for each network: name; parameters; bytes (of the file, or of a run's weights); for batches of 1 and 32
        images, ms_1 and ms_32, lists of quartiles of the milliseconds of a pass (lower, median, upper); accuracy, or
        miou in segmentation, on the test images; for classifiers ece, temperature, ece_scaled (both calibration errors
        as fractions) and fitted_on ("validation" or "half of test"); in segmentation `images`, the number of test
        images of the network's size, and, if others were left out, `only`, which names number and size of those used.
    Raises:
        InputError: there is no network, no test image of a network's size, or rounds is below 1; or a network has other
            classes than the data.
    """
    if not models or rounds < 1:
        raise InputError(f"{len(models)} networks and rounds={rounds}; both must be 1 or more")
    for name, model in models.items():
        if model.facts.classes != splits.test.classes:
            raise InputError(f"{name} has other classes than {splits.test.name}; give the data set of its run")
    latency = {batch: _latency(models, splits, batch, rounds) for batch in BATCHES}
    rows = []
    for name, model in models.items():
        row: dict[str, Any] = {"name": name, "parameters": model.facts.parameters, "bytes": model.bytes}
        row |= {f"ms_{batch}": latency[batch][name] for batch in BATCHES}
        if model.facts.task == "classification":
            row |= _classifier(model, splits, len(splits.val) > 0 and name not in seen)
        else:
            row |= _segmenter(model, splits)
        rows.append(row)
    return rows


def _latency(models: Mapping[str, Model], splits: Splits, batch: int, rounds: int) -> dict[str, list[float]]:
    """Return the quartiles of the milliseconds of a pass of each network."""
    inputs = {}
    for name, model in models.items():
        found = next(split_pixels(splits.test, torch.arange(len(splits.test)), model.facts.size), None)
        if found is None:
            raise InputError(f"no test image has {_pixels(model)}, the size that {name} takes")
        pixels = found[0].repeat(-(-batch // len(found[0])), 1, 1, 1)[:batch].contiguous()
        inputs[name] = pixels if model.facts.preprocess else pixels.float() / 255
    taken: dict[str, list[float]] = {name: [] for name in models}
    begin = time.perf_counter()
    for number in range(WARM + rounds):
        if number >= WARM + LEAST and time.perf_counter() - begin > SECONDS:
            break
        for name, model in models.items():
            start = time.perf_counter()
            model.run(inputs[name])
            if number >= WARM:
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: _quartiles(times) for name, times in taken.items()}


def _pixels(model: Model) -> str:
    height, width = model.facts.size
    return f"{width}×{height} pixels"


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def _classifier(model: Model, splits: Splits, validation: bool) -> dict[str, Any]:
    """Return accuracy and calibration of a classifier, with a temperature of the validation images or half of test."""
    logits, labels = _outputs(model, splits.test), splits.test.labels.cpu()
    found: dict[str, Any] = {"accuracy": metrics.accuracy(logits, labels)}
    if validation:
        fitted = _outputs(model, splits.val), splits.val.labels.cpu()
        judged = logits, labels
    else:
        order = torch.randperm(len(labels), generator=runtime.generator("half of test"))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        if not len(first):
            return found
        fitted, judged = (logits[first], labels[first]), (logits[second], labels[second])
    temperature = metrics.best_temperature(*fitted)
    return found | {
        "ece": metrics.calibration_error(*judged),
        "temperature": temperature,
        "ece_scaled": metrics.calibration_error(judged[0] / temperature, judged[1]),
        "fitted_on": "validation" if validation else "half of test",
    }


def _outputs(model: Model, images: Any) -> Tensor:
    """Return the logits [N, C] of a classifier for all images."""
    every = torch.arange(len(images))
    return torch.cat([model.logits(pixels) for pixels, _ in split_pixels(images, every, model.facts.size)]).float()


def _segmenter(model: Model, splits: Splits) -> dict[str, Any]:
    """Return the mean intersection over union on the test images that have the size of the network's input."""
    images: Any = splits.test
    classes, used = len(images.classes), 0
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for pixels, rows in split_pixels(images, torch.arange(len(images)), model.facts.size):
        masks = torch.stack([images.masks[row] for row in rows.tolist()])
        labels = masks.long().masked_fill(masks == images.ignored, -1)
        logits = F.interpolate(model.logits(pixels), masks.shape[1:], mode="bilinear")
        counts += metrics.confusion(logits.argmax(1), labels, classes)
        used += len(rows)
    some = {"only": f"{used} of {len(images)} test images, those of {_pixels(model)}"} if used < len(images) else {}
    return {"miou": metrics.segmentation(counts, images.classes)["miou"], "images": used, **some}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `compare_models` as a Markdown table, followed by sentences about the measurement."""
    segments = "miou" in rows[0]
    heading = ["network", "parameters", "size, MB", *(f"ms, batch {batch}" for batch in BATCHES)]
    heading += ["mIoU, %"] if segments else ["accuracy, %", "ECE, %", "temperature", "ECE after scaling, %"]
    text = markdown_table(heading, [_cells(row) for row in rows])
    notes = [
        "Times are medians of a pass on the CPU, with quartiles in brackets "
        f"(threads: {torch.get_num_threads()}). The size is that of the file, or of the weights of a run."
    ]
    notes += [f"mIoU is that of {only}." for only in dict.fromkeys(row["only"] for row in rows if "only" in row)]
    on = {
        where: [row["name"] for row in rows if row.get("fitted_on") == where]
        for where in ("validation", "half of test")
    }
    if on["validation"]:
        notes.append("Temperatures were fitted to the validation images; both ECE are those of the test images.")
    if on["half of test"]:
        which = f"Those of {', '.join(on['half of test'])}" if on["validation"] else "Temperatures"
        why = (
            "which may have been trained on the validation images" if on["validation"] else "without validation images"
        )
        notes.append(f"{which}, {why}, were fitted to a random half of the test images.")
        notes.append("Both ECE are then those of the other half.")
    return f"{text}\n\n{' '.join(notes)}\n"


def _cells(row: dict[str, Any]) -> list[str]:
    def percent(key: str) -> str:
        return f"{100 * row[key]:.2f}" if key in row else ""

    times = [_time(row[f"ms_{batch}"]) for batch in BATCHES]
    start = [row["name"], f"{row['parameters']:,}", f"{row['bytes'] / 1e6:.2f}", *times]
    if "miou" in row:
        return [*start, percent("miou")]
    temperature = f"{row['temperature']:.2f}" if "temperature" in row else ""
    return [*start, percent("accuracy"), percent("ece"), temperature, percent("ece_scaled")]


def _time(quartiles: Sequence[float]) -> str:
    low, median, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in quartiles)
    return f"{median} ({low} to {high})"
