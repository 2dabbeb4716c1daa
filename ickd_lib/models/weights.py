"""Weights from files: ours, and the checkpoints that RepDistiller and mdistiller publish and write."""

from __future__ import annotations

import argparse
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..runtime import InputError
from .network import Network
from .wrapped import Wrapped

SHOWN = 3  # names that an error lists before it counts the rest


def load_weights(network: Network, path: str | Path) -> Network:
    """Load a checkpoint into `network`, wholly or, when it does not fit, not at all.

    A file ends in `.safetensors` or is anything that `torch.save` wrote: a state dict, or a dict that holds one as
    "model" or "state_dict", its names with or without the prefix `module.`. A wrapped, torchvision or timm network
    takes its inner module's own names too. Nothing is unpickled that could run code.

    The networks of RepDistiller and mdistiller were trained on normalised images: give theirs
    `create(name, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))`.

    Args:
        network: of the architecture and the number of classes that the file was saved from.
        path: the file.
    Returns:
        The network.
    Raises:
        InputError: the file is not there, damaged, cut short or holds code; or names or shapes differ.
    """
    path = Path(path)
    target = network.module if isinstance(network, Wrapped) else network
    own = target.state_dict()
    state = _state_dict(_read(path), path)
    while state.keys() != own.keys() and state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)  # checkpoints from before torch 0.4.1 have none

    difference = _difference(state, own)
    if difference:
        raise InputError(f"{path} does not fit {network.name} with {network.num_classes} classes: {difference}")
    target.load_state_dict(state)
    return network


def _read(path: Path) -> Any:
    """What a file holds, on the CPU."""
    if not path.is_file():
        raise InputError(f"{path} is not there; name a .safetensors or .pth file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # RepDistiller keeps its command line, a Namespace of plain values, in its last checkpoint.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        # torch raises its reason again inside a page of advice.
        reason = " ".join(str(error.__context__ or error).split())[:100]
        if isinstance(error, UnpicklingError) and "global" in reason.lower():
            raise InputError(
                f"{path} is refused, since it holds Python objects whose unpickling could run code; "
                "save the network's state_dict() alone and load that"
            ) from error
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); it is no file of weights, damaged or "
            "cut short: fetch or save it again"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that a file's content is or wraps."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict; save state_dict() to it")
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(
            f"{path} holds no state dict: {_listed(strange)} are no tensors; save state_dict(), alone or as 'model'"
        )
    return dict(content)


def _difference(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """How a state dict differs from a network's own, and what to do; empty where it fits."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    parts = []
    if missing:
        parts.append(f"missing {_listed(missing)}")
    if unexpected:
        parts.append(f"unexpected {_listed(unexpected)}")
    if reshaped:
        shapes = [f"{key} {list(state[key].shape)}, not {list(own[key].shape)}" for key in reshaped]
        parts.append(f"of another shape {_listed(shapes)}")
    if not parts:
        return ""
    advice = "create the network that it was saved from"
    outputs = {len(state[key]) if state[key].ndim else 0 for key in reshaped}
    if not missing and not unexpected and len(outputs) == 1 and len(reshaped) <= 2:
        advice = f"create the network with num_classes={outputs.pop()}"
    return f"{'; '.join(parts)}; {advice}"


def _listed(items: list[Any]) -> str:
    more = len(items) - SHOWN
    return ", ".join(map(str, items[:SHOWN])) + (f" and {more} more" if more > 0 else "")
