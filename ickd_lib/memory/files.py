"""The file of a memory bank: written at once or in parts, and read as a whole or mapped into memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.memory.bank import MemoryBank

KINDS = {"I64": torch.int64, "F32": torch.float32, "F16": torch.float16}  # names of types in a safetensors file
MAPPED = ("features", "logits")  # the tensors that are mapped; the others are small and are read


def save(bank: MemoryBank, path: str | Path) -> None:
    """Write a bank as a safetensors file, completely or not at all."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in bank.tensors.items()}
    with runtime.replacing(path) as part:
        save_file(tensors, part, metadata={"classes": json.dumps(bank.classes), "source": json.dumps(bank.source)})


@contextlib.contextmanager
def in_parts(
    path: str | Path, like: dict[str, Tensor], classes: tuple[str, ...], source: dict[str, str]
) -> Iterator[Callable[[str, int, Tensor], None]]:
    """Write the file of a bank in parts, completely or not at all.

    Args:
        path: the file, in the format of safetensors.
        like: tensors that have the names, shapes and types of those of the file. Their values are not read.
        classes, source: those of the bank.
    Yields:
        A function that writes rows: the name of a tensor, the position of the first row, and the rows.
    """
    kinds = {kind: name for name, kind in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": {"classes": json.dumps(classes), "source": json.dumps(source)}}
    end = 0
    for name, tensor in sorted(like.items(), key=lambda item: -item[1].itemsize):  # so that all are aligned
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with runtime.replacing(path) as part, open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)

        def write(name: str, first: int, rows: Tensor) -> None:
            each = like[name].nbytes // len(like[name])
            file.seek(8 + len(text) + header[name]["data_offsets"][0] + first * each)
            file.write(rows.cpu().contiguous().numpy().data)

        yield write


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
    if mapped and torch.device(device).type != "cpu":
        raise InputError(f"mapped=True keeps the bank in a file, not on {device}; leave one of the two out")
    try:
        if mapped:
            return _map(Path(path), names)
        with safe_open(path, "pt", device=str(device)) as file:
            meta = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in names}
            return {**tensors, "classes": tuple(meta["classes"]), "source": meta["source"]}
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a memory bank, or is damaged ({error}); build it again") from None


def _map(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return what `read` returns, with features and logits as views of the mapped file, and the map itself."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start, size = 8 + length, path.stat().st_size
        expected = start + max(header[name]["data_offsets"][1] for name in names)
        if size < expected:
            raise InputError(f"{path} is truncated: it has {size:,} of {expected:,} bytes; build it again")
        # A private map: what is written into it by mistake does not reach the file.
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    found = {}
    for name in names:
        entry = header[name]
        kind, (begin, end) = KINDS[entry["dtype"]], entry["data_offsets"]
        count = (end - begin) // kind.itemsize
        view = torch.frombuffer(whole, dtype=kind, count=count, offset=start + begin) if count else torch.empty(0)
        found[name] = view.to(kind).view(entry["shape"])
        if name not in MAPPED:
            found[name] = found[name].clone()
    meta = {key: json.loads(value) for key, value in header["__metadata__"].items()}
    return {**found, "classes": tuple(meta["classes"]), "source": meta["source"], "mapped": whole}
