"""Networks of your own from a file: Python code, a TorchScript program, or a program of torch.export."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .. import runtime
from ..runtime import InputError
from ..runtime.arguments import checked
from .external import build
from .inspection import first_line, undisturbed
from .network import Network
from .wrapped import Program, Source, Wrapped, wrap

SCRIPTS = (".pt", ".ts", ".pth")  # names of files that may contain a TorchScript program
EXAMPLE = "model.py:build(features='pool', size=224)"
OPTIONS = ("features", "maps", "mean", "std", "size")  # the arguments of `wrap` that may be part of the name


def is_file(text: str) -> bool:
    """Return whether a name is that of a network in a file ("model.py:build", "model.pt", "model.pt2")."""
    path = Path(text.partition("(")[0].strip())
    return ".py:" in path.name or path.suffix in (".py", ".pt2", *SCRIPTS)


@checked
def from_file(text: str, *, num_classes: int, image_size: tuple[int, int] | None = None) -> Network:
    """Load a network from a file. This runs the code in the file, so give only files that you trust.

    Args:
        text: one of these, with arguments of `wrap` in brackets where they are needed, as in
            "model.pt2(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224)":
            "FILE.py:NAME", a function that returns an `nn.Module`, or a class of modules, which is called with
            `num_classes` if it takes it; "FILE.pt" or "FILE.ts", a program that `torch.jit.save` wrote; "FILE.pt2", a
            program that `torch.export.save` wrote. Without mean and std, the images are passed as they are, in [0, 1].
        num_classes: C.
        image_size: (H, W) to which images are resized if the name has no `size`; None leaves their size.
    Returns:
        The network in evaluation mode. Its identity depends on the weights and on the content of the file. A program
        always runs in evaluation mode. If it returns logits alone, the network has no features, [B, 0].
    Raises:
        InputError: the file is missing, of another kind, or has pickled objects; its code raises an error; or the
            network does not take images of this size or has another number of classes; or a program was compiled in
            training mode.
    """
    plain, given = runtime.parse_call(text, "network", EXAMPLE)
    for option in given:
        runtime.choose(option, OPTIONS, "option of a network from a file")
    file, _, attribute = plain.partition(".py:")
    path = Path(f"{file}.py" if attribute else plain)
    rest = text.strip()[len(f"{file}.py" if attribute else plain) :]
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a file of a network, such as {EXAMPLE}, model.pt or model.pt2")
    if path.suffix == ".py" and not attribute:
        raise InputError(
            f"{path} has no name after it; write {path}:NAME for the function or class that makes a network"
        )
    name = f"{path.name}:{attribute}" if attribute else path.name
    if attribute:
        module = _from_code(path, attribute, num_classes)
    else:
        module = Program(_exported(path) if path.suffix == ".pt2" else _scripted(path)).requires_grad_(False)
    if isinstance(module, Network):
        if given:
            raise InputError(f"{name} makes a Network, which has its own preprocessing; leave out {', '.join(given)}")
        network = module
    else:
        network = wrap(module, name=name, **{"size": image_size} | given)
    if network.num_classes != num_classes:
        raise InputError(f"{name} has {network.num_classes} classes, but the data has {num_classes}")
    if path.suffix == ".pt2":
        _require_any_batch(network, name, image_size)
    network.name = name
    network.trained_on = network.trained_on or {"file": name}
    if isinstance(network, Wrapped):
        absolute = f"{path.resolve()}{rest}"  # other processes may be in another folder
        network.source = Source(absolute, num_classes, image_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return network.eval()


def _from_code(path: Path, attribute: str, num_classes: int) -> nn.Module:
    """Run a Python file, and return the module that one of its functions or classes makes."""
    name = f"ickd_file_{path.stem}_{runtime.fingerprint(str(path.resolve()))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # where dataclasses look for their module
    try:
        build(str(path), lambda: spec.loader.exec_module(code))  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    if not callable(made := getattr(code, attribute, None)):
        raise InputError(f"{path} has no function or class {attribute!r}; name one that makes a network")
    try:
        takes = "num_classes" in inspect.signature(made).parameters
    except (TypeError, ValueError):
        takes = False
    with runtime.seeded():  # weights that the code draws are the same each time
        module = build(f"{path}:{attribute}", lambda: made(**({"num_classes": num_classes} if takes else {})))
    if not isinstance(module, nn.Module):
        raise InputError(f"{path}:{attribute} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _scripted(path: Path) -> nn.Module:
    """Return the TorchScript program in a file."""
    with _readable(path) as names:
        if not any(name.endswith("/constants.pkl") for name in names):
            raise InputError(
                f"{path} is not a TorchScript file but was written by torch.save; a pickled module is refused, because "
                "it could run code: save it with torch.jit.save or torch.export.save, or its state_dict() as weights "
                "of a network that you name (--teacher NAME --teacher-weights FILE)"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        return build(str(path), lambda: torch.jit.load(path, map_location="cpu").eval())


def _exported(path: Path) -> nn.Module:
    """Return the program of torch.export in a file. Pickled objects in it are refused."""
    with _readable(path):
        before = os.environ.get(key := "TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        os.environ[key] = "1"
        try:
            return build(str(path), lambda: torch.export.load(path).module())
        finally:
            os.environ.pop(key)
            if before is not None:
                os.environ[key] = before


@contextmanager
def _readable(path: Path) -> Iterator[list[str]]:
    """Provide the names of the parts of an archive, or raise InputError if the file is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive.namelist()
    except zipfile.BadZipFile:
        raise InputError(
            f"{path} is no file of torch.jit.save or torch.export.save, or it is damaged; save it again"
        ) from None


def _require_any_batch(network: Network, name: str, image_size: tuple[int, int] | None) -> None:
    """Raise InputError if an exported program takes batches of one size only."""
    size = getattr(network, "size", None) or image_size or (32, 32)
    with undisturbed(network):
        try:
            network(torch.zeros(5, 3, *size))
        except Exception as error:
            raise InputError(
                f"{name} does not take batches of any size ({first_line(error)}); export it with "
                "dynamic_shapes=({0: torch.export.Dim('batch')},)"
            ) from None
