"""Commands of `ickd` in forked children of a process that has imported everything, so that a kill costs no import."""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ickd_lib import __main__ as cli

TRACEBACK = 70  # exit status of a child that raised
MEMORY = 12 * 2**30  # bytes of address space that a child may have


class Child:
    """A forked process that runs a command.

    Args:
        arguments: the command line.
        log: file of what it prints.
        before: called in the child before the command.
        folder: working directory of the child.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        before: Callable[[], object] = lambda: None,
        folder: Path | None = None,
    ) -> None:
        self.log, self.status, self.ended = log, 0, False
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            status = TRACEBACK
            try:
                status = _run(arguments, log, before, folder)
            finally:  # also after Ctrl-C, so that the child does not go on as its parent would
                os._exit(status)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended, and return True; False if it has not after some seconds."""
        until = time.perf_counter() + seconds
        while not self.ended:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self.status, self.ended = os.waitstatus_to_exitcode(status), True
            elif time.perf_counter() >= until:
                return False
            else:
                time.sleep(0.002)
        return True

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        """Send a signal to the process and, with `group`, to the workers that it started; wait if it is SIGKILL."""
        if self.ended:
            return
        try:
            (os.killpg if group else os.kill)(self.process, number)
        except ProcessLookupError:  # it is not the leader of a group yet
            os.kill(self.process, number)
        if number == signal.SIGKILL:
            self.wait(60)

    @property
    def output(self) -> str:
        """What the process has printed."""
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""


def _run(arguments: list[str], log: Path, before: Callable[[], object], folder: Path | None) -> int:
    """Run a command in a child, and return its exit status."""
    status = TRACEBACK
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder or os.getcwd())
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        before()
        status = cli.main(arguments)
    except SystemExit as end:  # of --help and --version
        status = end.code if isinstance(end.code, int) else TRACEBACK
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    return status


def die_in_write(draw: random.Random) -> None:
    """Let this process be killed by the system in the middle of a write that would make a file too large."""
    limit = int(10 ** draw.uniform(3.7, 5.9))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def fail_in_write(draw: random.Random) -> None:
    """Let a write that would make a file too large raise an error."""
    limit = int(10 ** draw.uniform(3.7, 5.9))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def die_between_files(draw: random.Random) -> None:
    """Let this process end at a random call that creates, flushes, renames or removes a file, before or after it."""
    left = [draw.randrange(1, 60)]
    after = draw.random() < 0.5

    def watched(call: Callable) -> Callable:
        def counted(*args: object, **given: object) -> object:
            left[0] -= 1
            if left[0] == 0 and not after:
                os._exit(-signal.SIGKILL % 256)
            result = call(*args, **given)
            if left[0] == 0:
                os._exit(-signal.SIGKILL % 256)
            return result

        return counted

    for module, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (builtins, "open")):
        setattr(module, name, watched(getattr(module, name)))
