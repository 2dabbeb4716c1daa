"""Exported files: they are written, read again, and compared with the network on real images."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_lib import runtime, training
from ickd_lib.data import DenseImages, Splits
from ickd_lib.data.sequences import fetch
from ickd_lib.export.card import is_card, model_card
from ickd_lib.export.facts import Facts, facts_of, finished_run, shape_of
from ickd_lib.export.graph import traced
from ickd_lib.export.opened import (
    METADATA,
    Model,
    NetworkModel,
    OnnxModel,
    ProgramModel,
    format_of,
    require,
)
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

TOLERANCE = 1e-4  # largest difference of a probability between the file and the network
CHECKED = 64  # number of test images on which the file is compared with the network
PASS = 32  # number of images that are evaluated at once
CALIBRATION = 200  # number of training images from which the ranges of int8 are measured


class Written(NamedTuple):
    """What `write` made.

    models: the network in torch, under "run"; the file, under its name; with int8, also the fp32 graph, "onnx fp32".
    difference: the largest difference of a probability between the fp32 graph and the network; None for safetensors.
    images: number of test images on which it was measured.
    """

    models: dict[str, Model]
    difference: float | None
    images: int


@checked
def write(
    run: str | Path,
    path: str | Path,
    splits: Splits,
    *,
    format: str,
    preprocess: bool = False,
    int8: bool = False,
    calibration: int | None = None,
) -> Written:
    """Export the network of a finished run to a file, which replaces an existing one.

    A graph is compared with the network on at most 64 test images before the file is written: no probability may
    differ by more than 1e-4. With safetensors, a model card is written beside the file, with the suffix .md.

    Args:
        run: the run folder.
        path: the file; its suffix is .onnx, .pt2 or .safetensors, as the format's.
        splits: the data of the run. Test images check the file; training images calibrate int8.
        format: "onnx", "pt2" (torch.export), or "safetensors" (the weights alone).
        preprocess: whether the graph takes uint8 [B, 3, H, W] and computes probabilities. Otherwise it takes images in
            [0, 1] and computes logits. In both cases the run's normalisation is in the graph.
        int8: whether weights and activations are quantised to 8 bits, with ranges measured in advance; ONNX only.
        calibration: number of training images from which the ranges are measured; None for 200, or all if they are
            fewer.
    Raises:
        InputError: there is no finished run of a classification or segmentation, the format is unknown or does not have
            the option, the file cannot be written, the card would replace another file, the data have other classes,
            the exporter does not support the network, or the probabilities differ.
        OSError: the file cannot be written.
    """
    source, path, chosen = finished_run(run), Path(path), format_of(format, path)
    if chosen == "safetensors" and preprocess:
        raise InputError("preprocess is an option of a graph, onnx or pt2; safetensors contains the weights alone")
    if int8 and chosen != "onnx":
        raise InputError(f"int8 is an option of onnx, not of {chosen}; choose onnx, or leave int8 out")
    calibration = min(CALIBRATION, len(splits.train)) if calibration is None else calibration
    if int8 and not 1 <= calibration <= len(splits.train):
        raise InputError(f"calibration={calibration} is not a number of training images from 1 to {len(splits.train)}")
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime")}.get(chosen, ()):
        require(package)
    runtime.require_writable(path)
    if chosen == "safetensors":
        _require_card(path.with_suffix(".md"))
    network = training.load(run, device="cpu")
    network.classes = network.classes or splits.test.classes  # runs of early versions name none
    if network.classes != splits.test.classes or network.num_classes != len(network.classes):
        raise InputError(f"{run} has other classes than {splits.test.name}; give the data set of the run")
    facts = facts_of(source, network, *shape_of(splits.test), preprocess=preprocess)
    models: dict[str, Model] = {"run": NetworkModel(network, facts)}
    if chosen == "safetensors":
        with runtime.complete(run):
            card = model_card(source, facts, path.name)
        runtime.save_tensors(path, network.state_dict(), facts.metadata())
        with runtime.replacing(path.with_suffix(".md")) as part:
            part.write_text(card, encoding="utf-8")
        return Written(models, None, 0)
    with tempfile.TemporaryDirectory() as folder, runtime.replacing(path) as part:
        exact = Path(folder, "fp32.onnx") if int8 else part
        try:
            (_write_onnx if chosen == "onnx" else _write_program)(network, facts, exact)
        except Exception as error:  # the exporter raises many types, for an operator that it does not support
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            raise InputError(
                f"{network.name} cannot be exported to {chosen} ({type(error).__name__}: {reason}); try another format"
            ) from None
        graph = (OnnxModel if chosen == "onnx" else ProgramModel)(exact)
        difference, images = _difference(graph, models["run"], splits)
        if not difference <= TOLERANCE:
            raise InputError(
                f"the probabilities of the {chosen} file differ by {difference:.1e} from those of {network.name}, more "
                f"than {TOLERANCE:.0e}; nothing was written; try another format"
            )
        if int8:
            models["onnx fp32"] = graph
            quantise(exact, part, splits, facts, calibration)
            graph = OnnxModel(part)
        models[path.name] = graph
    return Written(models, difference, images)


def _require_card(path: Path) -> None:
    """Raise InputError if a file, which the model card would replace, is no model card of this library."""
    if path.exists() and not (path.is_file() and is_card(path.read_text(encoding="utf-8", errors="replace"))):
        raise InputError(f"{path}, where the model card is written, has other content; give another name to --out")


def split_pixels(images: Any, rows: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images [n, 3, H, W], at most 32 at once, and the positions [n] of those that have this size.

    Images with class masks are left out if they have another size.
    """
    dense, rows = isinstance(images, DenseImages), of_size(images, rows, size)
    for part in rows.split(PASS) if len(rows) else ():
        yield (torch.stack(fetch(images.images, part.tolist())) if dense else images.shown(part)), part


