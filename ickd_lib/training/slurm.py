"""An executor that runs its calls as jobs of Slurm, through submitit."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ickd_lib import runtime
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

# The options of `Slurm`, and their names in submitit.
OPTIONS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "exclude": "slurm_exclude",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "mem": "slurm_mem",
    "time": "timeout_min",
}
EXAMPLE = "partition=gpu,gpus=1,time=8:00:00"
LONGEST = 30 * 24 * 60  # time limit in minutes of the jobs on this machine


class Slurm(Executor):
    """Runs each call as a job of Slurm, through submitit.

    Args:
        folder: a folder on a disk that all machines share, for the files of submitit.
        options: options of the jobs as text, such as "partition=gpu,gpus=1,time=8:00:00". The keys are those of
            `OPTIONS`; "time", which is required, is in minutes or in one of Slurm's forms; "cluster=local" runs the
            jobs on this machine, without Slurm.
    Raises:
        InputError: an option is unknown or has no value, submitit is not installed, or Slurm is not found.
    """

    POLL = 1.0  # seconds between two looks at the jobs

    @checked
    def __init__(self, folder: str | Path, options: str) -> None:
        given = _parsed(options)
        try:
            import submitit
        except ImportError:
            raise InputError("submitit is not installed; run pip install submitit") from None
        cluster = runtime.choose(given.pop("cluster", "slurm"), ("slurm", "local"), "cluster")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError(
                "the command sbatch of Slurm is not found; run this where jobs are submitted, or use --jobs"
            )
        if cluster == "slurm" and "timeout_min" not in given:  # the default of submitit is five minutes
            raise InputError(f"--slurm {options} has no time limit; add time=…, as in {EXAMPLE}")
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self._executor.update_parameters(**{"name": "ickd", "timeout_min": LONGEST} | given)
        self._jobs: list[tuple[Future, Any]] = []
        self._lock, self._closed = threading.RLock(), False
        self._watcher: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        if self._closed:
            raise RuntimeError("the executor was shut down")
        future: Future = Future()
        with self._lock:  # submitit's view of the jobs is not made for several threads
            self._jobs.append((future, self._executor.submit(fn, *args, **kwargs)))
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            for future, _ in list(self._jobs):
                future.cancel()
        if wait and (watcher := self._watcher):
            watcher.join()

    def _watch(self) -> None:
        """Wait for all jobs and set the results of their futures."""
        while True:
            time.sleep(self.POLL)
            with self._lock:
                for future, job in list(self._jobs):
                    try:
                        self._look(future, job)
                    except Exception as error:  # an end of this thread would leave all futures without a result
                        self._jobs.remove((future, job))
                        if not future.done():
                            future.set_exception(error)
                if not self._jobs:
                    self._watcher = None
                    return

    def _look(self, future: Future, job: Any) -> None:
        """Update a future from the state of its job."""
        if future.cancelled():
            job.cancel(check=False)
        elif job.done():
            if not future.running() and not future.set_running_or_notify_cancel():
                pass  # it was cancelled just now, and has ended anyway
            elif error := job.exception():
                lost = type(error).__name__ == "UncompletedJobError"
                ended = f"job {job.job_id} ended without a result (state {job.state})"
                future.set_exception(RuntimeError(ended) if lost else error)
            else:
                future.set_result(job.result())
            for path in (job.paths.submitted_pickle, job.paths.result_pickle):
                path.unlink(missing_ok=True)
        else:
            if not future.running() and job.state == "RUNNING":
                future.set_running_or_notify_cancel()
            return
        self._jobs.remove((future, job))


def _parsed(text: str) -> dict[str, Any]:
    """Return the options in a text, by the names of submitit, and "cluster"."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        key = runtime.choose(key.strip(), [*OPTIONS, "cluster"], "key of --slurm")
        if not equals or not value.strip():
            raise InputError(f"--slurm {part} has no value; write it like {EXAMPLE}")
        found[OPTIONS.get(key, key)] = value.strip()
    for name in ("gpus_per_node", "cpus_per_task"):
        if name in found:
            if not found[name].isdecimal():
                raise InputError(
                    f"--slurm {name.split('_')[0]}={found[name]} is not a whole number; write it like {EXAMPLE}"
                )
            found[name] = int(found[name])
    if "timeout_min" in found:
        found["timeout_min"] = _minutes(found["timeout_min"])
    return found


def _minutes(text: str) -> int:
    """Return a time limit in minutes: "90", "90:00", "1:30:00", "2-0", "2-12:30" or "2-12:30:00", rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise InputError(f"--slurm time={text} is no time; write minutes, hours:minutes:seconds or days-hours:minutes")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        seconds = 86400 * days + 3600 * first + 60 * (second or 0) + (third or 0)  # type: ignore[operator]
    elif third is not None:
        seconds = 3600 * first + 60 * second + third  # type: ignore[operator]
    else:
        seconds = 60 * first + (second or 0)  # type: ignore[operator]
    if not seconds:
        raise InputError(f"--slurm time={text} must be above 0")
    return -(-seconds // 60)
