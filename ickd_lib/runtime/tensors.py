"""Files of tensors: in the format of safetensors with a checksum, and those of `torch.save`."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ickd_lib.runtime.errors import InputError
from ickd_lib.runtime.files import replacing

# Names of types in a safetensors file.
KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
START = b'{"__metadata__": {"checksum": "'  # how the header of our files begins; then follow 8 hexadecimal digits
AT = 8 + len(START)  # their position; the first 8 bytes are the length of the header
BLOCK = 2**20  # bytes that are read at once


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, completely or not at all; see `writing_tensors`."""
    with writing_tensors(path, tensors, metadata) as write:
        for name, tensor in tensors.items():
            write(name, 0, tensor)


@contextlib.contextmanager
def writing_tensors(
    path: str | Path, like: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[str, int, Tensor], None]]:
    """Write a safetensors file in parts, completely or not at all.

    Its metadata contain "checksum": the CRC-32 of the whole file, in which these digits are 0. `check_tensors` compares
    it. Any reader of safetensors reads the file.

    Args:
        path: the file.
        like: tensors that have the names, shapes and types of those of the file. Their values are not read.
        metadata: texts by name.
    Yields:
        A function that writes rows: the name of a tensor, the position of the first row, and the rows.
    Raises:
        InputError: the format has no such type.
    """
    kinds = {kind: name for name, kind in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": {"checksum": "0" * 8, **(metadata or {})}}
    end = 0
    for name, tensor in sorted(like.items(), key=lambda item: -item[1].itemsize):  # so that all are aligned
        if tensor.dtype not in kinds:
            raise InputError(f"{path} cannot contain {name}, which is of type {tensor.dtype}; convert it")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as part, open(part, "w+b") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)

        def write(name: str, first: int, rows: Tensor) -> None:
            before = first * (like[name].nbytes // len(like[name])) if first else 0
            file.seek(8 + len(text) + header[name]["data_offsets"][0] + before)
            file.write(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

        yield write
        digits = b"%08x" % _checksum(file)
        file.seek(AT)
        file.write(digits)


def check_tensors(path: str | Path) -> None:
    """Check the checksum of a safetensors file. A file without one, such as one of another program, is accepted.

    The whole file is read, at about 3 GB per second from memory.

    Raises:
        InputError: the content is not the one that was written.
    """
    with open(path, "rb") as file:
        start = file.read(AT + 8)
        if start[8:AT] == START and start[AT:] != b"%08x" % _checksum(file):
            raise InputError(f"{path} is damaged: its checksum is wrong")


def _checksum(file: IO[bytes]) -> int:
    """Return the CRC-32 of an open file in which the digits of the checksum are 0."""
    file.seek(0)
    start = bytearray(file.read(BLOCK))
    start[AT : AT + 8] = b"0" * 8
    crc = zlib.crc32(start)
    while block := file.read(BLOCK):
        crc = zlib.crc32(block, crc)
    return crc


def save_object(path: str | Path, value: Any) -> None:
    """Write a value with `torch.save`, completely or not at all. The file contains a CRC-32 of each tensor."""
    with replacing(path) as part, open(part, "wb") as file:
        target, handled = _Target(file), sys.exc_info()[1]
        try:
            torch.save(value, cast(IO[bytes], target))
        except RuntimeError as error:
            # After an error of a write, or one that a signal raised, torch raises an error of its own.
            within = error.__context__ if error.__context__ is not handled else None
            if first := target.error or within:
                raise first from None
            raise


class _Target:
    """A file for `torch.save` that keeps the error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def check_object(path: str | Path) -> None:
    """Check every CRC-32 in a file of `torch.save`, which `torch.load` does not do. Other files are accepted.

    The whole file is read, at about 2 GB per second from memory.

    Raises:
        InputError: the content is not the one that was written.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            return
        try:
            wrong = zipfile.ZipFile(file).testzip()
        except Exception as error:  # damage may lead to many types
            if not_read(error) and getattr(error, "errno", None) != errno.EINVAL:  # of a wrong position in the file
                raise
            raise InputError(f"{path} is damaged: {reason(error)}") from None
    if wrong:
        raise InputError(f"{path} is damaged: the checksum of {wrong} is wrong")


def not_read(error: BaseException) -> bool:
    """Return whether an error while a file was read does not depend on its content: no permission, memory or disk."""
    if isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def reason(error: BaseException) -> str:
    """Return why a file was not read, in one line."""
    lines = ((error.strerror if isinstance(error, OSError) else "") or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
