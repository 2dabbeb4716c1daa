"""The file of a memory bank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ickd_lib import runtime
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.memory.bank import MemoryBank


def save(bank: MemoryBank, path: str | Path) -> None:
    """Write a bank as a safetensors file, completely or not at all."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in bank.tensors.items()}
    with runtime.replacing(path) as part:
        save_file(tensors, part, metadata={"classes": json.dumps(bank.classes), "source": json.dumps(bank.source)})


def read(path: str | Path, names: Sequence[str], device: torch.device | str) -> dict[str, Any]:
    """Read the arguments of `MemoryBank` from a file that `save` wrote: the named tensors, the classes and the source.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"no bank at {path}; build it first (ickd bank)")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            meta = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in names}
            return {**tensors, "classes": tuple(meta["classes"]), "source": meta["source"]}
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not a memory bank, or is damaged ({error}); build it again") from None
