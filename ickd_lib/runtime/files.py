"""Files that are written completely or not at all, and fingerprints of values."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_lib.runtime.errors import InputError

PART = ".part"  # end of the name of a file that is not written completely


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    The caller writes to the yielded path, which lies in the same folder. When the block ends without an error,
    that file is flushed to the disk and replaces `path`; otherwise it is removed and `path` does not change. What a
    process of this machine left of the same file when it was killed is removed.

    Raises:
        OSError: the file cannot be written. The message contains its path and the cause.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_parts(path.parent, f".{path.name}.", ended=True)
    except OSError as error:
        raise write_error(error, path) from None
    beside = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{PART}")  # on a shared disk, hosts differ
    try:
        yield beside
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    except Exception as error:
        if _full(error, path.parent):
            raise write_error(OSError(errno.ENOSPC, ""), path) from None
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            raise write_error(error, path) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Raise InputError or OSError if a file cannot be written, before any long work starts."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); name another file") from None


def remove_parts(folder: Path, start: str = ".", *, ended: bool) -> None:
    """Remove what killed processes left of files.

    Args:
        folder: the folder of the files.
        start: how the names of the parts begin.
        ended: remove only those of processes of this machine that have ended; otherwise all.
    """
    for part in [p for p in folder.iterdir() if p.name.startswith(start) and p.name.endswith(PART)]:
        host, _, process = part.name.removesuffix(PART).rpartition("-")
        if not ended or (host.endswith(f".{platform.node()}") and process.isdecimal() and not alive(int(process))):
            with contextlib.suppress(OSError):
                part.unlink()


def alive(process: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, so that a power cut does not lose them."""
    folder = path.is_dir()
    try:
        number = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:  # Windows does not open folders
            return
        raise
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # the file system cannot do it
            raise
    finally:
        os.close(number)


def _full(error: Exception, folder: Path) -> bool:
    """Return whether an error came from a full disk. Some libraries raise errors of their own types then."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left" in str(error):
        return True
    try:
        return isinstance(error, (OSError, RuntimeError)) and shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


def write_error(error: OSError, path: Path) -> OSError:
    """Return an error with the path of the file that could not be written in its message, and of the same type."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, f"no space left while writing {path}; free some space and run again")
    return OSError(error.errno or errno.EIO, f"{path} cannot be written: {error.strerror or error}")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, completely or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file does not exist or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; is this a run folder?") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); restore or remove it") from None


class Pieces(NamedTuple):
    """A tensor in pieces along its first axis, for a fingerprint of more than fits into memory.

    dtype, shape: those of the whole tensor.
    tensors: the pieces in their order; all their other sizes are those of the whole tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    tensors: Iterable[Tensor]


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that change with the values, shape or type of any tensor and with any other value.

    Args:
        parts: tensors, whole or as `Pieces`, dictionaries of tensors, and values that can be written as JSON.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = Pieces(part.dtype, tuple(part.shape), (part,))
        if isinstance(part, Pieces):
            digest.update(f"{part.dtype}{part.shape}".encode())
            for one in part.tensors:
                digest.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, dict) and any(isinstance(v, Tensor) for v in part.values()):
            digest.update(fingerprint(*(x for key in sorted(part) for x in (key, part[key]))).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]
