"""Weights from files: those of this project, and the checkpoints of RepDistiller and mdistiller."""

from __future__ import annotations

import argparse
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..runtime import InputError, check_object, check_tensors, not_read, notice, reason
from ..runtime.arguments import checked
from .detection import Detector
from .external import LIBRARIES
from .network import Network
from .wrapped import Wrapped

SHOWN = 3  # number of names that an error message lists; it counts the others


@checked
def load_weights(network: Network, path: str | Path) -> Network:
    """Load a checkpoint into a network. If the checkpoint does not fit, the network is not changed.

    The file is a `.safetensors` file or was written by `torch.save`. It contains a state dict, or a dict whose
    item "model" or "state_dict" is one. Its names may begin with `module.`; for a wrapped, torchvision or timm
    network they may also be the names of the inner module. Pickled objects that could run code are refused.

    The networks of RepDistiller and mdistiller were trained on normalised images. Load their weights into
    `create(name, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))`.

    Args:
        network: a network with the architecture and the number of classes of the saved one.
        path: the file.
    Returns:
        The same network.
    Raises:
        InputError: the file is missing, damaged, incomplete or contains code; or its names or shapes are not those of
            the network.
    """
    path = Path(path)
    target = network.module if isinstance(network, (Wrapped, Detector)) else network
    own = target.state_dict()
    state = _state_dict(_read(path), path)
    while state.keys() != own.keys() and state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)  # checkpoints of torch 0.4.0 and earlier do not contain it

    difference = _difference(state, own, network)
    if difference:
        raise InputError(f"{path} does not fit {network.name} with {network.num_classes} classes: {difference}")
    target.load_state_dict(state)
    # A checkpoint of normalised images loses ten points of accuracy without them, and nothing else shows it. A user's
    # own module may normalise its images itself.
    of_library = isinstance(network, Wrapped) and network.name.partition("/")[0] in LIBRARIES
    if (target is network or of_library) and not network.mean.any() and bool((network.std == 1).all()):
        notice(
            f"{network.name} does not normalise its images; if {path.name} was trained on normalised ones, give their "
            "mean and std to models.create"
        )
    return network


def _read(path: Path) -> Any:
    """Read the content of a file, with its tensors on the CPU."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a .safetensors or .pth file of weights")
    try:
        open(path, "rb").close()  # the error of safetensors for a file without permission has no cause
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
            check_tensors(path)
            return content
        check_object(path)
        # RepDistiller's last checkpoint contains its command-line arguments, a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        if not_read(error):
            raise InputError(f"{path} cannot be read: {reason(error)}") from error
        if isinstance(error, InputError):
            raise InputError(f"{error}; download or save it again") from error
        # torch raises a second error with a page of advice; its context is the short reason.
        why = " ".join(str(error.__context__ or error).split())[:100]
        if isinstance(error, UnpicklingError) and "global" in why.lower():
            raise InputError(
                f"{path} is refused, because it contains Python objects that could run code when they are unpickled; "
                "save only the network's state_dict() and load that"
            ) from error
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {why}); it is not a file of weights, damaged or "
            "incomplete: download or save it again"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file's content is or contains."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} contains a {type(content).__name__}, not a state dict; save the network's state_dict() to it"
        )
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"{path} contains no state dict, because these items are not tensors: {_listed(others)}; "
            "save state_dict(), alone or as 'model'"
        )
    dense = {k for k, v in content.items() if v.layout == torch.strided and not v.is_meta and not v.is_complex()}
    if odd := [key for key in content if key not in dense or not isinstance(key, str)]:
        raise InputError(f"{path} is no state dict of named, dense tensors: {_listed(odd)}; save state_dict()")
    return dict(content)


def _difference(state: dict[str, Tensor], own: dict[str, Tensor], network: Network) -> str:
    """Describe how a state dict differs from a network's own, and what to do; "" if it fits."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    parts = []
    if missing:
        parts.append(f"it lacks {_listed(missing)}")
    if unexpected:
        parts.append(f"it has in addition {_listed(unexpected)}")
    if reshaped:
        shapes = [f"{key} {list(state[key].shape)}, not {list(own[key].shape)}" for key in reshaped]
        parts.append(f"it has other shapes: {_listed(shapes)}")
    if not parts:
        return ""
    advice = "create the network that the file was saved from"
    outputs = {len(state[key]) if state[key].ndim else 0 for key in reshaped}
    if not missing and not unexpected and len(outputs) == 1 and len(reshaped) <= 2:
        count = outputs.pop()
        if isinstance(network, Detector):  # a detector with anchors has rows for the background, and for each anchor
            count = count * (network.num_classes + 1) // len(own[reshaped[0]]) - 1
        advice = f"create the network with num_classes={count}"
    return f"{'; '.join(parts)}; {advice}"


def _listed(items: list[Any]) -> str:
    """Join the first `SHOWN` items and count the others."""
    more = len(items) - SHOWN
    return ", ".join(map(str, items[:SHOWN])) + (f" and {more} more" if more > 0 else "")
