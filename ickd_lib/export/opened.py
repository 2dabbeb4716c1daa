"""Networks of run folders and of exported files, as functions of uint8 images."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime, training
from ickd_lib.export.facts import Facts, facts_of, finished_run
from ickd_lib.export.graph import Graph
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
METADATA = "ickd.json"  # the file in a pt2 archive that contains the metadata


class Model:
    """A network that can be evaluated on images; `NetworkModel`, `OnnxModel` and `ProgramModel` are of this kind.

    Attributes:
        facts: what is known of it.
        bytes: size of the file; of a run's network, of its weights.
    """

    facts: Facts
    bytes: int

    def run(self, images: Tensor) -> Tensor:
        """Evaluate the network on its own kind of input."""
        raise TypeError(f"{type(self).__name__} must define run(images) -> Tensor")

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits; if the output is probabilities, their logarithms, which differ from logits by a constant.

        Args:
            pixels: uint8, shape [B, 3, H, W].
        Returns:
            Float32, shape [B, C]; of a network for segmentation [B, C, H, W].
        """
        if self.facts.preprocess:
            return self.run(pixels).clamp(min=torch.finfo(torch.float32).tiny).log()
        return self.run(pixels.float() / 255)


class NetworkModel(Model):
    """A network in torch, on the CPU.

    Args:
        network: the network, which is set to evaluation mode.
        facts: what is known of it.
    """

    def __init__(self, network: Network, facts: Facts) -> None:
        self.network, self.facts = network.eval(), facts
        self.graph = Graph(network, facts.preprocess)
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())

    @torch.inference_mode()
    def run(self, images: Tensor) -> Tensor:
        return self.graph(images)

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Return the features [B, D] of uint8 images [B, 3, H, W]."""
        return self.network(pixels.float() / 255).features


class OnnxModel(Model):
    """An ONNX file, evaluated by onnxruntime on the CPU, with as many threads as torch has.

    Raises:
        InputError: onnxruntime is not installed, or the file is not one that `write` made.
    """

    def __init__(self, path: str | Path) -> None:
        ort = require("onnxruntime")
        content = Path(path).read_bytes()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types
            raise InputError(f"{path} cannot be read ({_reason(error)}); export the run again") from None
        self.facts = Facts.of(self.session.get_modelmeta().custom_metadata_map, path)
        self.bytes = len(content)

    def run(self, images: Tensor) -> Tensor:
        (output,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(output)


class ProgramModel(Model):
    """A pt2 file of torch.export.

    Raises:
        InputError: the file is not one that `write` made.
    """

    def __init__(self, path: str | Path) -> None:
        content = Path(path).read_bytes()
        extra = {METADATA: ""}
        try:
            _refuse_pickles(content, path)
            self.module = torch.export.load(io.BytesIO(content), extra_files=extra).module()
        except InputError:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise InputError(f"{path} cannot be read ({_reason(error)}); export the run again") from None
        self.facts = Facts.of(json.loads(extra[METADATA] or "{}"), path)
        self.bytes = len(content)

    @torch.no_grad()
    def run(self, images: Tensor) -> Tensor:
        return self.module(images)


def _refuse_pickles(content: bytes, path: str | Path) -> None:
    """Raise InputError if a pt2 archive contains objects that torch would unpickle, which could run code."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            pickled = name.endswith(".json") and b'"use_pickle": true' in archive.read(name)
            if pickled or Path(name).name.startswith("custom_obj"):
                raise InputError(f"{path} is refused, because it contains pickled objects ({name}) that could run code")


@checked
def open_model(path: str | Path, *, size: tuple[int, int] | None = None, crop: str = "") -> Model:
    """Open a run folder, or a file that `write` made.

    Args:
        path: a finished run's folder, or a file that ends in .onnx or .pt2.
        size, crop: for a run folder: see `Facts`. By default they are those that the run recorded; runs of earlier
            versions record none, and their data set has them (`shape_of`).
    Raises:
        InputError: it is neither of these, or it is damaged.
    """
    path = Path(path)
    kinds: dict[str, Any] = {".onnx": OnnxModel, ".pt2": ProgramModel}
    if path.suffix in kinds and not path.exists():
        raise InputError(f"{path} does not exist; name a run folder, or a file of ickd export")
    if path.is_file():
        if path.suffix not in kinds:
            raise InputError(f"{path} is neither a run folder nor a file that ends in .onnx or .pt2")
        return kinds[path.suffix](path)
    run = finished_run(path)
    with runtime.complete(path):
        recorded = run.config.get("evaluation_crop") or {}
        height, width = size or recorded.get("size", (0, 0))
        crop = crop or recorded.get("crop", "fit")
    if not height:
        raise InputError(f"{path} does not record the size of its images; give size=(height, width)")
    network = training.load(path, device="cpu")
    return NetworkModel(network, facts_of(run, network, (height, width), crop))


def require(package: str) -> Any:
    """Import a package of the extra `export`.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{package} is not installed; run pip install 'ickd[export]'") from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def format_of(name: str, path: str | Path) -> str:
    """Return the name of a format, which the suffix of the file must agree with.

    Raises:
        InputError: the format is unknown, or the file ends differently.
    """
    chosen = runtime.choose(name, SUFFIXES, "format")
    if (suffix := Path(path).suffix) != SUFFIXES[chosen]:
        fitting = [f"give --format {one} (in Python, format={one!r})" for one in SUFFIXES if SUFFIXES[one] == suffix]
        advice = ", or ".join([*fitting, "rename it"])
        raise InputError(f"{path} does not end in {SUFFIXES[chosen]}, as files of the format {chosen} do; {advice}")
    return chosen
