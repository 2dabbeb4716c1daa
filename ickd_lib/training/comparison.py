"""Comparisons of methods: over seeds, and by the time of a training step."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ickd_lib import models, runtime
from ickd_lib.data import Sampler, Splits
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import create, describe
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged, InputError, fingerprint
from ickd_lib.runtime.arguments import Count, Natural, Precision, checked
from ickd_lib.tasks import Classification, Task
from ickd_lib.training import precision_benchmark
from ickd_lib.training.distillation import check_options, distill
from ickd_lib.training.jobs import INPUTS, Job, JobsDied, Outcome, run, train, write_inputs
from ickd_lib.training.predictions import Predictions
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, RunRecord
from ickd_lib.training.slurm import Slurm
from ickd_lib.training.students import Student, learners


@checked
def compare(
    methods: Sequence[str],
    splits: Splits | Callable[[], Splits],
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    task: Task | None = None,
    peers: Sequence[str] = (),
    seeds: Count | Sequence[int] = 3,
    runs: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    executor: Executor | None = None,
    retries: Natural = 3,
    methods_per_job: Natural = 0,
    with_peers: bool = False,
    progress: bool = True,
    **options: Any,
) -> dict[str, list[History]]:
    """Train one student for each method and seed. The methods of a seed share its batches and the teacher's pass.

    With an executor, these students are one job: the jobs of different seeds train at the same time, and share the
    teacher and its bank, which are made before and written into one file. On a CPU, the results are the same with and
    without an executor, bit for bit, if the number of threads is the same.

    Args:
        methods: names that `methods.create` accepts.
        splits: the data, or a function without arguments that loads them, such as `partial(data.load, "digits")`. With
            an executor, each job calls the function, while splits are written into the file of the jobs.
        student: a model's name.
        teacher, bank, task: as for `distill`.
        peers: networks that are trained beside the student if a method needs peers; see `peer_group`.
        seeds: number of seeds, or the seeds. A seed determines both the initialisation and the order of the data.
        runs, device, precision: as for `distill`. With an executor and "auto" or "cuda", each job chooses its device,
            and the networks of the result are on the CPU.
        executor: trains the jobs, in processes of its own: `Processes`, `Slurm` or any other executor that pickles a
            call, or one that makes the call at once. `ProcessPoolExecutor` must not fork if a GPU is used.
        retries: how often a job is run again that died because its process was killed or had no memory. It continues
            from its checkpoint in `runs`, and from the beginning without `runs`.
        methods_per_job: the largest number of methods in a job, so that there are several jobs for each seed, each of
            which evaluates the teacher again; 0 for all. The results are the same, except that a teacher cache is
            used for a job only if all its methods allow it.
        with_peers: whether to return the histories of the peers, too.
        progress: whether to show a progress bar; with an executor, a line for each job that ends.
        options: further arguments of `distill`.
    Returns:
        For each method its histories, one per seed: those of the student, not of its peers; with `with_peers`, that of
        the student followed by those of its peers, for each seed.
    Raises:
        InputError: no method is given, a method is given twice, or `distill` raises it.
        Diverged: a method diverged with some seed. All others are trained to the end first; the exception's `histories`
            are the histories of these, in the form of the result.
        JobsDied: a job died too often. All others are trained to the end first. This is a `Diverged`, too.
        KeyboardInterrupt: Ctrl-C stopped the training, after the checkpoints were written.
    """
    check_options(options, "compare")
    runtime.runs_folder(runs)
    check_methods(methods, peers)
    if teacher is not None:
        models.require_network(teacher)
    if not isinstance(seeds, int) and len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={list(seeds)} contains a seed twice, whose students would be equal; give each once")
    chosen = runtime.device(device)
    needs_bank = bank is None and teacher is not None and any(create(method).needs_bank for method in methods)
    load = splits if callable(splits) else lambda: splits
    if executor is not None and runtime.world() > 1:
        raise InputError("jobs are started by one process, not by torchrun; leave one of the two out")
    made = load() if needs_bank or executor is None or runs is not None else None
    of_bank = of_students = str(precision)
    recipe = options.get("recipe") or Recipe(**(task or Classification()).recipe)
    if runs is not None and made is not None:
        of_students, of_bank = _recorded_precisions(Path(runs), methods, precision, teacher, made, recipe)
    if of_students == "auto" and made is not None and chosen.type == "cpu" and not isinstance(executor, Slurm):
        passes = not options.get("teacher_cache") and any("teacher" in create(method).needs for method in methods)
        passed = teacher if passes and not isinstance(teacher, Predictions) else None
        of_students = of_bank = _chosen_precision(student, passed, made, task, recipe)
    if needs_bank:
        assert teacher is not None and made is not None
        images = made.train.to(chosen)
        bank = MemoryBank.build(models.frozen(teacher, chosen), images, task=task, precision=of_bank)
    some = methods_per_job or len(methods)
    plan = [
        (seed, [(method, peer_group(student, method, seed, peers)) for method in methods[first : first + some]])
        for seed in (range(seeds) if isinstance(seeds, int) else seeds)
        for first in range(0, len(methods), some)
    ]
    options |= {"teacher": teacher, "bank": bank, "task": task, "runs": runs, "precision": of_students}
    if executor is None:
        assert made is not None
        options |= {"device": chosen, "progress": progress}
        outcomes = [train(_members(groups), made, data_seed=seed, **options) for seed, groups in plan]
    else:
        options |= {"splits": splits, "device": device, "progress": False}
        outcomes = _run_jobs(plan, executor, options, retries, progress)
    histories: dict[str, list[History]] = {method: [] for method in methods}
    for (_, groups), outcome in zip(plan, outcomes, strict=True):
        start = 0
        for method, group in groups:
            members = range(start, start + (len(group) if with_peers else 1))
            histories[method] += [outcome.histories[member] for member in members if member in outcome.histories]
            start += len(group)
    for outcome in outcomes:
        if outcome.wrong:
            raise outcome.wrong
    died = [outcome.died for outcome in outcomes if outcome.died]
    if failed := died + [outcome.diverged for outcome in outcomes if outcome.diverged]:
        raise (JobsDied if died else Diverged)("; ".join(failed), histories)
    return histories


def _recorded_precisions(
    runs: Path,
    methods: Sequence[str],
    precision: str,
    teacher: Network | None,
    splits: Splits,
    recipe: Recipe,
) -> tuple[str, str]:
    """Return the precision of the runs of a comparison that exist, and that of their bank; otherwise `precision` twice.

    Runs belong to the comparison if they have one of its methods, its teacher, its data and its recipe.

    Raises:
        InputError: another precision is requested, or the runs have several.
    """
    known = [create(method).config for method in methods]
    mark = teacher and {"name": teacher.name, "fingerprint": teacher.identity}
    found: dict[str, Path] = {}
    banks: list[str] = []
    for path in sorted(runs.glob("*/config.json")):
        run = runtime.Run(path.parent)
        try:
            same = run.settings.get("teacher") == mark and run.settings.get("method") in known
        except InputError as error:  # another run may be damaged
            runtime.notice(f"left out: {error}")
            continue
        same = same and run.settings.get("data", {}).get("fingerprint") == splits.train.fingerprint
        if same and fingerprint(run.settings.get("recipe")) == fingerprint(asdict(recipe)):
            numerics = run.config.get("numerics", {})
            found[numerics.get("precision", "auto")] = run.folder
            if "bank_precision" in numerics:
                banks.append(numerics["bank_precision"])
    if not found:
        return precision, precision
    if len(found) > 1 or precision not in ("auto", *found):
        listed = ", ".join(f"{folder} in {one}" for one, folder in found.items())
        raise InputError(
            f"this comparison has runs of a precision already ({listed}), not {precision}; give that precision or "
            "auto, or another folder of runs"
        )
    (one,) = found
    return one, banks[0] if banks else one


def _chosen_precision(student: str, teacher: Network | None, splits: Splits, task: Task | None, recipe: Recipe) -> str:
    """Return the precision on a CPU of all students and of the bank for "auto", so that all seeds have the same.

    Args:
        student: a model's name.
        teacher: the teacher if it is evaluated in each step, else None.
        splits, task, recipe: as for `compare`.
    """
    train = splits.train.to("cpu")
    with runtime.seeded():
        network = models.create(student, **train.spec)
    steps = recipe.epochs * Sampler(train).steps(recipe.batch_size)
    frozen = models.frozen(teacher, torch.device("cpu")) if teacher else None
    return precision_benchmark.choose("auto", steps, network, frozen, train, task or Classification())["precision"]


Groups = list[tuple[str, list[Student]]]  # the methods of a job, and the students of each: a student and its peers


def _members(groups: Groups) -> list[Student]:
    return [member for _, group in groups for member in group]


def _run_jobs(
    plan: Sequence[tuple[int, Groups]], executor: Executor, inputs: dict[str, Any], retries: int, progress: bool
) -> list[Outcome]:
    """Run one job for each seed and its students, with inputs that are written into a folder below `runs`."""
    with ExitStack() as stack:
        if inputs["runs"] is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(inputs["runs"]) / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
            folder.mkdir(parents=True)
        stack.callback((folder / INPUTS).unlink, missing_ok=True)
        write_inputs(folder, inputs)
        parts: Counter[int] = Counter()
        jobs = []
        for seed, groups in plan:
            parts[seed] += 1
            part = f", part {parts[seed]}" if len(plan) > len({seed for seed, _ in plan}) else ""
            jobs.append(Job(f"seed {seed}{part}", folder, tuple(_members(groups)), seed))
        outcomes = run(jobs, executor, retries=retries, progress=progress)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.weights:
            outcome.histories = _rebuilt(outcome, job, inputs)
    return outcomes


def _rebuilt(outcome: Outcome, job: Job, inputs: dict[str, Any]) -> dict[int, History]:
    """Return the histories of a job whose networks or methods could not be pickled, from their weights."""
    splits, task, cpu = inputs["splits"], inputs["task"] or Classification(), torch.device("cpu")
    made = learners(
        job.students,
        (splits() if callable(splits) else splits).train.to(cpu),
        task=task,
        teacher=models.frozen(inputs["teacher"], cpu) if inputs["teacher"] else None,
        bank=inputs["bank"],
        recipe=inputs.get("recipe") or Recipe(**task.recipe),
        data_seed=job.data_seed,
        evaluate_every=inputs.get("evaluate_every", 1),
        device=cpu,
        sync_batchnorm=inputs.get("sync_batchnorm", False),
        search=inputs.get("search", "exact"),
    )
    found = {}
    for position, kept in outcome.weights.items():
        record = RunRecord(made[position])
        record.epochs, record.summary = kept["epochs"], kept["summary"]
        record.network.load_state_dict(kept["network"])
        record.network.eval()
        made[position].method.load_state_dict(kept["method"])
        found[position] = replace(record.history(), folder=kept["folder"])
    return found


@checked
def peer_group(network: str, method: str, seed: int = 0, peers: Sequence[str] = ()) -> list[Student]:
    """Return a student for `distill`, followed by its peers, with the same method, if the method needs peers.

    Args:
        network: name of the student's model.
        method: name of a method.
        seed: seed of the student; peer i, counted from 1, has the seed `seed` + 1000 i.
        peers: names of the peers' models; by default one peer with the student's model.
    """
    if "peers" not in create(method).needs:
        return [Student(network, method, seed)]
    members = enumerate([network, *(peers or [network])])
    return [Student(peer, method, seed + 1000 * i, peer_group=f"{method} seed {seed}") for i, peer in members]


def check_methods(methods: Sequence[str], peers: Sequence[str]) -> None:
    """Check the methods of a comparison and the networks that are given as peers.

    Raises:
        InputError: there is no method, two are the same, or networks are given as peers and no method needs any.
    """
    if not methods:
        raise InputError("no method to compare; name some, such as ce kd ickd")
    made = [create(method) for method in methods]
    names = [describe(method) for method in made]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(
                f"{methods[names.index(name)]} and {methods[i]} are the same method; leave one of them out"
            )
    if peers and not any("peers" in method.needs for method in made):
        raise InputError(f"no peers are needed for {', '.join(methods)}; name a method such as dml, or leave them out")


@checked
def step_seconds(
    methods: Sequence[str],
    splits: Splits,
    *,
    student: str = "resnet8",
    teacher: Network | None = None,
    bank: MemoryBank | None = None,
    task: Task | None = None,
    batch_size: Count = 64,
    steps: Count = 8,
    rounds: Count = 3,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    statistic: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Measure the time of a training step of each method, in rounds that alternate between the methods.

    Args:
        methods, splits, student, teacher, bank, task: as for `compare`.
        batch_size: number of images per step.
        steps: number of steps in an epoch. A measurement takes two epochs, so that two phases of equal length have the
            same weight. With fewer images than that takes, an epoch is shorter.
        rounds: number of measurements of each method, after a first one that is discarded.
        device, precision: as for `distill`.
        statistic: of the rounds; `min` depends least on other programs of the machine.
    Returns:
        For each method, seconds per step and student, including the teacher's forward pass and the retrieval.
    """
    device = runtime.device(device)
    splits = splits.to(device)
    train, test = splits.train, splits.test
    count = batch_size * min(steps, max(1, len(train) // batch_size))  # full batches only
    few = splits._replace(train=train.subset(torch.arange(min(count, len(train)))))
    few = few._replace(val=splits.val.subset(torch.arange(0)), test=test.subset(torch.arange(min(len(test), 64))))
    if bank is None and teacher is not None and any(create(method).needs_bank for method in methods):
        bank = MemoryBank.build(models.frozen(teacher, device), train, task=task, precision=precision)
    recipe = Recipe(epochs=2, batch_size=batch_size, lr=0.01, schedule="cosine")
    found: dict[str, list[float]] = {method: [] for method in methods}
    for _round in range(rounds + 1):
        for method in methods:
            histories = distill(
                peer_group(student, method),
                few,
                teacher=teacher,
                bank=bank,
                task=task,
                recipe=recipe,
                device=device,
                precision=precision,
                evaluate_every=2,
                progress=False,
            )
            seconds = next(iter(histories.values())).epochs[-1]["seconds"] / len(histories)
            found[method].append(seconds / (2 * Sampler(few.train).steps(batch_size)))
    return {method: statistic(seconds[1:]) for method, seconds in found.items()}
