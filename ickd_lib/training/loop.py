"""The epochs of a training: steps, checkpoints, evaluation, records, and the callbacks around them."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from ickd_lib import runtime
from ickd_lib.data import Splits
from ickd_lib.data.loader import GRACE
from ickd_lib.runtime import Diverged, NotFinite
from ickd_lib.runtime.distributed import any_process, wait_for_all
from ickd_lib.tasks import Task
from ickd_lib.training.callbacks import Callback
from ickd_lib.training.checkpoints import Checkpoint, Records
from ickd_lib.training.peers import PeerGroup
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.state import TrainingState
from ickd_lib.training.stepper import Stepper
from ickd_lib.training.teacher_cache import AHEAD

AGREE = 8  # steps after which several processes agree on whether to stop or to write checkpoints
WAIT = 0.5  # seconds by which the host may run ahead of a GPU
_stops: list[threading.Event] = []  # the events that `stoppable` has yielded in this process


class Loop:
    """Trains peer groups to the end of the recipe. Callbacks receive this object.

    Args:
        checkpoints: the peer groups, each at the position of its checkpoint.
        records: the run folder and the records of each student.
        splits: the data.
        task: defines the samples of an image and the metrics.
        stepper: takes the steps.
        recipe: the settings of the training.
        data_seed: seed of the order and the augmentation.
        evaluate_every: epochs between evaluations.
        checkpoint_seconds: seconds between checkpoints.
        callbacks: hooks, which are called in this order.
    Attributes:
        epoch, step: number of epochs that are done, and of steps that are done in the present epoch.
        steps: number of steps in an epoch.
        ended: the states of the students that have just completed an epoch, for `Callback.epoch`.
    """

    def __init__(
        self,
        checkpoints: Mapping[PeerGroup, Checkpoint],
        records: Records,
        splits: Splits,
        task: Task,
        stepper: Stepper,
        *,
        recipe: Recipe,
        data_seed: int,
        evaluate_every: int,
        checkpoint_seconds: float,
        callbacks: Sequence[Callback],
    ) -> None:
        self.checkpoints, self.groups, self.records = checkpoints, list(checkpoints), records
        self.splits, self.task, self.stepper = splits, task, stepper
        self.recipe, self.data_seed, self.evaluate_every = recipe, data_seed, evaluate_every
        self.checkpoint_seconds, self.callbacks = checkpoint_seconds, callbacks
        self.steps, self.ended = stepper.steps, list[TrainingState]()
        self.epoch, self.step = min(group.position for group in checkpoints)
        self.device = stepper.order.device

    @property
    def going(self) -> list[PeerGroup]:
        """The groups that have not diverged."""
        return [group for group in self.groups if not group.failed]

    @property
    def states(self) -> list[TrainingState]:
        """The students of these groups."""
        return [state for group in self.going for state in group.states]

    def train(self, stop: threading.Event) -> None:
        """Train to the end. A group that diverges is not trained further and keeps its last good checkpoint.

        Args:
            stop: when it is set, training ends after the present step.
        Raises:
            KeyboardInterrupt: training was stopped, after the checkpoints were written.
        """
        self.saved = self.waited = time.perf_counter()
        started = []
        try:
            for callback in self.callbacks:
                callback.start(self)
                started.append(callback)
            while self.going and self.epoch < self.recipe.epochs:
                self._epoch(stop)
            self.save()
        finally:
            for callback in started:
                callback.end(self)

    def _epoch(self, stop: threading.Event) -> None:
        """Train the rest of the present epoch, from `self.step` on."""
        began, first = time.perf_counter(), self.step
        self.stepper.begin(self.data_seed, self.epoch, first)
        for step in range(first, self.steps):
            ahead = AHEAD[self.device.type]
            if self.stepper.teacher and (step - first) % ahead == 0:
                self.stepper.teacher.fill(*self.stepper.planned(step, ahead))
            # A group that was resumed at a later step joins when the others have reached it.
            stepping = [group for group in self.going if group.position == (self.epoch, step)]
            if stepping:
                self.stepper.take(stepping, step)
            self.step = step + 1
            stopping, saving = self._requested(stop, step)
            self._synchronise(saving or step == self.steps - 1)
            # A GPU's losses are read at the end of an epoch and before a checkpoint.
            self._check(stepping if self.device.type == "cpu" else [group for group in stepping if group.fault])
            behind = min((group.position for group in self.going), default=(self.recipe.epochs, 0))
            if behind > (self.epoch, self.step):  # all groups here have diverged, and those that were resumed are ahead
                self.epoch, self.step = behind
                return
            now = time.perf_counter()
            for group in stepping:
                for state in group.states:
                    state.seconds += now - began
            if saving:
                self.save()
                self.saved = time.perf_counter()
                if stopping:
                    wait_for_all()  # torchrun ends the others when one ends, and the first one is still writing
                    raise stopped(self)
            for callback in self.callbacks:
                callback.step(self)
            began = time.perf_counter()
        self._end_epoch()

    def _requested(self, stop: threading.Event, step: int) -> tuple[bool, bool]:
        """Return whether training must stop after this step, and whether checkpoints must be written.

        Several processes decide together, every `AGREE` steps.
        """
        stopping = stop.is_set()
        saving = stopping or time.perf_counter() - self.saved > self.checkpoint_seconds
        if runtime.world() > 1:
            if step % AGREE and step != self.steps - 1:
                return False, False
            stopping, saving = any_process(stopping, saving)
        return stopping, saving

    def _synchronise(self, now: bool) -> None:
        """Wait for a GPU, so that times, the progress bar and Ctrl-C refer to work that is done.

        Args:
            now: wait in any case; otherwise wait only if the last wait was more than `WAIT` seconds ago.
        """
        if self.device.type == "cuda" and (now or time.perf_counter() - self.waited > WAIT):
            torch.cuda.synchronize(self.device)
            self.waited = time.perf_counter()

    def _check(self, groups: Sequence[PeerGroup]) -> None:
        """Mark each group that has diverged, so that it is not trained further."""
        for group in groups:
            try:
                if group.fault:
                    raise group.fault
                for state in group.states:
                    state.check_losses()
            except Diverged as error:
                self._fail(group, error)

    def _fail(self, group: PeerGroup, error: Diverged) -> None:
        """Mark a group as diverged, and write the reason into its run folders."""
        advice = "lower the learning rate or lengthen the warm-up"
        taught = any(state.learner.method.needs_teacher for state in group.states)
        if taught and error.step is not None and not self.stepper.teacher_is_finite(error.step):
            advice = "the teacher's output for these images is not finite"
        group.failed = f"{error}; {advice}{self.checkpoints[group].kept}"
        for state in group.states:
            self.records[state].fail(group.failed)

    def _end_epoch(self) -> None:
        """Evaluate and record the epoch, and go to the next one."""
        ended = [group for group in self.going if group.position == (self.epoch, self.steps)]
        self._check(ended)
        for group in ended:
            if not group.failed:
                self._record(group)
        self.ended = [state for group in ended if not group.failed for state in group.states]
        for state in self.ended:
            state.end_epoch()
        self.epoch, self.step = self.epoch + 1, 0
        for callback in self.callbacks:
            callback.epoch(self)

    def _record(self, group: PeerGroup) -> None:
        """Evaluate and record the epoch that a group has completed. It may show that the group has diverged."""
        evaluate = self.epoch + 1 == self.recipe.epochs or (self.epoch + 1) % self.evaluate_every == 0
        try:
            for state in group.states:
                state.share_buffers()
                state.check_weights()
                try:
                    self.records[state].end_epoch(state, self.splits, self.task, self.stepper.precision, evaluate)
                except NotFinite as error:
                    where = f"at epoch {state.epoch + 1}, step {state.step}"
                    raise Diverged(f"{state.learner.name}: {error} {where}") from None
        except Diverged as error:
            self._fail(group, error)

    def save(self) -> None:
        """Write the checkpoint of every group. A group that has diverged keeps its last good checkpoint."""
        for group in self.going:
            for state in group.states:
                state.share_buffers()
            try:
                self.checkpoints[group].save()
            except Diverged as error:
                self._fail(group, error)


def stopped(loop: Loop) -> KeyboardInterrupt:
    """Return the exception for a training that was stopped."""
    kept = all(loop.records[state].run for state in loop.states)
    return KeyboardInterrupt(
        "stopped; the same call or command continues from here" if kept else "stopped; nothing was saved"
    )


def stop_training() -> None:
    """Stop the training of this process between two steps, as Ctrl-C does; without a training, do nothing."""
    for stop in _stops:
        stop.set()


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, to stop training between two steps.

    A second Ctrl-C stops at once, and so does a SIGTERM that comes GRACE seconds or more after the first signal. Slurm
    and torchrun each send SIGTERM, one shortly after the other. Before the first step, the computation of a bank and of
    its in-context samples notices the event too (`runtime.between_blocks`).
    """
    stop, since = threading.Event(), math.inf
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        nonlocal since
        since = min(since, time.monotonic())
        if stop.is_set() and (number == signal.SIGINT or time.monotonic() - since > GRACE):
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _stops.append(stop)
    try:
        yield stop
    finally:
        _stops.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)
