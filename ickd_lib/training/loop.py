"""The one training loop. It knows no method by name: it supplies what each declares that it needs."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ickd_lib import models, runtime
from ickd_lib.data import Images, Splits
from ickd_lib.memory import MemoryBank, require_fit
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import trial
from ickd_lib.training.circle import Circle, circles
from ickd_lib.training.learner import Learner, without_gradient
from ickd_lib.training.memo import Memo
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, Student
from ickd_lib.training.steps import Steps, Tables, recorded

AHEAD = {"cpu": 64, "cuda": 1024}  # steps for which a memo is filled at once; a GPU is not stopped for it in an epoch
WAIT = 0.5  # seconds that the host runs ahead of a GPU


def distill(
    students: Sequence[Student],
    splits: Splits,
    *,
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    recipe: Recipe | None = None,
    data_seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    evaluate_every: int = 1,
    runs: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
    memo: str | Path | None = None,
    memo_gigabytes: float = 4.0,
    record: bool = True,
) -> dict[str, History]:
    """Train students over the same batches, with one pass of the teacher for all of them.

    Args:
        students: who is trained, and how. Those of one circle (`Student.circle`) hear each other in every step; all
            others are as if they were trained alone.
        splits: the data; the test images (and validation images) are evaluated, never learned from.
        teacher: a network; needed by the methods that declare it. Its classes are the data's, or, for the methods
            whose `label_space` allows it, others.
        bank: the teacher's memory bank of the training images; built here when a method needs one and none is given.
        recipe: epochs, rates, schedule; by default the 240 epochs of the CIFAR-100 protocol.
        data_seed: the order of the batches and the augmentation's views are a function of it.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32" or "bf16". "auto" is as in `runtime.precision`; a training of 1,000 steps or more on a
            CPU tries which is faster, and its run records what it took.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        runs: where each student's run folder is made; None keeps everything in memory.
        resume: go on with unfinished runs of the same settings and load finished ones; False refuses both.
        checkpoint_seconds: time between checkpoints. Ctrl-C writes one and stops; the same call resumes.
        progress: show a progress bar.
        memo: a folder in which the teacher's output of each view of each image is kept, in half precision, for this and
            later trainings with this teacher and data (see `training.memo.Memo`); None has the teacher's pass in every
            step, as has stronger augmentation than crop and flip, and who trains beside a method that compares maps.
        memo_gigabytes: at most so much is kept.
        record: on a GPU, record a step as a CUDA graph and replay it, which is what makes small networks fast there.
            False launches each step anew, for who prints or stops inside a method. On a CPU it says nothing.
    Returns:
        A History for each student, by name, in the order given.
    Raises:
        InputError: something given cannot work; found before training starts.
        Diverged: a loss term became NaN or infinite.
    """
    recipe = recipe or Recipe()
    where = runtime.device(device)
    if not students:
        raise InputError("no student to train; give at least one Student")
    if evaluate_every < 1:
        raise InputError(f"evaluate_every={evaluate_every} must be 1 or more")
    for split in (splits.train, splits.test):
        if not len(split):
            raise InputError(f"{split.name} holds no image; training needs some in train and in test")
    splits = splits.to(where)
    frozen = without_gradient(teacher, where) if teacher else None
    learners = [
        Learner(student, splits, frozen, bank, recipe, data_seed, evaluate_every, where) for student in students
    ]
    groups = circles(learners, splits.train)
    names = [learner.name for learner in learners]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two students are named {name!r}; give each a name of its own")
    chosen = runtime.precision(precision, where, min(splits.train.size))
    if runs is not None:
        for learner in learners:
            learner.open(Path(runs), resume)
        for circle in groups:
            circle.restore()
    waiting = [learner for learner in learners if not learner.finished]
    if waiting:
        path = _recorded_path(waiting, where)
        if not path:
            path = {"device": str(where), "precision": chosen, "threads": torch.get_num_threads()}
            long = recipe.epochs * splits.train.steps(recipe.batch_size) >= trial.STEPS
            if precision == "auto" and where.type == "cpu" and long and min(splits.train.size) >= 16:
                asked = frozen if any("teacher" in x.method.needs for x in waiting) and not memo else None
                path["trial"] = trial.seconds(waiting[0].network, asked, splits.train)
                path["precision"] = trial.faster(path["trial"])
            path |= {"memo": True} if memo and frozen and _memorable(waiting, splits.train) else {}
            path |= {"recorded": True} if record and where.type == "cuda" else {}
        tables: Tables = {}
        if any(learner.method.needs_bank for learner in waiting):
            assert frozen is not None
            bank = bank.to(where) if bank else MemoryBank.build(frozen, splits.train, precision=path["precision"])
            tables = _tables(bank, splits, frozen, waiting)
        group = uuid.uuid4().hex[:8]
        for learner in waiting:
            if learner.run and not learner.run.exists():
                learner.run.create(learner.settings, path, group, where)
        with _on(where), _same_threads(path["threads"]), torch.random.fork_rng(), _stoppable() as stop:
            going = [circle for circle in groups if not all(learner.finished for learner in circle.learners)]
            batch_size = recipe.batch_size
            steps = Steps(
                going,
                splits.train,
                frozen,
                bank,
                tables,
                batch_size=batch_size,
                precision=path["precision"],
                epochs=recipe.epochs,
                recorder=recorded if record and path.get("recorded") else None,
            )
            if path.get("memo"):
                assert frozen is not None
                steps.memo = Memo(
                    frozen,
                    splits.train,
                    features=steps.needs_features,
                    precision=path["precision"],
                    folder=memo,
                    gigabytes=memo_gigabytes,
                    ahead=(AHEAD[where.type] + 1) * batch_size,
                )
            loop = _Loop(going, splits, steps, evaluate_every, checkpoint_seconds)
            try:
                loop.train(recipe, data_seed, stop, progress)
            finally:
                if steps.memo:
                    steps.memo.close()
            logits = models.predict(frozen, splits.test, precision=path["precision"]).logits if frozen else None
            for learner in waiting:
                learner.finish(splits, path["precision"], logits, len(learners))
            if stop.is_set():  # after the last step; whoever called has more to train
                raise _stopped(waiting)
    return {learner.name: learner.history() for learner in learners}


class _Loop:
    def __init__(
        self, circles: list[Circle], splits: Splits, steps: Steps, evaluate_every: int, checkpoint_seconds: float
    ) -> None:
        self.circles, self.splits, self.steps = circles, splits, steps
        self.learners = [learner for circle in circles for learner in circle.learners]
        self.evaluate_every, self.checkpoint_seconds = evaluate_every, checkpoint_seconds

    def train(self, recipe: Recipe, data_seed: int, stop: threading.Event, progress: bool) -> None:
        work, steps = self.steps, self.steps.count
        where = work.step.device
        epoch, first = min(circle.position for circle in self.circles)
        bar = tqdm(total=recipe.epochs * steps, initial=epoch * steps + first, disable=not progress, mininterval=0.5)
        saved = waited = time.perf_counter()
        try:
            while epoch < recipe.epochs:
                bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
                began = time.perf_counter()
                work.begin(data_seed, epoch, first)
                for step in range(first, steps):
                    if work.memo and (step - first) % AHEAD[where.type] == 0:
                        work.memo.fill(*work.planned(step, AHEAD[where.type]))
                    # A student resumed from a later step than others joins when they have caught up with it.
                    stepping = [circle for circle in self.circles if circle.position == (epoch, step)]
                    active = [learner for circle in stepping for learner in circle.learners]
                    work.take(stepping, step)
                    now = time.perf_counter()
                    saving = stop.is_set() or now - saved > self.checkpoint_seconds
                    if where.type == "cuda" and (saving or step == steps - 1 or now - waited > WAIT):
                        torch.cuda.synchronize(where)  # so that seconds, bar and Ctrl-C are those of work that is done
                        waited = time.perf_counter()
                    bar.update()
                    if where.type == "cpu":  # a GPU is asked at the end of the epoch, and before a checkpoint
                        for learner in active:
                            learner.check_finite()
                    now = time.perf_counter()
                    for learner in active:
                        learner.at.seconds += now - began
                    if saving:
                        self._save()
                        saved = time.perf_counter()
                        if stop.is_set():
                            raise _stopped(self.learners)
                    self._show(bar, recipe.batch_size)
                    began = time.perf_counter()
                for learner in self.learners:
                    if learner.at.position == (epoch, steps):
                        learner.check_finite()
                        last = epoch + 1 == recipe.epochs
                        learner.end_epoch(self.splits, work.precision, last or (epoch + 1) % self.evaluate_every == 0)
                epoch, first = epoch + 1, 0
            self._save()
        except Diverged:
            for circle in self.circles:  # the others' work is kept
                with contextlib.suppress(Diverged):
                    circle.save()
            raise
        finally:
            bar.close()

    def _save(self) -> None:
        for circle in self.circles:
            circle.save()

    def _show(self, bar: tqdm, batch_size: int) -> None:
        """Losses, last accuracy and images/s on the bar, at most twice a second."""
        now = time.perf_counter()
        if bar.disable or now - getattr(bar, "shown", 0.0) < 0.5:
            return
        bar.shown = now  # type: ignore[attr-defined]
        shown = self._losses()
        tests = [
            next((r["test_accuracy"] for r in x.records[::-1] if "test_accuracy" in r), None) for x in self.learners
        ]
        known = sorted(t for t in tests if t is not None)
        if known:
            shown["test"] = f"{known[0]:.1%}" if len(known) == 1 else f"{known[0]:.1%}–{known[-1]:.1%}"
        rate = bar.format_dict["rate"]
        if rate:
            shown["images/s"] = f"{rate * batch_size * len(self.learners):.0f}"
        bar.set_postfix(shown, refresh=False)

    def _losses(self) -> dict[str, str]:
        """Each term of one student, or the range of several students' losses: so far in the epoch; on a GPU, which is
        not asked in an epoch, of the last one."""
        means: list[dict[str, float]] = []
        for learner in self.learners:
            at = learner.at
            if at.losses is None or at.losses.device.type != "cpu":
                means += [record["terms"] for record in learner.records[-1:]]
            else:
                means.append(dict(zip(at.terms, at.losses[: at.step].mean(0).tolist(), strict=True)))
        if len(self.learners) == 1:
            return {term: f"{value:.3f}" for term, value in (means[0] if means else {}).items()}
        every = [sum(terms.values()) for terms in means]
        return {"loss": f"{min(every):.3f}–{max(every):.3f}"} if every else {}


def _memorable(learners: list[Learner], train: Images) -> bool:
    """Whether the teacher is asked, and for something that a memo holds: no maps, and of views that have a number."""
    needs = frozenset().union(*(learner.method.needs for learner in learners))
    specs = [learner.method.retrieval for learner in learners]
    asked = "teacher" in needs or any(spec and spec.query == "view" and spec.source == "teacher" for spec in specs)
    return asked and "maps" not in needs and train.augment == "crop"


def _recorded_path(waiting: list[Learner], where: torch.device) -> dict[str, Any]:
    """The numerical path of the runs to be resumed, which makes the resumed run equal the uninterrupted one; or {}."""
    recorded = [learner.run.config["path"] for learner in waiting if learner.run and learner.run.exists()]
    for other in recorded:
        if other["device"].split(":")[0] != where.type:
            raise InputError(f"an unfinished run was on {other['device']}, not {where}; resume it there")
        if {**other, "trial": None} != {**recorded[0], "trial": None}:
            raise InputError(f"unfinished runs took different paths ({other}, {recorded[0]}); resume them one by one")
    return {**recorded[0], "device": str(where)} if recorded else {}


def _tables(bank: MemoryBank, splits: Splits, teacher: Network, learners: list[Learner]) -> Tables:
    """The neighbours that each kind of retrieval returns; None where they are searched for in every step."""
    require_fit(bank, splits.train, teacher)
    tables: Tables = {}
    for learner in learners:
        spec = learner.method.retrieval
        if spec is None or spec in tables or spec.source != "teacher":
            continue
        if spec.order == "random":
            tables[spec] = bank.random_table(positives=spec.positives, negatives=spec.negatives)
        elif spec.query == "row":
            tables[spec] = bank.table(positives=spec.positives, negatives=spec.negatives, per_class=spec.per_class)
        else:
            bank.require(positives=spec.positives, negatives=spec.negatives, per_class=spec.per_class)
            tables[spec] = None
    return tables


def _on(where: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Streams and graphs are of the current GPU: make it `where`."""
    return torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _same_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stopped(learners: list[Learner]) -> KeyboardInterrupt:
    kept = all(learner.run for learner in learners)
    return KeyboardInterrupt("stopped; the same call goes on from here" if kept else "stopped; nothing was kept")


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """The event is set by Ctrl-C or SIGTERM, so that training stops between two steps; again stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
