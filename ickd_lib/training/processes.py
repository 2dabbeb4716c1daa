"""An executor that runs each call in a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import torch

from ickd_lib import runtime
from ickd_lib.runtime.arguments import Count, Natural, checked


class Processes(Executor):
    """Runs each call in a new process, of which up to `jobs` run at a time.

    Unlike a ProcessPoolExecutor, it goes on when a process dies; the future of that call then has the exception `Died`.
    The processes are numbered from 0 on; if there are GPUs, process i computes on GPU i, counted again from 0 when
    there are more processes than GPUs. Each process has its share of the CPU threads of this process, and of
    the cores for worker processes that decode images.

    Args:
        jobs: the largest number of processes.
        threads: CPU threads of each process; by default those of this process, divided by `jobs`.
    Raises:
        InputError: `jobs` is less than 1, or `threads` less than 0.
    """

    @checked
    def __init__(self, jobs: Count, *, threads: Natural = 0) -> None:
        self.threads = threads or max(1, runtime.free_threads() // jobs)
        self.jobs = jobs
        self._free, self._waiting = list(range(jobs)), deque[tuple[Future, Callable[..., Any], tuple, dict]]()
        self._lock, self._watchers, self._closed = threading.Lock(), set[threading.Thread](), False
        self._context = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        if self._closed:
            raise RuntimeError("the executor was shut down")
        future: Future = Future()
        with self._lock:
            self._waiting.append((future, fn, args, kwargs))
        self._start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        with self._lock:
            waiting = [call[0] for call in self._waiting]
        if cancel_futures:
            for future in waiting:
                future.cancel()
        while wait and (watchers := list(self._watchers)):
            for watcher in watchers:
                watcher.join()

    def _start(self) -> None:
        """Start processes for the calls that wait."""
        with self._lock:
            while self._free and self._waiting:
                future, *call = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    number = min(self._free)
                    self._free.remove(number)
                    watcher = threading.Thread(target=self._watch, args=(number, future, call), daemon=True)
                    self._watchers.add(watcher)
                    watcher.start()

    def _watch(self, number: int, future: Future, call: list[Any]) -> None:
        """Run one call in a new process and wait for its result."""
        try:
            receiver, sender = self._context.Pipe(duplex=False)
            process = self._context.Process(
                target=_child, args=(sender, number, self.threads, self.jobs, pickle.dumps(call))
            )
            process.start()
            sender.close()
            try:
                good, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                process.join()
                good, value = False, Died(process.exitcode)
            process.join()
        except BaseException as error:  # the call cannot be pickled, or there is no memory for a process
            good, value = False, error
        with self._lock:
            self._free.append(number)
        self._start()
        if good:
            future.set_result(value)
        else:
            future.set_exception(value)
        with self._lock:
            self._watchers.discard(threading.current_thread())


class Died(RuntimeError):
    """The exception of a call whose process ended without a result.

    Args:
        status: exit status of the process; negative for the number of the signal that killed it.
    """

    def __init__(self, status: int | None) -> None:
        self.status = status
        killed = status is not None and status < 0
        super().__init__(f"killed by {signal.Signals(-status).name}" if killed else f"exit status {status}")  # type: ignore[operator]

    def __reduce__(self) -> tuple:
        return Died, (self.status,)


def _child(sender: Any, number: int, threads: int, jobs: int, call: bytes) -> None:
    """Run a call in a new process and send its result."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the main process alone
    runtime.dealt_threads(threads, sharing=jobs)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    function, args, kwargs = pickle.loads(call)
    try:
        result = pickle.dumps((True, function(*args, **kwargs)))
    except BaseException as error:
        try:
            result = pickle.dumps((False, error))
            pickle.loads(result)  # an error of several arguments may be pickled and yet not be loaded
        except Exception:
            result = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    sender.send_bytes(result)