def of_size(images: Any, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Return those of the positions [n] whose images have this size, which only images with class masks may not."""
    return rows[(images.sizes[rows] == torch.tensor(size)).all(1)] if isinstance(images, DenseImages) else rows


def _difference(graph: Model, network: Model, splits: Splits) -> tuple[float, int]:
    """Return the largest difference of a probability on test images, in batches of two sizes, and their number."""
    largest, count = 0.0, 0
    for pixels, rows in split_pixels(splits.test, torch.arange(min(CHECKED, len(splits.test))), graph.facts.size):
        for some in (pixels, pixels[:1]):
            found, expected = (model.logits(some).softmax(1) for model in (graph, network))
            largest = max(largest, (found - expected).abs().nan_to_num(nan=1.0).max().item())
        count += len(rows)
    return largest, count


def _write_program(network: Network, facts: Facts, path: Path) -> None:
    buffer = io.BytesIO()
    program = traced(network, facts.size, facts.preprocess)
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(facts.metadata())})
    path.write_bytes(buffer.getvalue())


def _write_onnx(network: Network, facts: Facts, path: Path) -> None:
    program = traced(network, facts.size, facts.preprocess)
    output = "probabilities" if facts.preprocess else "logits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        made = torch.onnx.export(program, (), dynamo=True, input_names=["images"], output_names=[output], verbose=False)
    assert made is not None
    _save_onnx(made.model_proto, facts, path)


def _save_onnx(model: Any, facts: Facts, path: Path) -> None:
    """Write an ONNX model with the facts as its metadata."""
    onnx = require("onnx")
    onnx.helper.set_model_props(model, facts.metadata())
    model.doc_string = f"{facts.network} of ickd. Input: {facts.input}. Output: {facts.output}."
    path.write_bytes(model.SerializeToString())


def quantise(exact: Path, path: Path, splits: Splits, facts: Facts, calibration: int) -> None:
    """Quantise the weights (one scale for each channel) and activations of an ONNX file to 8 bits.

    Args:
        exact: the fp32 file.
        path: the file to write.
        splits: the data; training images, drawn at random, determine the ranges of the activations.
        facts: the facts for the metadata.
        calibration: number of these images.
    Raises:
        InputError: no training image has the size of the graph's input.
    """
    quantization = require("onnxruntime.quantization")
    rows = torch.randperm(len(splits.train), generator=runtime.generator("calibration"))[:calibration]
    parts = (pixels for pixels, _ in split_pixels(splits.train, rows.sort().values, facts.size))
    inputs = [
        {"images": (pixels if facts.preprocess else pixels.float() / 255).contiguous().numpy()} for pixels in parts
    ]
    if not inputs:
        raise InputError(f"no training image has {facts.size[0]}×{facts.size[1]} pixels, as int8 needs; leave int8 out")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    onnx = require("onnx")
    softmax = [node.name for node in onnx.load(exact).graph.node if node.op_type == "Softmax"]
    logging.disable(logging.WARNING)  # advice about optimisations that the exporter has made already
    try:
        quantization.quantize_static(
            exact,
            path,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # onnxruntime is slower with signed ones than in fp32
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits, so that sums do not overflow on CPUs without VNNI
            nodes_to_exclude=softmax,  # in 8 bits, all probabilities below 1 / 512 would be 0
        )
    finally:
        logging.disable(logging.NOTSET)
    _save_onnx(onnx.load(path), facts, path)
