"""Students that train together, and what each may use of the others' outputs and of its own earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.methods import InContextPair, Retrieval, TargetSource
from ickd_lib.runtime import Diverged
from ickd_lib.tasks import Samples, Task
from ickd_lib.training.data_parallel import AveragedGradients
from ickd_lib.training.state import TrainingState

Exchanged = tuple[tuple[TargetSource, ...], TargetSource | None]


class PeerGroup:
    """The students that use each other's outputs in every step; a student without peers is a group of its own.

    A student has a bank of its own if it or a peer retrieves from it, or if its method uses its earlier outputs. In a
    step, all banks are searched before any is written.

    Args:
        states: one or more students, which are sorted by name.
        task, train: the task and the training images, which define the rows of the banks.
    Attributes:
        fault: why the group diverged in the present step, if that was found in it.
        failed: the message of the error if the group diverged, else "".
    """

    def __init__(self, states: Sequence[TrainingState], task: Task, train: Images) -> None:
        self.states = sorted(states, key=lambda state: state.learner.name)
        self.failed = ""
        self.fault: Diverged | None = None
        self._averaged: AveragedGradients | None = None
        for state in self.states:
            searched = any(_requests(other, state) for other in self.states)
            if searched or "earlier" in state.learner.method.needs:
                state.keep_bank(task, train)

    @property
    def compares(self) -> bool:
        """Whether the samples of the whole batch are needed: by a method, or because banks are written in training."""
        written = any(state.memory or state.teacher_rows for state in self.states)
        return written or not all(state.learner.method.separable for state in self.states)

    def losses(self, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the losses that `compute` returns; several processes average the gradients of their weights."""
        if runtime.world() == 1:
            return compute()
        if self._averaged is None:
            learners = [state.learner for state in self.states]
            self._averaged = AveragedGradients([part for one in learners for part in (one.network, one.method)])
        return self._averaged(compute)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step of all students; while they are being restored, of the student that is furthest behind."""
        return min(state.position for state in self.states)

    @torch.no_grad()
    def exchange(self, samples: Sequence[Samples]) -> list[Exchanged]:
        """Return what each student may use of its peers and of its own earlier outputs.

        Args:
            samples: the samples of each student for the batch, in the order of `states`.
        Returns:
            For each student, its peers as sources of targets, and its own earlier output if its method needs it.
        """
        outputs = [one.detach() for one in samples]
        found: dict[tuple[int, Retrieval], InContextPair] = {}
        for searching in self.states:
            for i, state in enumerate(self.states):
                for spec in _requests(searching, state):
                    if (i, spec) not in found and state.retrieval_started(spec.start):
                        found[i, spec] = _retrieve(spec, state, outputs[i])
        exchanged: list[Exchanged] = []
        for own, state in enumerate(self.states):
            near = [
                {spec: found[i, spec] for spec in _requests(state, other) if (i, spec) in found}
                for i, other in enumerate(self.states)
            ]
            peers = tuple(TargetSource(outputs[i], retrieved=near[i]) for i in range(len(self.states)) if i != own)
            earlier = None
            if "earlier" in state.learner.method.needs:
                earlier = TargetSource(_earlier_output(state, outputs[own]), retrieved=near[own])
            exchanged.append((peers, earlier))
        return exchanged

    def write_banks(self, samples: Sequence[Samples]) -> None:
        """Write the outputs of the step into the students' own banks.

        Args:
            samples: the samples of each student for the batch, in the order of `states`.
        """
        for state, output in zip(self.states, samples, strict=True):
            if state.memory:
                now = state.epoch * state.steps + state.step
                momentum = state.learner.method.momentum
                state.memory.update(output.key, output.features, output.logits, momentum=momentum, step=now)


def _requests(searching: TrainingState, searched: TrainingState) -> list[Retrieval]:
    """Return what the method of one student retrieves from the bank of another, or from its own."""
    source = "self" if searching is searched else "peers"
    return [spec for spec in searching.learner.method.retrievals if spec.source == source]


def _retrieve(spec: Retrieval, state: TrainingState, output: Samples) -> InContextPair:
    """Return the in-context samples of a batch in a student's bank, with its own features of the views as queries."""
    bank, learner = state.memory, state.learner
    assert bank is not None
    query = output.features, output.labels, output.key
    if spec.order == "random":
        keys = learner.seed, state.epoch, state.step, "random neighbours"
        generator = runtime.generator(*keys, device=output.labels.device)
        return bank.random(*query, positives=spec.positives, negatives=spec.negatives, generator=generator)
    return bank.retrieve(
        *query, positives=spec.positives, negatives=spec.negatives, per_class=spec.per_class, allow_missing=True
    )


def _earlier_output(state: TrainingState, now: Samples) -> Samples:
    """Return the output in a student's bank for each sample, or the present output if the bank has none."""
    bank = state.memory
    assert bank is not None
    rows = bank.rows(now.key)
    filled = bank.filled[rows, None]
    features = bank.features[rows] * bank.norms[rows, None]
    logits = torch.where(filled, bank.logits[rows], now.logits)
    return Samples(logits, torch.where(filled, features, now.features), now.labels, now.key, now.image)
