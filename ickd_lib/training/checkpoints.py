"""Checkpoints: one file for all students of a peer group, so that a crash cannot leave them at different steps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from ickd_lib import runtime
from ickd_lib.methods import Method
from ickd_lib.runtime import InputError
from ickd_lib.training.peers import PeerGroup
from ickd_lib.training.records import RunRecord
from ickd_lib.training.state import TrainingState, not_finite

Records = dict[TrainingState, RunRecord]


class Checkpoint:
    """The checkpoint of a peer group. It lies in the run folder of the student whose name comes first.

    Args:
        group: the students.
        records: the records and the run folder of each student.
    """

    def __init__(self, group: PeerGroup, records: Records) -> None:
        self.group, self.records = group, records
        first = records[group.states[0]].run
        self.path: Path | None = first.folder / "checkpoint.pt" if first else None
        self.position: tuple[int, int] | None = None  # epoch and step of the file
        self._before = {state: _attributes(state.learner.method) for state in group.states}

    @property
    def kept(self) -> str:
        """The end of an error message, with the path of the last good checkpoint if there is one."""
        if self.path is None:
            return ""
        if self.position is None:
            return "; there is no checkpoint of it"
        epoch, step = self.position
        return f"; its last good checkpoint is {self.path}, of epoch {epoch + 1}, step {step}"

    def save(self) -> None:
        """Write the checkpoint, completely or not at all, after the records of the epochs before it.

        Raises:
            InputError: a run folder was removed.
            Diverged: a student has a loss or another value that is not finite; the previous checkpoint is kept.
        """
        for state in self.group.states:
            state.check_losses()
            state.check_weights(others=True)
        if self.path and runtime.rank() == 0:
            records = {state.learner.name: self.records[state] for state in self.group.states}
            for record in records.values():
                if record.run:
                    record.run.require()
                    record.run.flush_metrics()
            states = {
                state.learner.name: state.state_dict() | {"records": records[state.learner.name].epochs}
                for state in self.group.states
            }
            runtime.save_object(self.path, states)
            for state in self.group.states:
                self._note_of_attributes(state)
        self.position = self.group.position

    def _note_of_attributes(self, state: TrainingState) -> None:
        """Print a note if attributes of a method that a checkpoint does not contain have changed in the training."""
        before, method = self._before[state], state.learner.method
        present = _attributes(method)
        if changed := [name for name, value in present.items() if before.setdefault(name, value) != value]:
            runtime.notice(
                f"method {method.config['name'] or type(method).__name__!r} changes {', '.join(changed)} in training, "
                "which checkpoints do not contain, so a resumed run has other results; keep such a value in a tensor "
                "(register_buffer in setup), or compute a schedule from context.progress"
            )

    def restore(self) -> None:
        """Load the checkpoint if there is one, and drop the records of later epochs.

        Raises:
            InputError: the checkpoint is damaged or of peers with other names, or some of the run folders were removed
                or trained alone.
        """
        records = [self.records[state] for state in self.group.states]
        waiting = [state for state in self.group.states if not self.records[state].finished]
        runs = [record.run for record in records if record.run]
        if not (waiting and runs and self.path):
            return
        folders = ", ".join(str(run.folder) for run in runs)
        states: dict[str, Any] = {}
        if self.path.is_file():
            device = next(waiting[0].learner.network.parameters()).device
            try:
                runtime.check_object(self.path)
                states = self._by_name(torch.load(self.path, map_location=device, weights_only=True))
                missing = [name for state in waiting if (name := state.learner.name) not in states]
                for state in [] if missing else waiting:
                    state.load_state_dict(states[state.learner.name])
            except Exception as error:  # torch.load raises many types on a damaged file
                if runtime.not_read(error):
                    why = runtime.reason(error)
                    raise InputError(f"{self.path} cannot be read ({why}); keep it, and correct that first") from None
                if isinstance(error, InputError):
                    raise InputError(f"{error}; remove {folders} to train anew") from None
                what = type(error).__name__
                raise InputError(f"{self.path} is damaged ({what}); remove {folders} to train anew") from None
            if missing:
                raise InputError(
                    f"{self.path} holds the runs {', '.join(states)}, but not {', '.join(missing)}; give the run "
                    f"folders of peers their former names, or remove {folders} to train anew"
                )
            for state in waiting:
                if name := not_finite(states[state.learner.name]):
                    problem = f"{self.path} has values that are not finite ({name})"
                    raise InputError(f"{problem}; remove {folders} to train anew")
            self.position = self.group.position
        ahead = len(waiting) < len(runs)
        begun = ahead or self.path.is_file() or any((run.folder / "metrics.jsonl").is_file() for run in runs)
        removed = begun and not all(run.exists() for run in runs)
        if removed or (ahead and not all(state.finished for state in waiting)):
            raise InputError(
                f"peers train together, and some of {folders} were removed or trained alone; remove all to train anew"
            )
        for state in waiting:
            self.records[state].rewind(state.epoch, states.get(state.learner.name, {}).get("records", []))

    def restore_methods(self) -> None:
        """Load the parameters and buffers of the methods of finished students."""
        finished = [state.learner for state in self.group.states if self.records[state].finished]
        if not (stateful := [learner for learner in finished if learner.method.state_dict()]):
            return
        states = self._kept()
        for learner in stateful:
            try:
                learner.method.load_state_dict(states[learner.name]["method"])
            except Exception:  # of a damaged or removed file
                runtime.notice(f"the state of the method of {learner.name} is lost, because {self.path} is")

    def complete_records(self) -> None:
        """Write metrics.jsonl of finished students, if it was lost or shortened, anew from the checkpoint."""
        every = self.group.states[0].recipe.epochs
        short = [self.records[state] for state in self.group.states if self.records[state].finished]
        if not (short := [record for record in short if record.run and len(record.epochs) < every]):
            return
        states = self._kept()
        for record in short:
            kept = states.get(record.learner.name, {}).get("records", [])
            if record.run and len(kept) == every:
                record.epochs = kept
                record.run.keep_metrics(kept)
                runtime.notice(f"{record.run.folder}/metrics.jsonl is written anew from the checkpoint")

    def _kept(self) -> dict[str, Any]:
        """Return the states in the checkpoint; {} if it is lost, which finished students do not need."""
        with contextlib.suppress(Exception):  # torch.load raises many types on damage
            if self.path:
                runtime.check_object(self.path)
                return self._by_name(torch.load(self.path, map_location="cpu", weights_only=True))
        return {}

    def _by_name(self, states: dict[str, Any]) -> dict[str, Any]:
        """Return the states in a file by the names of the students; the folder of a single one may be renamed."""
        if len(states) == len(self.group.states) == 1:
            return {self.group.states[0].learner.name: next(iter(states.values()))}
        return states


def _attributes(method: Method) -> dict[str, str]:
    """Return the numbers, the texts, and the lists and tuples of these that a method and its modules have, as text."""
    return {
        f"{part}.{name}" if part else name: repr(value)
        for part, module in method.named_modules()
        for name, value in vars(module).items()
        if name != "training" and _plain(value)
    }


def _plain(value: Any) -> bool:
    several = isinstance(value, (list, tuple))
    return all(map(_plain, value)) if several else isinstance(value, (bool, int, float, str))
