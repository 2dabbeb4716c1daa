"""In-context samples from the teacher's bank: tables that are computed once, or a search in every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ickd_lib.memory import InContext, MemoryBank, Neighbours
from ickd_lib.methods import InContextPair, Retrieval
from ickd_lib.tasks import Samples
from ickd_lib.training.state import TrainingState

Key = tuple[Retrieval, int]  # the requested samples, and the seed of random ones


class TeacherBank:
    """The teacher's bank with the in-context samples that the methods of some students request from it.

    Students with equal requests share them. Random samples depend on the student's seed too.

    Args:
        bank: the teacher's bank, on the training device.
        states: the students.
    """

    def __init__(self, bank: MemoryBank, states: Sequence[TrainingState]) -> None:
        self.bank = bank
        requested = [(state, spec) for state in states for spec in state.learner.method.retrievals]
        self._keys = {(state, spec): _key(state, spec) for state, spec in requested if spec.source == "teacher"}
        self._tables: dict[Key, tuple[Neighbours, Neighbours]] = {}
        for spec, seed in self._keys.values():
            if spec.query == "row":
                self._tables[spec, seed] = self._table(spec, (seed, 0) if spec.redraw else seed)
            else:
                bank.require(positives=spec.positives, negatives=spec.negatives, per_class=spec.per_class)
        # Computed here once, because students on different streams must not compute them at the same time.
        bank.class_means(), bank.class_sums(), bank.unit_logits()

    def begin_epoch(self, epoch: int) -> None:
        """Draw random samples anew if a method requests that. The tables keep their addresses, for captured steps."""
        for (spec, seed), table in self._tables.items():
            if spec.redraw:
                for old, new in zip(table, self._table(spec, (seed, epoch)), strict=True):
                    old.rows.copy_(new.rows)
                    old.similarity.copy_(new.similarity)

    def _table(self, spec: Retrieval, seed: object) -> tuple[Neighbours, Neighbours]:
        """Return positives and negatives of every row, each in its own order. Class means are computed in each step."""
        found = {}
        for order in (spec.order, spec.negatives_order):
            positives = spec.positives * (order == spec.order and order != "class")
            negatives = spec.negatives * (order == spec.negatives_order and order != "class")
            if order in found:
                continue
            if order == "random":
                found[order] = self.bank.random_table(positives=positives, negatives=negatives, seed=seed)
            else:
                found[order] = self.bank.table(positives=positives, negatives=negatives, per_class=spec.per_class)
        return found[spec.order][0], found[spec.negatives_order][1]

    @torch.no_grad()
    def retrieve(
        self, states: Sequence[TrainingState], keys: Tensor, labels: Tensor, teacher: Samples | None
    ) -> dict[TrainingState, dict[Retrieval, InContextPair]]:
        """Return the in-context samples of each student for each of its requests that this step uses.

        Args:
            states: the students that take the step.
            keys, labels: keys and labels of the samples of the batch, shape [S] each.
            teacher: the teacher's samples, whose features are the queries of a search in every step.
        """
        found: dict[Key, tuple[InContext, InContext]] = {}
        for key in dict.fromkeys(self._keys[state, spec] for state in states for spec in state.retrieves):
            spec = key[0]
            if key in self._tables:
                found[key] = self._from_tables(spec, self._tables[key], keys, labels)
            else:
                assert teacher is not None
                found[key] = self.bank.retrieve(
                    teacher.features,
                    labels,
                    keys,
                    positives=spec.positives,
                    negatives=spec.negatives,
                    per_class=spec.per_class,
                )
        return {state: {spec: found[self._keys[state, spec]] for spec in state.retrieves} for state in states}

    def _from_tables(
        self, spec: Retrieval, tables: tuple[Neighbours, Neighbours], keys: Tensor, labels: Tensor
    ) -> tuple[InContext, InContext]:
        """Return the present content of the in-context samples in two tables, or class means instead."""
        rows = self.bank.rows(keys)
        near = self.bank.gather(tables[0][rows], features=spec.features)
        far = self.bank.gather(tables[1][rows], features=spec.features, unit=spec.unit_negatives)
        if "class" in (spec.order, spec.negatives_order):
            own, others = self.bank.class_samples(keys, labels)
            near, far = own if spec.order == "class" else near, others if spec.negatives_order == "class" else far
        return near, far


def _key(state: TrainingState, spec: Retrieval) -> Key:
    """Return a request of a student with the seed of its random samples, by which students share tables."""
    return spec, state.learner.seed if "random" in (spec.order, spec.negatives_order) else 0
