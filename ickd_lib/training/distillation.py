"""The function `distill`, which prepares everything that a training needs and runs it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ickd_lib import models, runtime
from ickd_lib.data import Images, Sampler, Splits, loader
from ickd_lib.memory import Faiss, MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.runtime.arguments import Count, Natural, NotNegative, Precision, check, checked, kinds
from ickd_lib.runtime.distributed import any_process, wait_for_all
from ickd_lib.tasks import Classification, Task
from ickd_lib.training.callbacks import Callback, ProgressBar
from ickd_lib.training.capture import Capture, CudaGraphs, reason_against, works_on_host
from ickd_lib.training.checkpoints import Checkpoint, Records
from ickd_lib.training.data_parallel import check_equal, check_parts
from ickd_lib.training.loop import Loop, stoppable, stopped
from ickd_lib.training.numerics import new_numerics, recorded_numerics
from ickd_lib.training.peers import PeerGroup
from ickd_lib.training.predictions import Predictions
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, RunRecord
from ickd_lib.training.state import TrainingState, not_finite
from ickd_lib.training.stepper import Stepper
from ickd_lib.training.students import Learner, Student, learners, restored_on_error
from ickd_lib.training.teacher_check import check_teacher
from ickd_lib.training.teacher_choice import TeacherNeeds, teacher_bank, teacher_source


@checked
def distill(
    students: Sequence[Student],
    splits: Splits,
    *,
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    task: Task | None = None,
    recipe: Recipe | None = None,
    data_seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    evaluate_every: Count = 1,
    runs: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: NotNegative = 60.0,
    progress: bool | str = True,
    callbacks: Sequence[Callback] = (),
    teacher_cache: str | Path | None = None,
    teacher_cache_gigabytes: NotNegative = 4.0,
    teacher_cache_top: Natural = 0,
    capture: bool = True,
    sync_batchnorm: bool = False,
    search: str | Faiss = "exact",
) -> dict[str, History]:
    """Train students on the same batches, with one pass of the teacher for all of them.

    If `torchrun` started several processes (see `runtime.processes`), all of them call this function with the same
    arguments, and each trains on its part of every batch. The first one writes the run folders, which must be readable
    by all.

    Args:
        students: the students to train. Those of one peer group use each other's outputs; all others are trained
            exactly as if each were trained alone.
        splits: the data. Validation and test images are used for evaluation only.
        teacher: a network, for the methods that need one, which is copied and not changed. Its classes are those of the
            data, or others if the methods' `label_space` allows them. A note is printed if a classifier of the same
            classes predicts the labels of up to 256 training images no better than guessing.
        bank: the teacher's memory bank of the training images, or of more images of the data set, which then serve as
            in-context samples too (labels that are not known can be the teacher's predictions, see `MemoryBank.build`).
            By default it is built from the training images if a method needs it.
        task: defines the samples of an image; by default classification, where an image is one sample.
        recipe: epochs, learning rates, optimiser; by default the 240 epochs of the CIFAR-100 protocol, with the changes
            in `task.recipe`.
        data_seed: the order of the batches and the views of the images are a function of it.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32" or "bf16". "auto" is as in `runtime.precision`; for a training of 1,000 steps or more
            on a CPU, both are measured and the faster one is used, or that of `bank`. The run folder records the
            choice.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        runs: the folder of the run folders; with None everything stays in memory. Runs in a folder named "teachers"
            count as teachers, so students of a teacher cannot be there.
        resume: continue unfinished runs of the same settings, and load finished ones; with False, an existing run is an
            error.
        checkpoint_seconds: seconds between checkpoints. Ctrl-C writes a checkpoint and stops the training; the same
            call continues it.
        progress: whether to show a progress bar, or a text that names in the bar what is trained.
        callbacks: see `Callback`.
        teacher_cache: folder of a cache of the teacher's outputs for each view of each image, in half precision, which
            later trainings with the same teacher and data use too (`TeacherCache`). With None the teacher runs in every
            step. The cache is also skipped in segmentation and detection, when the augmentation goes beyond crop and
            flip, or when any method needs the teacher's feature maps or a second, strongly augmented view.
        teacher_cache_gigabytes: largest size of the cache.
        teacher_cache_top: number of the largest logits of each output that are stored, the others being replaced by a
            common one (`StoredOutputs`); 0 stores all.
        capture: on a GPU, whether to capture a step as a CUDA graph and replay it, which makes small networks fast.
            With False every step runs eagerly, for debugging inside a method. On a CPU and with several processes it
            has no effect.
        sync_batchnorm: with several processes, whether batch normalisation uses the statistics of the whole batch
            instead of those of each process's part.
        search: how the nearest negatives of the training samples are found: "exact", or "faiss" (or a `memory.Faiss`)
            for an approximate search, which is faster in a large bank; see `MemoryBank.table`. It is a setting of the
            run, whose summary has the measured recall. Negatives that are searched for in every step stay exact.
    Returns:
        A History for each student, by name, in the order given.
    Raises:
        InputError: an argument cannot work. This is checked before training starts.
        Diverged: a loss of a student became NaN or infinite. The other students are trained to the end first; their
            histories are in the exception's `histories`.
    """
    task, device = task or Classification(), runtime.device(device)
    if teacher:
        runtime.runs_folder(runs)
    recipe = recipe or Recipe(**task.recipe)
    recipe.check_optimizer(task.recipe)
    if teacher_cache_top and not teacher_cache:
        raise InputError("teacher_cache_top is about a teacher cache; give teacher_cache=FOLDER, or leave this out")
    _check(students, splits, task, teacher)
    check_parts(len(splits.train), Sampler(splits.train).steps(recipe.batch_size), recipe.batch_size)
    splits = splits.to(device)
    frozen = models.frozen(teacher, device) if teacher else None
    evaluated = None if isinstance(frozen, Predictions) else frozen
    if evaluated and (name := not_finite(evaluated.state_dict())):
        raise InputError(f"the teacher {evaluated.name} has values that are not finite in {name}; give another teacher")
    with restored_on_error(students, saved=runs is not None) as trained:
        made = learners(
            students,
            splits.train,
            task=task,
            teacher=frozen,
            bank=bank,
            recipe=recipe,
            data_seed=data_seed,
            evaluate_every=evaluate_every,
            device=device,
            sync_batchnorm=sync_batchnorm,
            search=search,
        )
        checkpoints, records, locks = _prepare(made, splits, task, recipe, runs, resume)
        try:
            for record in records.values():
                check_precision(record, precision)
            if runtime.world() > 1:
                check_equal([(runtime.fingerprint(state.learner.settings), state.position) for state in records])
        except BaseException:
            locks.close()  # a caller may keep the exception, and with it the locks
            raise
        waiting = [state for state, record in records.items() if not record.finished]
        if waiting:
            methods = [state.learner.method for state in waiting]
            needs, uses_bank = TeacherNeeds.of(methods), any(method.needs_bank for method in methods)
            with locks as stack:
                numerics = runtime.from_main(
                    lambda: _numerics(
                        [run for state in waiting if (run := records[state].run)],
                        waiting,
                        splits.train,
                        evaluated,
                        task,
                        needs=needs,
                        device=device,
                        precision=precision,
                        bank_precision=bank.precision if bank is not None and uses_bank else "",
                        cached=teacher_cache_top if teacher_cache else None,
                        capture=capture,
                    )
                )
                stack.enter_context(torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext())
                stack.enter_context(runtime.same_threads(numerics["threads"]))
                stack.enter_context(runtime.kept_generators())
                stop = stack.enter_context(stoppable())
                stack.enter_context(loader.watched())
                source = teacher_source(
                    needs,
                    splits.train,
                    frozen,
                    task,
                    numerics,
                    folder=teacher_cache,
                    gigabytes=teacher_cache_gigabytes,
                    batch_size=recipe.batch_size,
                )
                if source:
                    stack.callback(source.close)
                with runtime.stopping_between_blocks(stop):
                    own_bank = teacher_bank(bank, waiting, splits.train, frozen, task, numerics["precision"], search)
                    check_teacher(
                        frozen,
                        [state.learner for state in waiting],
                        splits.train,
                        task,
                        bank=own_bank.bank if own_bank else None,
                        precision=numerics["precision"],
                    )
                together, environment = uuid.uuid4().hex[:8], runtime.environment(device)
                for state in waiting:
                    records[state].recall = own_bank.recall(state) if own_bank else {}
                    records[state].create(numerics, together, environment, splits)
                going = {
                    group: kept
                    for group, kept in checkpoints.items()
                    if any(state in waiting for state in group.states)
                }
                captured = capture and numerics["captured"] and runtime.world() == 1
                stepper = Stepper(
                    list(going),
                    splits.train,
                    task,
                    source,
                    own_bank,
                    batch_size=recipe.batch_size,
                    precision=numerics["precision"],
                    epochs=recipe.epochs,
                    capture=_capture(captured, callbacks, waiting, splits.train),
                )
                if stepper.loader:
                    stack.callback(stepper.loader.close)
                hooks = list(callbacks)
                if progress and runtime.rank() == 0:
                    hooks.append(ProgressBar(progress if isinstance(progress, str) else ""))
                loop = Loop(
                    going,
                    records,
                    splits,
                    task,
                    stepper,
                    recipe=recipe,
                    data_seed=data_seed,
                    evaluate_every=evaluate_every,
                    checkpoint_seconds=checkpoint_seconds,
                    callbacks=hooks,
                )
                loop.train(stop)
                reference = (
                    task.bank_samples(evaluated, splits.test, precision=numerics["precision"]) if evaluated else None
                )
                for state in loop.states:
                    if state in waiting:
                        records[state].finish(state, splits, task, numerics["precision"], reference, len(students))
                (late,) = any_process(stop.is_set())
                if late:  # the stop came after the last step, but the caller may have more to train
                    raise stopped(loop)
        wait_for_all()  # so that all run folders are complete for every process
        histories = {state.learner.name: record.history() for state, record in records.items() if record.finished}
        for state, record in records.items():
            if record.finished:
                trained.add(position := state.learner.position)
                if isinstance(given := students[position].network, Network):  # a part of what was trained, perhaps
                    given.trained_on = dict(record.network.trained_on)
        if failed := [group.failed for group in checkpoints if group.failed]:
            raise Diverged("; ".join(failed), histories)
        return histories


def check_options(options: Mapping[str, Any], of: str, *, refused: Sequence[str] = ()) -> None:
    """Raise InputError if `options` has a name that is no argument of `distill`, or a value of another kind.

    Args:
        options: arguments that a function passes on to `distill`, except those that every such function determines.
        of: name of the function.
        refused: further arguments that the function determines, or that have no effect there.
    """
    without = {"students", "splits", "data_seed", "return", *refused}
    declared = {name: kind for name, kind in kinds(distill).items() if name not in without}
    for name, value in options.items():
        check(name, value, declared[runtime.choose(name, declared, "argument", f" of {of}")])


def _check(students: Sequence[Student], splits: Splits, task: Task, teacher: Network | None) -> None:
    """Raise InputError if there is nothing to train or to evaluate, or the data or the teacher is of another task."""
    if not students:
        raise InputError("no student to train; give at least one Student")
    for split in (splits.train, splits.test):
        if not len(split):
            raise InputError(f"{split.name} has no image; training needs some in train and in test")
    for split in splits:
        if len(split):
            task.check(split)
    if teacher:
        task.check_network(teacher)


def _prepare(
    made: Sequence[Learner], splits: Splits, task: Task, recipe: Recipe, runs: str | Path | None, resume: bool
) -> tuple[dict[PeerGroup, Checkpoint], Records, contextlib.ExitStack]:
    """Return the peer groups, restored from their checkpoints, and the records of all students in the order given.

    The third value holds the locks on the run folders of the students that are not finished.
    """
    train = splits.train
    steps = Sampler(train).steps(recipe.batch_size)
    records = {TrainingState(learner, recipe, steps, train.size): RunRecord(learner) for learner in made}
    groups = [
        PeerGroup([state for state in records if state.learner.group == name], task, train)
        for name in dict.fromkeys(learner.group for learner in made)
    ]
    with contextlib.ExitStack() as locks:
        if runs is not None:
            environment = runtime.environment(train.index.device)
            for record in records.values():
                record.open(Path(runs), resume, environment, splits)
            runtime.from_main(lambda: _lock(records.values(), locks))
        for state, record in records.items():
            if record.finished:
                state.epoch = recipe.epochs
        checkpoints = {group: Checkpoint(group, records) for group in groups}
        for checkpoint in checkpoints.values():
            checkpoint.restore()
            checkpoint.restore_methods()
            runtime.from_main(checkpoint.complete_records)
        return checkpoints, records, locks.pop_all()


def check_precision(record: RunRecord, precision: str) -> None:
    """Raise InputError if a precision was requested in which an existing run was not trained."""
    recorded = record.precision
    if recorded and precision not in ("auto", recorded):
        assert record.run
        raise InputError(
            f"{record.run.folder} was trained in {recorded}, not {precision}; give precision {recorded} or auto to go "
            "on with it, or another folder of runs"
        )


def _lock(records: Iterable[RunRecord], locks: contextlib.ExitStack) -> None:
    """Lock the run folders of the students that are not finished, until `locks` is closed."""
    for record in records:
        if record.run and not record.finished:
            locks.enter_context(runtime.locked(record.run.folder))
        elif record.run:
            runtime.remove_leftover(record.run.folder)


def _numerics(
    runs: Sequence[runtime.Run],
    states: Sequence[TrainingState],
    train: Images,
    teacher: Network | None,
    task: Task,
    **given: Any,
) -> dict[str, Any]:
    """Return the numerics of the runs of some students; unfinished runs keep those that they were started with.

    The arguments are those of `new_numerics`.

    Raises:
        InputError: unfinished runs cannot be continued together, or on this device, or with this bank or cache.
    """
    needs, cached = given["needs"], given["cached"]
    recorded = recorded_numerics(runs, given["device"], given["bank_precision"])
    if recorded is None:
        return new_numerics(states, train, teacher, task, **given)
    if recorded["teacher_cache"] and not needs.fit_cache(train):
        raise InputError(
            "an unfinished run was started with a teacher cache, which another student cannot use; resume it alone"
        )
    if cached is not None and not recorded["teacher_cache"] and needs.cacheable(train):
        runtime.notice("the teacher cache is not used, because an unfinished run was started without it")
    return recorded


def _capture(
    requested: bool, callbacks: Sequence[Callback], waiting: Sequence[TrainingState], train: Images
) -> Capture | None:
    """Return the function that captures steps; None if capture is not requested, or steps must run eagerly."""
    if not requested:
        return None
    why = reason_against(callbacks, [state.learner.network for state in waiting])
    why = why or works_on_host([state.learner.method for state in waiting], train.augment)
    why = why or ("its images are streamed" if train.streamed else "")
    if not why and not all(state.optimizer.fused for state in waiting):
        why = f"the optimiser {waiting[0].recipe.optimizer} has no fused form"
    if why:
        runtime.notice(f"steps are not captured, because {why}")
        return None
    return CudaGraphs()
