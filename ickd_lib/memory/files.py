"""The file of a memory bank: written at once or in parts, and read as a whole or mapped into memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.memory.bank import MemoryBank

MAPPED = ("features", "logits")  # the tensors that are mapped; the others are small and are read


class Mapped(mmap.mmap):
    """A file that is mapped into memory, with its absolute path, by which another process finds it."""

    path: Path


def save(bank: MemoryBank, path: str | Path) -> None:
    """Write a bank as a safetensors file, completely or not at all."""
    runtime.save_tensors(path, bank.tensors, _metadata(bank.classes, bank.source))


def in_parts(
    path: str | Path, like: dict[str, Tensor], classes: tuple[str, ...], source: dict[str, str]
) -> contextlib.AbstractContextManager[Callable[[str, int, Tensor], None]]:
    """Write the file of a bank in parts, completely or not at all; see `runtime.writing_tensors`.

    Args:
        path: the file.
        like: tensors that have the names, shapes and types of those of the file. Their values are not read.
        classes, source: those of the bank.
    """
    return runtime.writing_tensors(path, like, _metadata(classes, source))


def _metadata(classes: tuple[str, ...], source: dict[str, str]) -> dict[str, str]:
    return {"classes": json.dumps(classes), "source": json.dumps(source)}


def read(path: str | Path, names: Sequence[str], device: torch.device | str, *, mapped: bool = False) -> dict[str, Any]:
    """Read the arguments of `MemoryBank` from a file that `save` wrote: the named tensors, the classes and the source.

    Args:
        path: the file.
        names: names of the tensors.
        device: the device of the tensors.
        mapped: map features and logits into memory instead of reading them, on the CPU.
    Raises:
        InputError: the file is missing, damaged or truncated, or is to be mapped on another device than the CPU.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"no bank at {path}; build it first (ickd bank)")
    if mapped and not str(device).startswith("cpu"):
        raise InputError(f"mapped=True keeps the bank in a file, not on {device}; leave one of the two out")
    device = runtime.device(device)
    try:
        open(path, "rb").close()  # the error of safetensors for a file without permission has no cause
        if mapped:
            found = _map(Path(path), names)
        else:
            with safe_open(path, "pt", device=str(device)) as file:
                found = {name: file.get_tensor(name) for name in names} | _described(file.metadata())
        runtime.check_tensors(path)
        return found
    except InputError as error:
        raise InputError(f"{error}; build it again") from None
    except (OSError, MemoryError, RuntimeError) as error:
        if not runtime.not_read(error):
            raise
        raise InputError(f"{path} cannot be read: {runtime.reason(error)}") from None
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise InputError(f"{path} is not a memory bank, or is damaged ({error}); build it again") from None


def _map(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return what `read` returns, with features and logits as views of the mapped file, and the map itself."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start, size = 8 + length, path.stat().st_size
        expected = start + max(header[name]["data_offsets"][1] for name in names)
        if size < expected:
            raise InputError(f"{path} is truncated: it has {size:,} of {expected:,} bytes")
        # A private map: what is written into it by mistake does not reach the file.
        whole = Mapped(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole.path = path.resolve()
    found = {}
    for name in names:
        entry = header[name]
        kind, (begin, end) = runtime.KINDS[entry["dtype"]], entry["data_offsets"]
        count = (end - begin) // kind.itemsize
        view = torch.frombuffer(whole, dtype=kind, count=count, offset=start + begin) if count else torch.empty(0)
        found[name] = view.to(kind).view(entry["shape"])
        if name not in MAPPED:
            found[name] = found[name].clone()
    return {**found, **_described(header["__metadata__"]), "mapped": whole}


def _described(metadata: dict[str, str]) -> dict[str, Any]:
    """Return classes and source from the metadata of a file."""
    return {"classes": tuple(json.loads(metadata["classes"])), "source": json.loads(metadata["source"])}
