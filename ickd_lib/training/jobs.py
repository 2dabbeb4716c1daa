"""The jobs of a comparison: what one job trains, and the run of all jobs on an executor."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ickd_lib import runtime
from ickd_lib.data import Splits
from ickd_lib.data.loader import WorkerDied
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.runtime.registry import MODULES
from ickd_lib.training.callbacks import Callback
from ickd_lib.training.distillation import distill
from ickd_lib.training.loop import Loop, stop_training, stoppable
from ickd_lib.training.processes import Processes
from ickd_lib.training.records import History
from ickd_lib.training.students import Student

INPUTS = "inputs.pt"  # the file with the inputs of all jobs
WATCH = 1.0  # seconds after which a job looks again whether it is to stop
POLL = 0.5  # seconds after which the main process looks again whether Ctrl-C was pressed


class JobsDied(Diverged):
    """Raised where jobs of a comparison ended without a result again and again.

    The message names the jobs and their logs, and the students that diverged. `histories` contains the students that
    were trained to the end.
    """


@dataclass
class Outcome:
    """What a job returns.

    histories: the students that were trained to the end, by their position in the job.
    diverged: the messages of those that diverged, else "".
    stopped: whether the training was stopped, after the checkpoints were written.
    wrong: an error in the input or the files, which another attempt would not change.
    died: any other error in one line, else "".
    seconds: the time that the job took.
    weights: in place of `histories`, the same by name with the weights of networks and methods that cannot be pickled.
    """

    histories: dict[int, History] = field(default_factory=dict)
    diverged: str = ""
    stopped: bool = False
    wrong: Exception | None = None
    died: str = ""
    seconds: float = 0.0
    weights: dict[int, dict[str, Any]] = field(default_factory=dict)

    def pickled(self) -> bytes:
        """Return the outcome, pickled, with `weights` if a network or a method cannot be pickled.

        Such are those with torch.nn.utils.parametrizations or with a lambda.
        """
        try:
            return _saved(self)
        except Exception:  # each kind of object raises an error of its own type
            weights = {
                position: {
                    **vars(history),
                    "network": history.network.state_dict(),
                    "method": history.method.state_dict(),
                }
                for position, history in self.histories.items()
            }
            return _saved(replace(self, histories={}, weights=weights))


def train(students: Sequence[Student], splits: Splits, **options: Any) -> Outcome:
    """Train students with `distill`, and return their histories also if some diverge."""
    try:
        histories, diverged = distill(students, splits, **options), ""
    except Diverged as error:
        histories, diverged = error.histories, str(error)
    return Outcome({history.position: history for history in histories.values()}, diverged)


@dataclass(frozen=True)
class Job:
    """One job: students that are trained together, in a process of an executor.

    name: what is printed of the job.
    folder: folder of the inputs that all jobs share, and of the logs.
    students, data_seed: as for `distill`.
    again: whether an earlier attempt died or was stopped, so that its runs are resumed.
    stop: name of the file in `folder`; the job stops when it exists.
    caller: the process that waits for the job.
    modules: modules to import in another process, because they register methods, data sets or tasks of one's own.
    """

    name: str
    folder: Path
    students: tuple[Student, ...]
    data_seed: int
    again: bool = False
    stop: str = "stop"
    caller: str = field(default_factory=lambda: _process())
    modules: tuple[str, ...] = field(default_factory=lambda: tuple(sorted(MODULES)))

    @property
    def log(self) -> Path:
        """The file with everything that the job prints."""
        return self.folder / f"{self.name.replace(', ', '-').replace(' ', '')}.log"

    def __call__(self) -> bytes:
        """Train the students.

        Returns:
            The `Outcome`, pickled, so that no tensor in it depends on the process, which may have ended by then.
        """
        began = time.perf_counter()
        apart = self.caller != _process()
        with self._apart() if apart else contextlib.nullcontext():
            try:
                outcome = self._train()
                outcome.seconds = time.perf_counter() - began
                return outcome.pickled()
            except KeyboardInterrupt:
                if not apart:
                    raise
                outcome = Outcome(stopped=True)
            except Exception as error:
                if apart:
                    traceback.print_exc()  # into the log
                if isinstance(error, WorkerDied):
                    outcome = Outcome(died=str(error))
                elif isinstance(error, (InputError, OSError)):
                    outcome = Outcome(wrong=error)
                else:
                    outcome = Outcome(died=_line(error))
        outcome.seconds = time.perf_counter() - began
        return outcome.pickled()

    def _train(self) -> Outcome:
        if (self.folder / self.stop).exists():
            return Outcome(stopped=True)
        for module in self.modules:
            importlib.import_module(module)
        # Tensors stay in the file until they are used, and jobs on one machine share the memory of what they read.
        given: dict[str, Any] = torch.load(self.folder / INPUTS, map_location="cpu", mmap=True, weights_only=False)
        splits = given.pop("splits")
        splits = splits() if callable(splits) else splits
        if self.again:
            given["resume"] = True
        if self.caller != _process():
            given["callbacks"] = [*given.get("callbacks", ()), EpochLines()]
        outcome = train(self.students, splits, data_seed=self.data_seed, **given)
        for history in outcome.histories.values():
            history.network.cpu()
            history.method.cpu()
        return outcome

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """In a process of its own, print to the log, and stop on request.

        A job stops when the file `stop` appears, when the process that started it dies, or when Slurm is about to end
        it, for which submitit sends SIGUSR2.
        """
        ended, asked = threading.Event(), threading.Event()
        parent = multiprocessing.parent_process()

        def watch() -> None:
            while not ended.wait(WATCH):
                if asked.is_set() or (self.folder / self.stop).exists() or (parent and not parent.is_alive()):
                    stop_training()

        if hasattr(signal, "SIGUSR2") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR2, lambda *_: asked.set())
        threading.Thread(target=watch, daemon=True).start()
        try:
            with _printing_to(self.log):
                started = time.strftime("%Y-%m-%d %H:%M:%S")
                print(f"{self.name}, started {started}, process {os.getpid()} on {socket.gethostname()}", flush=True)
                yield
        finally:
            ended.set()


class EpochLines(Callback):
    """Prints a line for each student and epoch into the log of a job."""

    def epoch(self, training: Loop) -> None:
        for state in training.ended:
            record = training.records[state].epochs[-1]
            tested = record.get(f"test_{training.task.primary}")
            shown = "" if tested is None else f", test {training.task.primary} {tested:.2%}"
            done = f"epoch {record['epoch']}/{training.recipe.epochs}"
            print(f"{done}: {state.learner.name}, loss {record['loss']:.4f}{shown}", flush=True)


def run(jobs: Sequence[Job], executor: Executor, *, retries: int, progress: bool) -> list[Outcome]:
    """Run jobs on an executor.

    A job that dies is run again up to `retries` times and continues from its checkpoint. A job that was stopped from
    outside after it wrote its checkpoint, as at the end of a time limit of Slurm, is run again each time. If a process
    pool breaks, because one of its processes died, the jobs go on in as many processes of `Processes`.

    Args:
        jobs: the jobs, whose inputs were written.
        executor: it pickles a job and calls it in another process, or calls it at once in this one.
        retries: how often a job that died is run again.
        progress: whether to print a line for each job that ends.
    Returns:
        The outcome of each job. `died` is set for those that died too often.
    Raises:
        KeyboardInterrupt: Ctrl-C stopped the jobs. Those that were training have written their checkpoints.
    """
    _check(executor)
    jobs, began = list(jobs), time.perf_counter()
    found: dict[int, Outcome] = {}
    deaths, running = [0] * len(jobs), dict[int, Any]()
    ended: queue.Queue[tuple[int, Any, Outcome | BaseException]] = queue.Queue()
    own: Processes | None = None

    def submit(i: int) -> None:
        try:
            running[i] = (own or executor).submit(jobs[i])
        except BrokenExecutor as error:
            running[i] = None
            ended.put((i, None, error))
        else:
            threading.Thread(target=_wait, args=(i, running[i], ended), daemon=True).start()

    hidden = {} if progress else {"disable": True}  # where it is not given, tqdm reads TQDM_DISABLE
    with stoppable() as stop, tqdm(total=len(jobs), unit="job", file=runtime.stream(), **hidden) as bar:
        try:
            for i in range(len(jobs)):
                submit(i)
            while running:
                try:
                    i, future, outcome = ended.get(timeout=POLL)
                except queue.Empty:
                    outcome = None
                if stop.is_set() or isinstance(outcome, KeyboardInterrupt):
                    bar.write("stopping the jobs; each writes its checkpoint", sys.stderr)
                    raise KeyboardInterrupt("stopped; the same call or command continues from here")
                if outcome is None or running.get(i) is not future:
                    continue
                if isinstance(outcome, BrokenExecutor) and own is None:
                    runtime.notice("the process pool is broken; its jobs go on in processes of their own")
                    _stop(jobs[0].folder, {"stop"}, ())
                    executor.shutdown()
                    own = Processes(getattr(executor, "_max_workers", None) or 1)
                    for other in list(running):
                        jobs[other] = replace(jobs[other], again=True, stop="stop again")
                        submit(other)
                    continue
                if isinstance(outcome, (InputError, OSError)):
                    outcome = Outcome(wrong=outcome)
                elif isinstance(outcome, BaseException):
                    outcome = Outcome(died=_line(outcome))
                deaths[i] += bool(outcome.died)
                if outcome.stopped or (outcome.died and deaths[i] <= retries):
                    why = outcome.died or "it was stopped"
                    bar.write(f"{jobs[i].name} is run again ({why})", sys.stderr)
                    jobs[i] = replace(jobs[i], again=True)
                    submit(i)
                    continue
                del running[i]
                found[i] = outcome
                bar.update()
                if progress:
                    what = "failed" if outcome.died or outcome.wrong else "diverged" if outcome.diverged else "done"
                    bar.write(f"{jobs[i].name}: {what} after {outcome.seconds:.0f} s", sys.stderr)
            if progress:
                taken, good = time.perf_counter() - began, sum(not (o.died or o.wrong) for o in found.values())
                bar.write(f"{good} of {len(jobs)} jobs done in {taken:.0f} s", sys.stderr)
        except BaseException:
            _stop(jobs[0].folder, {jobs[i].stop for i in running}, running.values())
            raise
        finally:
            if own:
                own.shutdown()
    for i, outcome in found.items():
        if outcome.died:
            outcome.died = f"{jobs[i].name} died {deaths[i]} times ({outcome.died}), see {jobs[i].log}"
    return [found[i] for i in range(len(jobs))]


def _check(executor: Executor) -> None:
    """Raise InputError if trainings cannot run on an executor."""
    if isinstance(executor, ThreadPoolExecutor):
        raise InputError("threads of one process share random numbers; give an executor of processes")
    context = getattr(executor, "_mp_context", None)
    forks = isinstance(context, BaseContext) and context.get_start_method() == "fork"
    if forks and (torch.get_num_threads() > 1 or torch.cuda.is_initialized()):
        raise InputError(
            "trainings hang in a process pool that forks after torch has used several threads or a GPU; give "
            "ProcessPoolExecutor(N, multiprocessing.get_context('spawn')), or training.Processes(N)"
        )


def write_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    """Write what all jobs share into one file, so that it is not sent to each job.

    Args:
        folder: a folder that all jobs can read.
        inputs: the data, or a function that makes them, as "splits"; and arguments of `distill`.
    Raises:
        InputError: something cannot be pickled.
    """
    try:
        runtime.save_object(folder / INPUTS, inputs)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(
            f"the inputs of the jobs cannot be pickled ({error}); define functions and classes in a module"
        ) from None


def _stop(folder: Path, names: set[str], futures: Any) -> None:
    """Request jobs to stop, cancel those that wait, and wait for the others."""
    for name in names:
        (folder / name).touch()
    waiting = [future for future in futures if future is not None and not future.cancel()]
    for future in waiting:
        with contextlib.suppress(Exception):  # a second Ctrl-C ends the waiting
            future.result()


def _wait(i: int, future: Any, ended: queue.Queue) -> None:
    """Put the outcome of a job into a queue when it has ended."""
    try:
        found = torch.load(io.BytesIO(future.result()), weights_only=False)
    except BaseException as error:
        found = error
    ended.put((i, future, found))


def _saved(outcome: Outcome) -> bytes:
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    return buffer.getvalue()


def _line(error: BaseException) -> str:
    """Return an error as one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _process() -> str:
    """Return a name of this process that is unique among all hosts."""
    return f"{socket.gethostname()} {os.getpid()}"


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Append all output of this process to a file."""
    streams: list[tuple[Callable[[], None], int]] = [(sys.stdout.flush, 1), (sys.stderr.flush, 2)]
    before = [os.dup(number) for _, number in streams]
    with open(path, "ab") as file:
        try:
            for flush, number in streams:
                flush()
                os.dup2(file.fileno(), number)
            yield
        finally:
            for (flush, number), kept in zip(streams, before, strict=True):
                flush()
                os.dup2(kept, number)
                os.close(kept)
