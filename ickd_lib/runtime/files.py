"""Files that are written completely or not at all, and fingerprints of values."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_lib.runtime.errors import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    The caller writes to the yielded path, which lies in the same folder. When the block ends without an error,
    that file replaces `path`; otherwise it is removed and `path` does not change.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")  # on a shared disk, hosts differ
    try:
        yield beside
        os.replace(beside, path)
    except Exception as error:
        if _full(error, path.parent):
            raise OSError(errno.ENOSPC, f"no space left while writing {path}; free some space and run again") from None
        raise
    finally:
        beside.unlink(missing_ok=True)


def _full(error: Exception, folder: Path) -> bool:
    """Return whether an error came from a full disk. torch and safetensors raise errors of their own types then."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left" in str(error) or (isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 2**20)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, completely or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file does not exist or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; is this a run folder?") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); restore or remove it") from None


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that change with the values, shape or type of any tensor and with any other value.

    Args:
        parts: tensors, dictionaries of tensors, and values that can be written as JSON.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, dict) and any(isinstance(v, Tensor) for v in part.values()):
            digest.update(fingerprint(*(x for key in sorted(part) for x in (key, part[key]))).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]
