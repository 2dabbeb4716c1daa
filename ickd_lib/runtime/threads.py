"""CPU threads: the number that a training uses, and the number of cores that are free for them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from ickd_lib.runtime.errors import notice

STAT = Path("/proc/stat")
_dealt: set[int] = set()  # numbers of threads that `dealt_threads` set
_sharing: list[int] = []  # number of processes that share the cores with this one, as `dealt_threads` set it


@contextlib.contextmanager
def same_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads to `count` inside the context, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy_cores(seconds: float = 0.1) -> float:
    """Measure how many cores other processes keep busy, while this process sleeps.

    Processes of low priority (nice) do not count, because they give way to others.

    Args:
        seconds: length of the measurement.
    Returns:
        The number of busy cores, which may be a fraction; 0 on a system without /proc/stat.
    """
    before = _ticks()
    time.sleep(seconds if before else 0)
    after = _ticks()
    if not before or not after or after[1] == before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1]) * (os.cpu_count() or 1)


def _ticks() -> tuple[int, int] | None:
    """Return the ticks of all cores since the system started: those that were busy at normal priority, and all.

    None on a system without /proc/stat.
    """
    try:
        user, _nice, system, *rest = map(int, STAT.read_text().splitlines()[0].split()[1:])
    except (OSError, ValueError):
        return None
    return user + system, user + _nice + system + sum(rest[:5])


def dealt_threads(count: int, sharing: int = 1) -> None:
    """Set torch's number of threads to `count`, and let trainings of this process use all of them.

    This is for a process that shares the cores with others, each of which was given its number of threads.

    Args:
        count: the number of threads.
        sharing: number of processes that share the cores, this one included.
    """
    torch.set_num_threads(count)
    _dealt.add(count)
    _sharing[:] = [sharing]


def own_cores() -> int:
    """Return this process's share of the cores of the machine, at least 1.

    The cores are those that the operating system allows this process to use. Processes that `torchrun` or an executor
    of jobs started on the machine divide them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = _sharing[0] if _sharing else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores // sharing)


def free_threads() -> int:
    """Return how many threads trainings on the CPU use in this process: torch's, or fewer if cores are busy.

    Threads that share a core with another job make every parallel operation wait for the slowest one. Busy cores
    are counted only once per process and number of threads, so that all its trainings use the same number.
    """
    threads = torch.get_num_threads()
    return threads if threads in _dealt else _free_threads(threads)


@cache
def _free_threads(threads: int) -> int:
    """Return `threads`, or fewer if cores are busy; the first result is kept."""
    if threads == 1:
        return 1
    chosen = max(1, min(threads, round((os.cpu_count() or 1) - busy_cores())))
    if chosen < threads:
        notice(f"training uses {chosen} of {threads} threads, because other processes keep the other cores busy")
    return chosen
