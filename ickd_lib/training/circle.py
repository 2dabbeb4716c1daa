"""Students that teach each other, in step; one that learns alone is a circle of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ickd_lib import methods, runtime
from ickd_lib.data import Batch, Images
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Guide
from ickd_lib.models import Output
from ickd_lib.runtime import InputError
from ickd_lib.training.learner import Learner
from ickd_lib.training.records import Supply

Found = tuple[InContext, InContext] | tuple[None, None]


class Circle:
    """Learners that see each other's outputs, and search each other's banks, in every step.

    Each keeps a bank of its own where itself or a peer retrieves from it. A step asks all banks before it writes any.
    One file, in the run folder of the one whose name is first, holds the checkpoint of all, so that a kill cannot leave
    them at different steps.

    Args:
        learners: one or more; two or more where a method needs peers.
        train: what they learn from.
    Raises:
        InputError: a method needs peers and there is none.
    """

    def __init__(self, learners: Sequence[Learner], train: Images) -> None:
        for learner in learners:
            if "peers" in learner.method.needs and len(learners) < 2:
                raise InputError(
                    f"method {learner.method.config['name']!r} learns from peers, and there is none; train two or more "
                    "students of one circle together"
                )
        if len(learners) > 1:
            known = [learner.who for learner in learners]
            mark = runtime.fingerprint(sorted(known, key=str))[:6]
            for i, learner in enumerate(learners):
                others = sorted(known[:i] + known[i + 1 :], key=str)
                learner.settings |= {"peers": others, "circle": learner.student.circle or mark}
        self.learners = sorted(learners, key=lambda learner: learner.name)
        for learner in learners:
            asked = [spec for other in learners if (spec := other.method.retrieval) and _whose(spec, other, learner)]
            if asked or "earlier" in learner.method.needs:
                learner.memory = MemoryBank.empty(train, learner.network.features_dim)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step of them all."""
        return min(learner.at.position for learner in self.learners)

    def step(self, supply: Supply) -> None:
        """A step of each: all look, then all learn, then all write their banks."""
        outputs = [learner.forward(supply) for learner in self.learners]
        said = [Output(output.logits.detach(), output.features.detach()) for output in outputs]
        found: dict[tuple[int, methods.Retrieval], Found] = {}
        for asking in self.learners:
            spec = asking.method.retrieval
            for i, asked in enumerate(self.learners):
                if spec and _whose(spec, asking, asked) and (i, spec) not in found:
                    found[i, spec] = _retrieve(spec, asked, said[i], supply)
        heard = []
        for me, learner in enumerate(self.learners):
            spec = learner.method.retrieval
            near = [
                found[i, spec] if spec and _whose(spec, learner, other) else (None, None)
                for i, other in enumerate(self.learners)
            ]
            peers = tuple(Guide(said[i], *near[i]) for i in range(len(self.learners)) if i != me)
            earlier = None
            if "earlier" in learner.method.needs:
                earlier = Guide(_last_said(learner, said[me], supply.batch), *near[me])
            heard.append((peers, earlier))
        for learner, output, (peers, earlier) in zip(self.learners, outputs, heard, strict=True):
            now = learner.at.epoch * supply.steps + learner.at.step
            learner.step(supply, output, peers, earlier)
            if learner.memory:
                learner.memory.update(
                    supply.batch.index, output.features, output.logits, momentum=learner.method.momentum, step=now
                )

    # ---------------------------------------------------------------------------------------- on disk

    def save(self) -> None:
        """Write the checkpoint of all, whole or not at all; a diverged one keeps them at the last good one."""
        states = {learner.name: learner.state for learner in self.learners}
        if self.learners[0].checkpoint:
            with runtime.replacing(self.learners[0].checkpoint) as part:
                torch.save(states, part)

    def restore(self) -> None:
        """Go back to the checkpoint of all, where there is one, and drop the records of later epochs.

        Raises:
            InputError: it is damaged; or some of the run folders were removed.
        """
        waiting = [learner for learner in self.learners if not learner.finished]
        runs = [learner.run for learner in self.learners if learner.run]
        if not (waiting and runs):
            return
        folders = ", ".join(str(run.folder) for run in runs)
        path = runs[0].folder / "checkpoint.pt"
        for learner in self.learners:
            learner.checkpoint = path
        if path.is_file():
            where = next(waiting[0].network.parameters()).device
            try:
                states: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
                for learner in waiting:
                    learner.restore(states[learner.name])
            except Exception as error:  # torch.load raises many types on a damaged file
                what = type(error).__name__
                raise InputError(f"{path} is damaged ({what}); remove {folders} to train anew") from None
        ahead = len(waiting) < len(runs)
        begun = ahead or path.is_file() or any(run.metrics for run in runs)
        removed = begun and not all(run.exists() for run in runs)
        if removed or (ahead and self.position[0] < waiting[0].recipe.epochs):
            raise InputError(f"peers train together, and some of {folders} went on alone; remove all to train anew")
        for learner in waiting:
            if learner.run and learner.run.exists():
                learner.run.keep_metrics(learner.at.epoch)
                learner.records = learner.run.metrics


def circles(learners: Sequence[Learner], train: Images) -> list[Circle]:
    """Who learns with whom: those of one `Student.circle`, those who need peers and name none, the others alone."""
    found: dict[object, list[Learner]] = {}
    for i, learner in enumerate(learners):
        found.setdefault(learner.student.circle or ("peers" in learner.method.needs) or (i,), []).append(learner)
    return [Circle(members, train) for members in found.values()]


def _whose(spec: methods.Retrieval, asking: Learner, asked: Learner) -> bool:
    """Whether a learner with this retrieval searches the bank of another (or its own)."""
    return spec.source == ("self" if asking is asked else "peers")


def _retrieve(spec: methods.Retrieval, asked: Learner, said: Output, supply: Supply) -> Found:
    """The in-context samples of the batch in a learner's bank, by its own features of the same views."""
    bank, batch, at = asked.memory, supply.batch, asked.at
    assert bank is not None
    if at.epoch + at.step / supply.steps < spec.start * asked.recipe.epochs:
        return None, None
    query = said.features, batch.labels, batch.index
    if spec.order == "random":
        generator = torch.Generator(batch.labels.device)
        generator.manual_seed(runtime.seed_of(asked.student.seed, at.epoch, at.step, "random neighbours"))
        return bank.random(*query, positives=spec.positives, negatives=spec.negatives, generator=generator)
    return bank.retrieve(
        *query, positives=spec.positives, negatives=spec.negatives, per_class=spec.per_class, allow_missing=True
    )


def _last_said(learner: Learner, now: Output, batch: Batch) -> Output:
    """What a learner said of each image when it saw it last; what it says now, of an image that it sees first."""
    bank = learner.memory
    assert bank is not None
    rows = bank.rows(batch.index)
    known = bank.filled[rows, None]
    features = bank.features[rows] * bank.norms[rows, None]
    return Output(torch.where(known, bank.logits[rows], now.logits), torch.where(known, features, now.features))
