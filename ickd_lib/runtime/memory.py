"""How much memory is available for data."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

import torch

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # the control groups with their limits
GROUPS = Path("/proc/self/cgroup")  # the names of this process's groups
# Of the versions 2 and 1 of control groups: the files with the limit and with the bytes in use, and the name in
# memory.stat of the file cache among the latter that the kernel frees when memory is needed.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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
    """Return the bytes that are left of the memory limits of this process's control groups (cgroups) of Linux.

    A container, a systemd service and a job of Slurm are such groups. They may be nested; the group with the fewest
    bytes left decides. None if there is no limit.
    """
    left = []
    for folder in _groups():
        for limit, used, cache in FILES:
            with contextlib.suppress(OSError, ValueError):  # there is no such file, or no limit ("max")
                unused = int((folder / limit).read_text()) - int((folder / used).read_text())
                left.append(max(unused + _statistic(folder, cache), 0))
    return min(left, default=None)


def _groups() -> set[Path]:
    """Return the folders of the control groups that may limit this process's memory: its own and all around them."""
    folders = {GROUP, GROUP / "memory"}  # in a container these are often its own
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return folders
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        root = {"": GROUP, "memory": GROUP / "memory"}.get(controllers)  # of version 2, and of version 1
        if root and ".." not in path:
            own = PurePosixPath(path.lstrip("/"))
            folders |= {root / group for group in (own, *own.parents)}
    return folders


def _statistic(folder: Path, name: str) -> int:
    """Return a number of bytes in the file memory.stat of a control group; 0 if it is not there."""
    try:
        return int(dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())[name])
    except (OSError, KeyError, ValueError):
        return 0
