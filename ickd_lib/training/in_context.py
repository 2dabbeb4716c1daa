"""In-context samples from the teacher's bank: tables that are computed once, or a search in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.memory import Faiss, MemoryBank, Neighbours
from ickd_lib.methods import InContextPair, Retrieval
from ickd_lib.tasks import Samples, mean_of_each
from ickd_lib.training.state import TrainingState

Key = tuple[Retrieval, int]  # the requested samples, and the seed of random ones


class TeacherBank:
    """The teacher's bank with the in-context samples that the methods of some students request from it.

    Students with equal requests share them. Random samples depend on the student's seed too. A student whose method
    requests a dynamic bank has its own copy of the bank (`TrainingState.teacher_rows`), which `write` changes.

    Args:
        bank: the teacher's bank, on the training device. It may have rows of more samples than the training samples.
        states: the students.
        keys: keys of the training samples.
        allow_missing: whether in-context samples are masked where a class has too few rows, and a note is printed;
            otherwise that is an error.
        search: how the nearest negatives in tables are found; see `MemoryBank.table`.
        unlabelled: whether some training samples have no label. Theirs are then those of their rows, samples are masked
            where a class has too few rows, and a sample whose row is empty has no in-context samples.
    Attributes:
        own: the rows of the training samples, for methods that need the bank itself; the bank if it has no others, or
            if there is no such method.
    """

    def __init__(
        self,
        bank: MemoryBank,
        states: Sequence[TrainingState],
        keys: Tensor,
        *,
        allow_missing: bool = False,
        search: str | Faiss = "exact",
        unlabelled: bool = False,
    ) -> None:
        self.allow_missing = allow_missing = allow_missing or unlabelled
        self.search, self.unlabelled = search, unlabelled
        self.bank = self.own = bank
        self._queries: Tensor | None = None  # positions of the training samples in a larger bank
        self._place = torch.arange(len(bank), device=bank.labels.device)  # of each row of the bank in the tables
        queries = bank.rows(keys).unique()
        if len(queries) < len(bank):
            self._queries = queries
            if any("bank" in state.learner.method.needs for state in states):
                self.own = bank.subset(queries)
            self._place = torch.full_like(self._place, -1)
            self._place[queries] = torch.arange(len(queries), device=queries.device)
        requested = [(state, spec) for state in states for spec in state.learner.method.retrievals]
        self._keys = {(state, spec): _key(state, spec) for state, spec in requested if spec.source == "teacher"}
        self._tables: dict[Key, tuple[Neighbours, Neighbours]] = {}
        for spec, seed in self._keys.values():
            if spec.query == "row":
                self._tables[spec, seed] = self._table(spec, (seed, 0) if spec.redraw else seed)
            elif not allow_missing:
                counts = {"positives": spec.positives, "negatives": spec.negatives}
                bank.require(**counts, per_class=spec.per_class, rows=self._queries)
            if allow_missing and spec.order != "class":
                self._note_missing(spec.positives)
        # Computed here once, because students on different streams must not compute them at the same time.
        for one in (self.bank, self.own):
            one.prepare()
        for state in states:
            if changing := [spec for spec in state.learner.method.retrievals if spec.dynamic]:
                state.keep_teacher_rows(bank, features=any(spec.view_features for spec in changing))

    def _note_missing(self, positives: int) -> None:
        """Print which classes have too few rows for this number of positives."""
        sizes = torch.bincount(self.bank.labels, minlength=len(self.bank.classes)).tolist()
        few = [repr(name) for name, size in zip(self.bank.classes, sizes, strict=True) if 0 < size <= positives]
        if few:
            runtime.notice(
                f"the bank has fewer than {positives} other rows of class {', '.join(few)}; the samples of these "
                "classes have fewer positives"
            )

    def begin_epoch(self, epoch: int) -> None:
        """Draw random samples anew if a method requests that. The tables keep their addresses, for captured steps."""
        for (spec, seed), table in self._tables.items():
            if spec.redraw:
                drawn = spec.random_tables(self.bank, (seed, epoch), self._queries, self.allow_missing)
                for order, old, new in zip((spec.order, spec.negatives_order), table, drawn, strict=True):
                    if order == "random":
                        old[:] = new

    def _table(self, spec: Retrieval, seed: object) -> tuple[Neighbours, Neighbours]:
        """Return positives and negatives of every row. Class means are computed in each step."""
        return spec.tables(
            self.bank, seed=seed, rows=self._queries, allow_missing=self.allow_missing, search=self.search
        )

    def recall(self, state: TrainingState) -> dict[str, float]:
        """Return the measured recall of the student's negatives, for its summary; empty if all were found exactly."""
        found = [spec for other, spec in self._keys if other is state and self.search != "exact" and spec.approximable]
        return {f"recall@{spec.negatives}": self.bank.recall[spec.negatives] for spec in found}

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
        rows = self.bank.rows(keys)  # a student's copy of the bank has the same keys and labels
        if self.unlabelled:
            labels = torch.where(labels < 0, self.bank.labels[rows], labels)
        found: dict[tuple[Key, MemoryBank], InContextPair] = {}
        each: dict[TrainingState, dict[Retrieval, InContextPair]] = {state: {} for state in states}
        for state, some in each.items():
            for spec in state.retrieves:
                key = self._keys[state, spec], self._searched(state, spec)
                if key not in found:
                    found[key] = self._retrieve(*key, rows, keys, labels, teacher)
                some[spec] = found[key]
        return each

    def _searched(self, state: TrainingState, spec: Retrieval) -> MemoryBank:
        """Return the bank that contains a student's in-context samples."""
        return state.teacher_rows if spec.dynamic and state.teacher_rows else self.bank

    def _retrieve(
        self, key: Key, bank: MemoryBank, rows: Tensor, keys: Tensor, labels: Tensor, teacher: Samples | None
    ) -> InContextPair:
        """Return the in-context samples of one request from the `rows` [S] of a bank; see `retrieve` for the others."""
        spec = key[0]
        if key in self._tables:
            near, far = self._from_tables(spec, self._tables[key], bank, rows, keys, labels)
        else:
            assert teacher is not None
            near, far = bank.retrieve(
                teacher.features,
                labels,
                keys,
                positives=spec.positives,
                negatives=spec.negatives,
                per_class=spec.per_class,
                allow_missing=True,  # `__init__` has counted them, and counting in each step would wait for a GPU
            )
        if self.unlabelled:
            inside = bank.filled[rows][:, None]
            near, far = replace(near, mask=near.mask & inside), replace(far, mask=far.mask & inside)
        return (replace(near, own=bank.logits[rows].float()) if spec.own else near), far

    def _from_tables(
        self,
        spec: Retrieval,
        tables: tuple[Neighbours, Neighbours],
        bank: MemoryBank,
        rows: Tensor,
        keys: Tensor,
        labels: Tensor,
    ) -> InContextPair:
        """Return the present content of the in-context samples in two tables, or class means instead."""
        places = self._place[rows]
        near = bank.gather(tables[0][places], features=spec.features)
        far = bank.gather(tables[1][places], features=spec.features, unit=spec.unit_negatives)
        if "class" in (spec.order, spec.negatives_order):
            own, others = bank.class_samples(keys, labels)
            near, far = own if spec.order == "class" else near, others if spec.negatives_order == "class" else far
        return near, far

    def write(self, state: TrainingState, teacher: Samples | None) -> None:
        """Write the teacher's samples of a step into a student's copy of the bank, if it has one."""
        if state.teacher_rows:
            assert teacher is not None
            known = teacher.known
            key, logits, features = known.key, known.logits, known.features
            if teacher.boxes:  # several proposals may be matched to one annotation: their means are written
                key, logits, features = mean_of_each(key, logits, features)
            state.teacher_rows.write(key, logits, features)


def _key(state: TrainingState, spec: Retrieval) -> Key:
    """Return a request of a student with the seed of its random samples, by which students share tables."""
    return spec, state.learner.seed if "random" in (spec.order, spec.negatives_order) else 0
