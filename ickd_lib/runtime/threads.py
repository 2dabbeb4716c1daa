"""CPU threads: how many a training uses, and how many cores are free for them."""

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


@contextlib.contextmanager
def same_threads(count: int) -> Iterator[None]:
    """Inside the context torch uses `count` threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy_cores(seconds: float = 0.1) -> float:
    """How many cores other processes keep busy, measured while this one sleeps; 0 where the system does not tell.

    Processes of low priority (nice) do not count: they give way.
    """
    before = _ticks()
    time.sleep(seconds if before else 0)
    after = _ticks()
    if not before or not after or after[1] == before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1]) * (os.cpu_count() or 1)


def _ticks() -> tuple[int, int] | None:
    """Ticks that all cores spent busy at normal priority, and all ticks, since the system started."""
    try:
        user, _nice, system, *rest = map(int, STAT.read_text().splitlines()[0].split()[1:])
    except (OSError, ValueError):
        return None
    return user + system, user + _nice + system + sum(rest[:5])


def free_threads() -> int:
    """How many threads trainings on the CPU use in this process: torch's number, or fewer where cores are busy.

    Threads that share a core with another job make every parallel operation wait for the slowest one. The cores are
    measured once in a process for each number of threads, so that its trainings agree.
    """
    return _free_threads(torch.get_num_threads())


@cache
def _free_threads(threads: int) -> int:
    if threads == 1:
        return 1
    chosen = max(1, min(threads, round((os.cpu_count() or 1) - busy_cores())))
    if chosen < threads:
        notice(f"training uses {chosen} of {threads} threads, because other processes keep the other cores busy")
    return chosen
