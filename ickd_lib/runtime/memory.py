"""How much memory is available for data."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # the limits of a container


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Return how many bytes of memory are available on this machine, and on a GPU if that is less; None if unknown."""
    found = [number for number in (_machine(), _container()) if number is not None]
    if torch.device(device).type == "cuda":
        found.append(torch.cuda.mem_get_info(torch.device(device))[0])
    return min(found, default=None)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error was raised because memory could not be allocated."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _machine() -> int | None:
    """Return the available bytes of this machine."""
    try:
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _container() -> int | None:
    """Return the bytes that are left of the limit of the container, if this process is in one."""
    try:
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        return max(limit - used, 0)
    except (OSError, ValueError):  # there is no limit ("max")
        return None
