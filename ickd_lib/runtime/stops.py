"""Requests to stop that a long computation notices between two of its blocks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ickd_lib.runtime.distributed import world

_noticed: list[threading.Event] = []


@contextlib.contextmanager
def stopping_between_blocks(stop: threading.Event) -> Iterator[None]:
    """In the context, let `between_blocks` raise KeyboardInterrupt once `stop` is set.

    This is for work before the first step of a training, which is done again after a stop. With several processes it
    has no effect, because they would have to stop at the same block.
    """
    _noticed.append(stop)
    try:
        yield
    finally:
        _noticed.remove(stop)


def between_blocks() -> None:
    """Raise KeyboardInterrupt if a stop was requested; a long computation calls this between its blocks."""
    if world() == 1 and any(stop.is_set() for stop in _noticed):
        raise KeyboardInterrupt("stopped before the first step; repeat the call or command to continue")
