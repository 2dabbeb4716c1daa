"""Locks on run folders, which the operating system releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from ickd_lib.runtime.errors import InputError, notice
from ickd_lib.runtime.files import alive, write_error

LOCK = "training.lock"  # name of the lock file in a run folder
PATIENCE = 0.5  # seconds; `owner` locks a file for an instant

_held: set[IO[str]] = set()


def lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process has locked it.

    Raises:
        NotImplementedError: the system has no such locks.
        OSError: the file system has no such locks, as is the case on some network file systems.
    """
    try:
        import fcntl
    except ImportError:
        raise NotImplementedError("this system has no fcntl") from None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder, which is created if it does not exist, against a second training of the same run.

    The file training.lock in the folder is locked, and contains the process, the host and the time. It is removed at
    the end. On a system without fcntl there is no lock. On a file system without locks, training goes on after a
    note.

    Raises:
        InputError: another process trains the run.
    """
    file = _acquire(folder)
    try:
        yield
    finally:
        if file and not file.closed:  # a forked process has closed it
            (folder / LOCK).unlink(missing_ok=True)
            _held.discard(file)
            file.close()
            with contextlib.suppress(OSError):  # the folder stays unless it is empty, because nothing was trained
                folder.rmdir()


def remove_leftover(folder: Path) -> None:
    """Remove the lock file that a killed process left in a run folder, unless another process has locked it since."""
    with contextlib.suppress(OSError, NotImplementedError), open(folder / LOCK) as file:
        if lock(file):
            (folder / LOCK).unlink(missing_ok=True)


def _acquire(folder: Path) -> IO[str] | None:
    """Return the locked file; None on a system without locks."""
    until = time.monotonic() + PATIENCE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        try:
            file = open(path, "a+")
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        try:
            taken = lock(file)
        except NotImplementedError:
            file.close()
            path.unlink()
            return None
        except OSError as error:
            notice(f"{folder} is not locked against a second training, as its file system has no locks ({error})")
            taken = True
        if taken and _same(file, path):
            since = datetime.now().isoformat(" ", "seconds")
            try:
                file.truncate(0)
                file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
                file.flush()
            except OSError as error:  # the disk is full
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    file.close()
                with contextlib.suppress(OSError):
                    folder.rmdir()
                raise write_error(error, path) from None
            _held.add(file)
            return file
        owner = {} if taken else _content(file)
        file.close()
        if not taken and time.monotonic() > until:
            who = "process {process} on {host} since {since}".format(**owner) if owner else "another process"
            raise InputError(f"{folder} is being trained by {who}; wait for it, or stop it")
        time.sleep(0.02)


def owner(folder: Path) -> dict[str, Any] | None:
    """Return what trains a run: "process", "host" and "since", or {} if that is not known; None if nothing does.

    Nothing is written. Where the file system has no locks, a run is taken as being trained if the process exists, or if
    it is on another host.
    """
    try:
        with open(folder / LOCK) as file:
            found = _content(file)
            try:
                return None if lock(file, shared=True) else found
            except OSError:
                return found if found and (found["host"] != socket.gethostname() or alive(found["process"])) else None
    except (OSError, NotImplementedError):
        return None


def _same(file: IO[str], path: Path) -> bool:
    """Return whether `path` still names the open file, which its owner may have removed before it was locked here."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _content(file: IO[str]) -> dict[str, Any]:
    """Return the content of a lock file; {} if it is not complete."""
    try:
        file.seek(0)
        found = json.load(file)
        return {"process": int(found["process"]), "host": found["host"], "since": found["since"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _close_inherited() -> None:
    """Close the locked files in a forked process, which would otherwise keep the lock after its parent's end."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
